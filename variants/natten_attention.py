"""What the variants that call NATTEN share."""

from typing import Final

from variants.problem import Problem
from variants.requirement import ComputeCapability, Limit, Package

DTYPES: Final = ("bfloat16", "float16")

REQUIRES: Final = (
    Package("natten", "0.21"),
    ComputeCapability(8),
    Limit(lambda problem: problem.tokens == problem.kv_tokens, "needs tokens = kv_tokens"),
    Limit(lambda problem: problem.group == 1, "no grouped queries (kv_heads = heads only)"),
    Limit(lambda p: p.head_dim <= 256 and p.head_dim % 8 == 0, "head_dim ≤ 256 and a multiple of 8"),
    Limit(lambda problem: problem.tokens > 1, "needs two tokens or more"),
)


def workspace_bytes(problem: Problem) -> int:
    """The log-sum-exp; in training also the gradient of q in float32 and Σ out·gradient of each row."""
    rows = problem.batch * problem.heads * problem.tokens
    return 4 * rows * (2 + problem.head_dim if problem.mode == "training" else 1)


def kernel_size(window: int, dilation: int, places: int) -> int:
    """NATTEN's size of a window along an axis of so many places, which it may not exceed.

    Raises `ValueError` where it has none that is ours.
    """
    if window < 2:
        raise ValueError("NATTEN needs a window of 2 or more")
    fitting = places // dilation
    # Where classes of places differ in size, a window as large as the larger ones fits none of the smaller.
    if window > fitting and places % dilation:
        raise ValueError(f"NATTEN needs window · dilation ≤ {places} here, not {window} · {dilation}")
    if fitting < 2:
        raise ValueError(f"NATTEN needs two places or more of each class, not {fitting}")
    return min(window, fitting)
