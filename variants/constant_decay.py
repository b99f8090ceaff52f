"""A scan whose memory of a key fades by a factor that is constant for each head."""

from jaxtyping import Float, Float64
from torch import Tensor

from variants.decayed_scan import Tiles, decay_tiles, decayed_chunks, decayed_gradients, decayed_tokens
from variants.dtypes import TORCH_DTYPES
from variants.problem import Problem
from variants.scan import (
    CHUNK,
    Gradients,
    carry,
    carry_bytes,
    chunk_groups,
    repeated_rows,
    segment_bytes,
    token_segments,
)
from variants.tiles import accumulator
from variants.variant import Attention


def chunked(problem: Problem, log_decay: Float64[Tensor, " heads"], scale: float) -> Attention:
    """Σ_{j≤i} scale e^{(i−j) log_decay} (q_i·k_j) v_j by chunks; the fading within a chunk is computed here."""
    groups = chunk_groups(problem.tokens, problem.batch * problem.heads * problem.head_dim)
    wide = accumulator(TORCH_DTYPES[problem.dtype])
    log_decay = log_decay.to(problem.device).repeat(problem.batch)[:, None, None]
    tiles = {}
    for length in {min(CHUNK, group.stop - group.start) for group in groups}:
        inner, reach, rest, whole = decay_tiles(log_decay.expand(-1, 1, length), wide)
        # The scale goes where it costs least: into the constant tiles, once.
        tiles[length] = Tiles(inner * scale, reach * scale, rest, whole)

    def step(state: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return decayed_chunks(state, q, k, v, tiles[min(CHUNK, q.shape[1])])

    def adjoint(slopes: tuple[Tensor, Tensor], state: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Gradients:
        return decayed_gradients(slopes, state, q, k, v, tiles[min(CHUNK, q.shape[1])])

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return carry(step, groups, *repeated_rows(problem, q, k, v), adjoint=adjoint).view(q.shape)

    return run


def recurrent(problem: Problem, log_decay: Float64[Tensor, " heads"], scale: float) -> Attention:
    """The same token by token."""
    segments = token_segments(problem.tokens)
    log_decay = log_decay.to(problem.device).repeat(problem.batch)[:, None, None].expand(-1, problem.tokens, -1)

    def step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor]:
        return decayed_tokens(state, q * scale, k, v, log_decay)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return carry(step, segments, *repeated_rows(problem, q, k, v), (log_decay,)).view(q.shape)

    return run


def chunked_bytes(problem: Problem) -> int:
    """The fading of one chunk, the states before the groups, and one group's products."""
    size = problem.head_dim
    groups = chunk_groups(problem.tokens, problem.batch * problem.heads * size)
    tokens = groups[0].stop if groups else 0
    own = tokens * (4 * size + 2 * CHUNK) + 3 * (tokens // CHUNK + 2) * size * size
    fading = 2 * problem.batch * problem.heads * CHUNK * CHUNK * 8
    return fading + carry_bytes(problem, len(groups), size, size, own)


def recurrent_bytes(problem: Problem) -> int:
    """The state, and the rows of a segment; in training every state of a segment."""
    return segment_bytes(problem, problem.head_dim, problem.head_dim)


def chunk_flops(problem: Problem) -> int:
    """The products within each chunk, which the formula does not ask for; in training those of all passes."""
    inside = 4 * problem.batch * problem.heads * problem.head_dim * problem.tokens * CHUNK
    return round(inside * 3.5) if problem.mode == "training" else inside
