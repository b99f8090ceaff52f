"""Chunkwise-parallel: a triangular system within each chunk, the state between them."""

from jaxtyping import Float
from torch import Tensor

from variants.problem import Problem
from variants.removal_scan import chunks_bytes, gates, groups, removal_chunks, removal_gradients
from variants.rwkv7 import DEFINITION
from variants.scan import CHUNK, SELF_CAUSAL, carry, repeated_rows
from variants.variant import Attention, variant


def executed_flops(problem: Problem) -> int:
    """The formula's work, and in each chunk seven products and a system whose solution has 2 d columns."""
    inside = 16 * problem.batch * problem.heads * problem.head_dim * problem.tokens * CHUNK
    return DEFINITION.useful_flops(problem) + (round(inside * 3.5) if problem.mode == "training" else inside)


@variant(
    "rwkv7/chunked",
    summary="a triangular system within each chunk, the state between them",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=chunks_bytes,
    executed_flops=executed_flops,
    requires=SELF_CAUSAL,
)
def build(problem: Problem) -> Attention:
    """The gates are cast here."""
    drawn = gates(problem)
    taken = groups(problem)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        rows = repeated_rows(problem, q, k, v)
        return carry(removal_chunks, taken, *rows, drawn, adjoint=removal_gradients).view(q.shape)

    return run
