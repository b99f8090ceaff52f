"""How it is measured: inputs, instrument, runner and the asv suite. Knows `variants` only.

Nothing here computes or touches CUDA at import: asv forks processes from one that has imported it.
"""
