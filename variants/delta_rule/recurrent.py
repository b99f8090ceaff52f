"""The recurrence as written: each key reads the state, then corrects it."""

from jaxtyping import Float
from torch import Tensor

from variants.delta_rule import rates
from variants.delta_scan import delta_tokens, tokens_bytes
from variants.dtypes import TORCH_DTYPES
from variants.problem import Problem
from variants.scan import SELF_CAUSAL, carry, repeated_rows, token_segments
from variants.tiles import accumulator
from variants.variant import Attention, variant


@variant(
    "delta_rule/recurrent",
    summary="the state corrected key by key",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=tokens_bytes,
    requires=SELF_CAUSAL,
)
def build(problem: Problem) -> Attention:
    """The rates are cast here."""
    beta = rates(problem.heads, problem.tokens).repeat(problem.batch, 1)
    beta = beta.to(problem.device, accumulator(TORCH_DTYPES[problem.dtype]))
    taken = token_segments(problem.tokens)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return carry(delta_tokens, taken, *repeated_rows(problem, q, k, v), (beta,)).view(q.shape)

    return run
