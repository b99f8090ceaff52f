"""The block decomposition: within a chunk by a masked product, between chunks by the decaying state."""

from jaxtyping import Float
from torch import Tensor

from variants.decayed_scan import decay_tiles, decayed_chunks, decayed_gradients
from variants.dtypes import TORCH_DTYPES
from variants.problem import Problem
from variants.scan import CHUNK, SELF_CAUSAL, Gradients, carry, carry_bytes, chunk_groups, repeated_rows, split_chunks
from variants.ssd import DEFINITION, rates, step_sizes
from variants.tiles import accumulator
from variants.variant import Attention, variant


def groups(problem: Problem) -> list[slice]:
    """The chunks that are taken together."""
    return chunk_groups(problem.tokens, problem.batch * problem.heads * max(problem.head_dim, CHUNK))


def workspace_bytes(problem: Problem) -> int:
    """Steps and log decays, the states before the groups, and one group's products and decays."""
    size = problem.head_dim
    tokens = groups(problem)[0].stop if problem.tokens else 0
    own = tokens * (5 * size + 5 * CHUNK) + 3 * (tokens // CHUNK + 2) * size * size
    gates = 3 * problem.batch * problem.heads * problem.tokens * 8
    return gates + carry_bytes(problem, len(groups(problem)), size, size, own)


def executed_flops(problem: Problem) -> int:
    """The formula's work, and the products within each chunk."""
    inside = 4 * problem.batch * problem.heads * problem.head_dim * problem.tokens * CHUNK
    return DEFINITION.useful_flops(problem) + (round(inside * 3.5) if problem.mode == "training" else inside)


def step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The chunks of one group."""
    return decayed_chunks(state, q, k * size, v, decay_tiles(split_chunks(log_decay), state.dtype))


def adjoint(
    slopes: tuple[Tensor, Tensor], state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, size: Tensor
) -> Gradients:
    """Their gradients."""
    tiles = decay_tiles(split_chunks(log_decay), state.dtype)
    dq, dk, dv, before = decayed_gradients(slopes, state, q, k * size, v, tiles)
    return dq, dk * size, dv, before


@variant(
    "ssd/chunked",
    summary="chunks by masked products, the decaying state between them",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=SELF_CAUSAL,
)
def build(problem: Problem) -> Attention:
    """The steps are cast here; the log decays stay in float64."""
    sizes = step_sizes(problem.heads, problem.tokens)
    log_decay = (rates(problem.heads)[:, None] * sizes).repeat(problem.batch, 1).to(problem.device)
    sizes = sizes.repeat(problem.batch, 1).unsqueeze(2)
    sizes = sizes.to(problem.device, accumulator(TORCH_DTYPES[problem.dtype]))
    taken = groups(problem)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return carry(step, taken, *repeated_rows(problem, q, k, v), (log_decay, sizes), adjoint=adjoint).view(q.shape)

    return run
