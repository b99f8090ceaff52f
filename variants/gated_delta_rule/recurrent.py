"""The recurrence as written: the state decays, each key reads it, then corrects it."""

from jaxtyping import Float
from torch import Tensor

from variants.delta_scan import delta_tokens, tokens_bytes
from variants.dtypes import TORCH_DTYPES
from variants.gated_delta_rule import log_decays, rates
from variants.problem import Problem
from variants.scan import SELF_CAUSAL, carry, repeated_rows, token_segments
from variants.tiles import accumulator
from variants.variant import Attention, variant


@variant(
    "gated_delta_rule/recurrent",
    summary="the decaying state corrected key by key",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=tokens_bytes,
    requires=SELF_CAUSAL,
)
def build(problem: Problem) -> Attention:
    """The rates are cast here; the log decays stay in float64."""
    beta = rates(problem.heads, problem.tokens).repeat(problem.batch, 1)
    beta = beta.to(problem.device, accumulator(TORCH_DTYPES[problem.dtype]))
    log_decay = log_decays(problem.heads, problem.tokens).repeat(problem.batch, 1).to(problem.device)
    taken = token_segments(problem.tokens)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return carry(delta_tokens, taken, *repeated_rows(problem, q, k, v), (beta, log_decay)).view(q.shape)

    return run
