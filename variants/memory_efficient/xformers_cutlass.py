"""xformers held to its CUTLASS kernels, on CUDA."""

from variants.problem import Problem
from variants.requirement import ComputeCapability, Limit, Package
from variants.sdpa import fused_workspace_bytes
from variants.variant import Attention, variant
from variants.xformers_attention import calling


@variant(
    "memory_efficient/xformers_cutlass",
    summary="xformers.ops.memory_efficient_attention held to its CUTLASS kernels",
    devices=("cuda",),
    dtypes=("float32", "bfloat16", "float16"),
    modes=("forward", "training", "decode"),
    workspace_bytes=fused_workspace_bytes,
    layout="bnhd",
    requires=(
        Package("xformers", "0.0.35"),
        ComputeCapability(8, most=(9, 0)),
        Limit(lambda p: p.head_dim * p.element_bytes % 16 == 0, "rows of a head in whole 16 bytes"),
        Limit(lambda p: p.mode != "training" or p.group == 1, "training: no grouped queries (kv_heads = heads only)"),
    ),
    source="github.com/facebookresearch/xformers, xformers/ops/fmha/cutlass.py; arXiv:2112.05682",
)
def build(problem: Problem) -> Attention:
    """Forward and backward by CUTLASS."""
    from xformers import ops  # optional, and slow to import

    return calling(problem, ops.MemoryEfficientAttentionCutlassOp)
