"""xformers' split-K kernel, which divides the keys among programs: for one query over a long cache, on CUDA."""

from jaxtyping import Float
from torch import Tensor

from variants.problem import Problem
from variants.requirement import ComputeCapability, Limit, Package
from variants.variant import Attention, variant

MOST_SPLITS = 512
"""The kernel's own limit."""


def workspace_bytes(problem: Problem) -> int:
    """An output and a log-sum-exp in float32 for each part of the keys."""
    splits = min(MOST_SPLITS, max(1, problem.kv_tokens // 64))
    return 4 * splits * problem.batch * problem.heads * problem.tokens * (problem.head_dim + 2)


@variant(
    "memory_efficient/xformers_splitk",
    summary="xformers' Triton split-K kernel, for decoding",
    devices=("cuda",),
    dtypes=("bfloat16", "float16"),
    modes=("decode",),
    workspace_bytes=workspace_bytes,
    layout="bnhd",
    requires=(
        Package("xformers", "0.0.35"),
        Package("triton", "3.6"),
        ComputeCapability(8),
        Limit(lambda problem: problem.tokens == 1, "one query only"),
        Limit(lambda problem: problem.kv_tokens > 0, "needs keys"),
        Limit(lambda p: p.head_dim <= 512 and p.head_dim % 8 == 0, "head_dim ≤ 512 and a multiple of 8"),
    ),
    source="github.com/facebookresearch/xformers, xformers/ops/fmha/triton_splitk.py",
)
def build(problem: Problem) -> Attention:
    """The last query sees every key, so it needs no mask; grouped queries use xformers' five-axis form."""
    from xformers import ops  # optional, and slow to import

    kernel = ops.fmha.triton_splitk.FwOp

    def run(
        q: Float[Tensor, "batch tokens heads head_dim"],
        k: Float[Tensor, "batch kv_tokens kv_heads head_dim"],
        v: Float[Tensor, "batch kv_tokens kv_heads head_dim"],
    ) -> Float[Tensor, "batch tokens heads head_dim"]:
        if problem.group == 1:
            out: Tensor = ops.memory_efficient_attention_forward(q, k, v, op=kernel)
            return out
        grouped = q.unflatten(2, (problem.kv_heads, problem.group))
        spread = (x.unsqueeze(3).expand(-1, -1, -1, problem.group, -1) for x in (k, v))
        merged: Tensor = ops.memory_efficient_attention_forward(grouped, *spread, op=kernel)
        return merged.flatten(2, 3)

    return run
