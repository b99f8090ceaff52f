"""Exact attention without a mask to or from few landmarks, by what is fastest for the device and the type."""

from torch.nn import functional

from variants.online_softmax import online_softmax, online_workspace_bytes, tiles
from variants.problem import Problem
from variants.products import wide_vectors
from variants.sdpa import fused_workspace_bytes
from variants.variant import Attention


def exact_attention(problem: Problem) -> Attention:
    """The online softmax for wide types on a CPU with wide vectors, else torch's fused kernels."""
    if by_tiles(problem):
        plan = tiles(problem)
        return lambda q, k, v: online_softmax(q, k, v, plan)
    grouped = problem.group > 1
    return lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)


def exact_workspace_bytes(problem: Problem) -> int:
    """What it takes beyond inputs and output."""
    return online_workspace_bytes(problem) if by_tiles(problem) else fused_workspace_bytes(problem)


def by_tiles(problem: Problem) -> bool:
    """The products of `variants.products` are the faster where oneDNN has them, which are those of wide types."""
    return problem.device_type == "cpu" and problem.element_bytes >= 4 and wide_vectors()
