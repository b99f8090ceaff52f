"""xformers' memory_efficient_attention, on CUDA."""

from variants.problem import Problem
from variants.requirement import ComputeCapability, Package
from variants.sdpa import fused_workspace_bytes
from variants.variant import Attention, variant
from variants.xformers_attention import calling


@variant(
    "memory_efficient/xformers",
    summary="xformers.ops.memory_efficient_attention, its own choice of kernel",
    devices=("cuda",),
    dtypes=("float32", "bfloat16", "float16"),
    modes=("forward", "training", "decode"),
    workspace_bytes=fused_workspace_bytes,
    layout="bnhd",
    requires=(Package("xformers", "0.0.35"), ComputeCapability(8)),
    source="github.com/facebookresearch/xformers; arXiv:2112.05682",
)
def build(problem: Problem) -> Attention:
    """Which kernel it takes depends on the card and the release."""
    return calling(problem)
