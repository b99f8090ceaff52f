"""xformers' split-K kernel, which divides the keys among programs: for one query over a long cache, on CUDA."""

from variants.problem import Problem
from variants.requirement import ComputeCapability, Limit, Package
from variants.variant import Attention, variant
from variants.xformers_attention import calling

MOST_SPLITS = 64
"""The kernel's own limit on an NVIDIA card."""

HEAD_SIZES = (16, 32, 64, 128, 256, 512)


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
        Limit(lambda p: p.head_dim in HEAD_SIZES, f"head_dim {', '.join(map(str, HEAD_SIZES))}"),
    ),
    source="github.com/facebookresearch/xformers, xformers/ops/fmha/triton_splitk.py",
)
def build(problem: Problem) -> Attention:
    """The kernel has no backward pass."""
    from xformers import ops  # optional, and slow to import

    return calling(problem, (ops.fmha.triton_splitk.FwOp, None))
