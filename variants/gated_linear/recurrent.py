"""The scan as written: each channel of the state decays, then takes up the key."""

from jaxtyping import Float
from torch import Tensor

from variants.decayed_scan import decayed_tokens
from variants.dtypes import TORCH_DTYPES
from variants.gated_linear import log_decays
from variants.problem import Problem
from variants.scan import SELF_CAUSAL, carry, repeated_rows, segment_bytes, token_segments
from variants.tiles import accumulator
from variants.variant import Attention, variant


def workspace_bytes(problem: Problem) -> int:
    """The decays, the state, and the rows of a segment; in training every state of one."""
    size = problem.head_dim
    wide = max(4, problem.element_bytes)
    return problem.batch * problem.heads * problem.tokens * size * wide + segment_bytes(problem, size, size)


@variant(
    "gated_linear/recurrent",
    summary="the state decayed by channels and grown key by key",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    requires=SELF_CAUSAL,
)
def build(problem: Problem) -> Attention:
    """The decays are cast here."""
    log_decay = log_decays(problem.heads, problem.tokens, problem.head_dim).repeat(problem.batch, 1, 1)
    log_decay = log_decay.to(problem.device, accumulator(TORCH_DTYPES[problem.dtype]))
    taken = token_segments(problem.tokens)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return carry(decayed_tokens, taken, *repeated_rows(problem, q, k, v), (log_decay,)).view(q.shape)

    return run
