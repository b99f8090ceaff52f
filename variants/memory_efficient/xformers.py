"""xformers' memory_efficient_attention, on CUDA."""

from jaxtyping import Float
from torch import Tensor

from variants.problem import Problem
from variants.requirement import ComputeCapability, Package
from variants.sdpa import fused_workspace_bytes
from variants.variant import Attention, variant


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
    """The bias is xformers' own object; grouped queries use its five-axis form."""
    from xformers import ops  # optional, and slow to import

    causal = ops.fmha.attn_bias.LowerTriangularFromBottomRightMask() if problem.causal else None

    def run(
        q: Float[Tensor, "batch tokens heads head_dim"],
        k: Float[Tensor, "batch kv_tokens kv_heads head_dim"],
        v: Float[Tensor, "batch kv_tokens kv_heads head_dim"],
    ) -> Float[Tensor, "batch tokens heads head_dim"]:
        if problem.group == 1:
            out: Tensor = ops.memory_efficient_attention(q, k, v, attn_bias=causal)
            return out
        grouped = q.unflatten(2, (problem.kv_heads, problem.group))
        spread = (x.unsqueeze(3).expand(-1, -1, -1, problem.group, -1) for x in (k, v))
        merged: Tensor = ops.memory_efficient_attention(grouped, *spread, attn_bias=causal)
        return merged.flatten(2, 3)

    return run
