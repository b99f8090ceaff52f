"""What the variants that call the package flash-linear-attention share."""

from typing import Final

from variants.problem import Problem
from variants.requirement import ComputeCapability, Limit, Package

DTYPES: Final = ("bfloat16", "float16")
"""Its kernels multiply float32 in tf32, and some refuse it."""

REQUIRES: Final = (
    Package("fla-core", "0.4"),  # what flash-linear-attention takes its kernels from
    ComputeCapability(8),
    Limit(lambda problem: problem.causal, "causal only"),
    Limit(lambda problem: problem.tokens == problem.kv_tokens, "needs tokens = kv_tokens"),
    Limit(lambda problem: problem.group == 1, "no grouped queries (kv_heads = heads only)"),
    Limit(lambda problem: problem.head_dim <= 256, "head_dim ≤ 256"),
    # It takes fewer tokens than heads for axes in the wrong order, and warns or raises.
    Limit(lambda problem: problem.tokens >= max(1, problem.heads), "needs at least as many tokens as heads"),
)

CHUNK: Final = 64


def chunk_bytes(problem: Problem) -> int:
    """The states before its chunks, the products within them and two rows a token; in training all of them twice."""
    rows = problem.batch * problem.heads
    states = rows * (problem.tokens // CHUNK + 1) * problem.head_dim**2 * 4
    own = rows * problem.tokens * (2 * CHUNK + 3 * problem.head_dim) * 4
    return 2 * (states + own) if problem.mode == "training" else states + own
