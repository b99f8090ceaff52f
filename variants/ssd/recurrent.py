"""The scan as written: the state decays and takes up its input step by step."""

from jaxtyping import Float
from torch import Tensor

from variants.decayed_scan import decayed_tokens
from variants.dtypes import TORCH_DTYPES
from variants.problem import Problem
from variants.scan import SELF_CAUSAL, carry, repeated_rows, segment_bytes, token_segments
from variants.ssd import rates, step_sizes
from variants.tiles import accumulator
from variants.variant import Attention, variant


def workspace_bytes(problem: Problem) -> int:
    """Steps and log decays, the state, and the rows of a segment; in training every state of one."""
    gates = 3 * problem.batch * problem.heads * problem.tokens * 8
    return gates + segment_bytes(problem, problem.head_dim, problem.head_dim)


def step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens of one segment."""
    return decayed_tokens(state, q, k * size, v, log_decay)


@variant(
    "ssd/recurrent",
    summary="the decaying state grown step by step",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    requires=SELF_CAUSAL,
)
def build(problem: Problem) -> Attention:
    """The steps are cast here; the log decays stay in float64."""
    sizes = step_sizes(problem.heads, problem.tokens).unsqueeze(2)
    log_decay = (rates(problem.heads)[:, None, None] * sizes).repeat(problem.batch, 1, 1).to(problem.device)
    sizes = sizes.repeat(problem.batch, 1, 1).to(problem.device, accumulator(TORCH_DTYPES[problem.dtype]))
    taken = token_segments(problem.tokens)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return carry(step, taken, *repeated_rows(problem, q, k, v), (log_decay, sizes)).view(q.shape)

    return run
