"""What the variants that call NATTEN share."""

from typing import Final

from variants.flash_attention import HEAD_SIZES
from variants.requirement import ComputeCapability, Limit, Package

REQUIRES: Final = (
    Package("natten", "0.21"),
    ComputeCapability(8),
    Limit(lambda problem: problem.tokens == problem.kv_tokens, "needs tokens = kv_tokens"),
    Limit(lambda problem: problem.group == 1, "no grouped queries (kv_heads = heads only)"),
    HEAD_SIZES,
    Limit(lambda problem: problem.tokens > 1, "needs two tokens or more"),
)


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
