"""FlashAttention-4, on Hopper and Blackwell."""

from variants.flash_attention import DTYPES, FLASH_ATTN_4, HEAD_SIZES, SOME_KEYS, calling, lse_bytes
from variants.problem import Problem
from variants.requirement import ComputeCapability
from variants.variant import Attention, variant


@variant(
    "memory_efficient/flash_attn_4",
    summary="the package flash-attn-4, its flash_attn_func",
    devices=("cuda",),
    dtypes=DTYPES,
    modes=("forward", "training", "decode"),
    workspace_bytes=lse_bytes,
    layout="bnhd",
    requires=(FLASH_ATTN_4, ComputeCapability(9), HEAD_SIZES, SOME_KEYS),
    source="github.com/Dao-AILab/flash-attention, flash_attn/cute",
)
def build(problem: Problem) -> Attention:
    """The package is imported here."""
    from flash_attn.cute import flash_attn_func

    return calling(flash_attn_func, causal=problem.causal)
