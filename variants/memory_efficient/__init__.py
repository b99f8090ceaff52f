"""The ways to compute full attention exactly without its score matrix: the definition is `full`'s own."""

from variants.full import DEFINITION

__all__ = ["DEFINITION"]
