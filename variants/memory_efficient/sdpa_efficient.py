"""SDPA's memory-efficient kernel (CUTLASS), on CUDA."""

from torch.nn.attention import SDPBackend

from variants.problem import Problem
from variants.requirement import ComputeCapability, Limit
from variants.sdpa import forced, fused_workspace_bytes
from variants.variant import Attention, variant


@variant(
    "memory_efficient/sdpa_efficient",
    summary="scaled_dot_product_attention held to its memory-efficient kernel",
    devices=("cuda",),
    dtypes=("float32", "bfloat16", "float16"),
    modes=("forward", "training", "decode"),
    workspace_bytes=fused_workspace_bytes,
    requires=(
        ComputeCapability(5),
        Limit(lambda p: p.group == 1, "no grouped queries (kv_heads = heads only)"),
        Limit(lambda p: p.head_dim * p.element_bytes % 16 == 0, "rows of a head in whole 16 bytes"),
    ),
    source="arXiv:2112.05682",
)
def build(problem: Problem) -> Attention:
    """SDPA held to EFFICIENT_ATTENTION."""
    return forced(problem, SDPBackend.EFFICIENT_ATTENTION)
