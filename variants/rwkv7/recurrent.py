"""The recurrence as written: each key reads the state, which decays, loses what was read and takes up the value."""

from jaxtyping import Float
from torch import Tensor

from variants.problem import Problem
from variants.removal_scan import gates, removal_tokens, tokens_bytes
from variants.scan import SELF_CAUSAL, carry, repeated_rows, token_segments
from variants.variant import Attention, variant


@variant(
    "rwkv7/recurrent",
    summary="the state decayed, cleared and written key by key",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=tokens_bytes,
    requires=SELF_CAUSAL,
)
def build(problem: Problem) -> Attention:
    """The gates are cast here."""
    drawn = gates(problem)
    segments = token_segments(problem.tokens)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return carry(removal_tokens, segments, *repeated_rows(problem, q, k, v), drawn).view(q.shape)

    return run
