"""SDPA's cuDNN kernel, on CUDA."""

from torch.nn.attention import SDPBackend

from variants.problem import Problem
from variants.requirement import ComputeCapability, Limit
from variants.sdpa import forced, fused_workspace_bytes
from variants.variant import Attention, variant


@variant(
    "memory_efficient/sdpa_cudnn",
    summary="scaled_dot_product_attention held to its cuDNN kernel",
    devices=("cuda",),
    dtypes=("bfloat16", "float16"),
    modes=("forward", "training", "decode"),
    workspace_bytes=fused_workspace_bytes,
    requires=(
        ComputeCapability(8),
        Limit(lambda p: p.head_dim <= 256 and p.head_dim % 8 == 0, "head_dim ≤ 256 and a multiple of 8"),
        Limit(lambda p: p.mode != "training" or p.head_dim <= 128, "head_dim ≤ 128 in training"),
        Limit(lambda p: p.kv_tokens != 1, "two keys or more"),
    ),
    source="NVIDIA cuDNN, graph API, scaled dot product attention",
)
def build(problem: Problem) -> Attention:
    """SDPA held to CUDNN_ATTENTION."""
    return forced(problem, SDPBackend.CUDNN_ATTENTION)
