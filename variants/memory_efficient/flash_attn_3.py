"""FlashAttention-3, on Hopper."""

from variants.flash_attention import DTYPES, HEAD_SIZES, SOME_KEYS, calling, lse_bytes
from variants.problem import Problem
from variants.requirement import ComputeCapability, Package
from variants.variant import Attention, variant


@variant(
    "memory_efficient/flash_attn_3",
    summary="the package flash-attn-3, its flash_attn_func",
    devices=("cuda",),
    dtypes=DTYPES,
    modes=("forward", "training", "decode"),
    workspace_bytes=lse_bytes,
    layout="bnhd",
    requires=(Package("flash-attn-3", "3.0.0b1"), ComputeCapability(9, most=(9, 0)), HEAD_SIZES, SOME_KEYS),
    source="arXiv:2407.08608; github.com/Dao-AILab/flash-attention, hopper",
)
def build(problem: Problem) -> Attention:
    """The package is imported here."""
    from flash_attn_interface import flash_attn_func

    return calling(flash_attn_func, causal=problem.causal)
