"""What is measured: attention definitions, the variants that compute them, and the registry.

Importing this package does not import torch, so that the command line starts fast;
`variants.catalogue.load` imports a variant, and torch with it.
"""

from variants.problem import InvalidProblem, Problem

__all__ = ["InvalidProblem", "Problem"]
