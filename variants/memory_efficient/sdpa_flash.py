"""SDPA's FlashAttention kernel: torch's own on a CPU, FlashAttention-2 on CUDA."""

from torch.nn.attention import SDPBackend

from variants.problem import Problem
from variants.requirement import ComputeCapability, Limit
from variants.sdpa import forced, fused_workspace_bytes
from variants.variant import Attention, variant

ON_CUDA = (
    Limit(lambda p: p.device_type == "cpu" or p.dtype in ("float16", "bfloat16"), "CUDA: float16 or bfloat16 only"),
    Limit(lambda p: p.device_type == "cpu" or p.head_dim <= 256, "CUDA: head_dim ≤ 256"),
    Limit(
        lambda p: p.device_type == "cpu" or not p.causal or p.tokens in (1, p.kv_tokens),
        "CUDA: a causal mask only where tokens = kv_tokens",
    ),
)


@variant(
    "memory_efficient/sdpa_flash",
    summary="scaled_dot_product_attention held to its flash kernel",
    devices=("cpu", "cuda"),
    modes=("forward", "training", "decode"),
    workspace_bytes=fused_workspace_bytes,
    requires=(ComputeCapability(8), *ON_CUDA),
    source="arXiv:2205.14135; arXiv:2307.08691",
)
def build(problem: Problem) -> Attention:
    """SDPA held to FLASH_ATTENTION."""
    return forced(problem, SDPBackend.FLASH_ATTENTION)
