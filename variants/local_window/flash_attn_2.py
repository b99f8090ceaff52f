"""FlashAttention-2 with its window_size, on CUDA."""

from variants.flash_attention import DTYPES, HEAD_SIZES, SOME_KEYS, calling, lse_bytes
from variants.local_window import reach
from variants.problem import Problem
from variants.requirement import ComputeCapability, Package
from variants.variant import Attention, variant


@variant(
    "local_window/flash_attn_2",
    summary="the package flash-attn, its flash_attn_func with window_size",
    devices=("cuda",),
    dtypes=DTYPES,
    modes=("forward", "training", "decode"),
    workspace_bytes=lse_bytes,
    layout="bnhd",
    requires=(Package("flash-attn", "2.7"), ComputeCapability(8), HEAD_SIZES, SOME_KEYS),
    source="arXiv:2307.08691; github.com/Dao-AILab/flash-attention",
)
def build(problem: Problem, *, window: int) -> Attention:
    """Both numbers of window_size are inclusive: W − 1 keys to the left are a causal window of W."""
    from flash_attn import flash_attn_func

    return calling(flash_attn_func, causal=problem.causal, window_size=reach(window, problem.causal))
