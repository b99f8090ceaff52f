"""FlashAttention-4 with its window_size, on Hopper and Blackwell."""

from variants.flash_attention import DTYPES, FLASH_ATTN_4, HEAD_SIZES, SOME_KEYS, calling, lse_bytes
from variants.local_window import reach
from variants.problem import Problem
from variants.requirement import ComputeCapability
from variants.variant import Attention, variant


@variant(
    "local_window/flash_attn_4",
    summary="the package flash-attn-4, its flash_attn_func with window_size",
    devices=("cuda",),
    dtypes=DTYPES,
    modes=("forward", "training", "decode"),
    workspace_bytes=lse_bytes,
    layout="bnhd",
    requires=(FLASH_ATTN_4, ComputeCapability(9), HEAD_SIZES, SOME_KEYS),
    source="github.com/Dao-AILab/flash-attention, flash_attn/cute",
)
def build(problem: Problem, *, window: int) -> Attention:
    """Both numbers of window_size are inclusive, as in FlashAttention-2."""
    from flash_attn.cute import flash_attn_func

    return calling(flash_attn_func, causal=problem.causal, window_size=reach(window, problem.causal))
