"""Chunkwise-parallel: a triangular system within each chunk, the decaying state between them."""

from jaxtyping import Float
from torch import Tensor

from variants.delta_scan import CHUNK, chunks_bytes, delta_chunks, delta_gradients, groups
from variants.dtypes import TORCH_DTYPES
from variants.gated_delta_rule import DEFINITION, log_decays, rates
from variants.problem import Problem
from variants.scan import SELF_CAUSAL, carry, repeated_rows
from variants.tiles import accumulator
from variants.variant import Attention, variant


def executed_flops(problem: Problem) -> int:
    """The formula's work, the two products within each chunk and its system, whose solution has 2 d columns."""
    inside = 8 * problem.batch * problem.heads * problem.head_dim * problem.tokens * CHUNK
    return DEFINITION.useful_flops(problem) + (round(inside * 3.5) if problem.mode == "training" else inside)


@variant(
    "gated_delta_rule/chunked",
    summary="a triangular system within each chunk, the decaying state between them",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=chunks_bytes,
    executed_flops=executed_flops,
    requires=SELF_CAUSAL,
    source="arXiv:2412.06464, section 3.3",
)
def build(problem: Problem) -> Attention:
    """The rates are cast here; the log decays stay in float64."""
    beta = rates(problem.heads, problem.tokens).repeat(problem.batch, 1)
    beta = beta.to(problem.device, accumulator(TORCH_DTYPES[problem.dtype]))
    log_decay = log_decays(problem.heads, problem.tokens).repeat(problem.batch, 1).to(problem.device)
    taken = groups(problem)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        rows = repeated_rows(problem, q, k, v)
        return carry(delta_chunks, taken, *rows, (beta, log_decay), adjoint=delta_gradients).view(q.shape)

    return run
