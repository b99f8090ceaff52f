"""The delta rule, plain or with a decaying state, token by token and chunk by chunk.

S_i = e^{a_i} (I − β_i κ_i κ_iᵀ) S_{i−1} + β_i κ_i v_iᵀ with κ = k/‖k‖; a = 0 is the plain rule.
"""

import torch
from torch import Tensor
from torch.nn import functional

from variants.problem import Problem
from variants.scan import (
    Tiles,
    carry_bytes,
    chunk_groups,
    decay_tiles,
    segment_bytes,
    solve_unit_lower,
    split_chunks,
)

CHUNK = 32
"""Half of what the other scans take: a chunk's system costs more than its products."""


def delta_tokens(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Token by token: `beta` and `log_decay` are (rows, tokens)."""
    unit = functional.normalize(k, dim=-1)
    columns, values = unit.unsqueeze(3).unbind(1), (v * beta[..., None]).unsqueeze(2).unbind(1)
    readers, queries = (unit * beta[..., None]).unsqueeze(2).unbind(1), q.unsqueeze(2).unbind(1)
    kept = None if log_decay is None else log_decay.exp().to(state.dtype)[:, :, None, None].unbind(1)
    outs = []
    for t, column in enumerate(columns):
        if kept is not None:
            state = state * kept[t]
        state = torch.addcmul(state, column, values[t] - readers[t] @ state)
        outs.append(queries[t] @ state)
    return torch.cat(outs, 1), state


def delta_chunks(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Chunk by chunk: the changes of a chunk solve one triangular system (arXiv:2406.06484, section 3.2).

    With u_i what token i adds along κ_i: u_i = β_i (v_i − D_i S κ_i − Σ_{j<i} D_ij (κ_i·κ_j) u_j).
    The system is solved for the values and for the keys, of all chunks at once; what depends on
    the state is then one product for each chunk.
    """
    rows = q.contiguous(), functional.normalize(k, dim=-1), v, beta.unsqueeze(2)
    q, unit, v, beta = (split_chunks(x, CHUNK) for x in rows)
    tiles = None if log_decay is None else decay_tiles(split_chunks(log_decay, CHUNK), state.dtype)
    values, keys = _solved(unit, v, beta, tiles)
    ends = unit if tiles is None else unit * tiles.rest
    states, changes = [state], []
    for c in range(q.shape[1]):
        changes.append(torch.baddbmm(values[:, c], keys[:, c], states[-1], alpha=-1))
        kept = states[-1] if tiles is None else states[-1] * tiles.whole[:, c]
        states.append(torch.baddbmm(kept, ends[:, c].mT, changes[-1]))
    weights = q @ unit.mT
    weights = weights.tril_() if tiles is None else weights.mul_(tiles.inner)
    reads = q @ torch.stack(states[:-1], 1)
    if tiles is not None:
        reads = reads * tiles.reach
    own = torch.baddbmm(*(x.flatten(0, 1) for x in (reads, weights, torch.stack(changes, 1))))
    return own.view(*q.shape[:3], v.shape[-1]).flatten(1, 2), states[-1]


def _solved(unit: Tensor, v: Tensor, beta: Tensor, tiles: Tiles | None) -> tuple[Tensor, Tensor]:
    """(I + B)⁻¹ β [v, D κ] with B = the strict lower part of β D_ij (κ_i·κ_j)."""
    scaled = unit * beta
    system = scaled @ unit.mT
    if tiles is not None:
        system = system.mul_(tiles.inner)
        scaled = scaled * tiles.reach
    solved = solve_unit_lower(system, torch.cat((v * beta, scaled), -1))
    return solved[..., : v.shape[-1]], solved[..., v.shape[-1] :]


def groups(problem: Problem) -> list[slice]:
    """The chunks that the chunked form takes together."""
    return chunk_groups(problem.tokens, problem.batch * problem.heads * max(problem.head_dim, CHUNK), CHUNK)


def tokens_bytes(problem: Problem) -> int:
    """Memory of the recurrent form: the rows of a segment; in training every state of one."""
    return segment_bytes(problem, problem.head_dim, problem.head_dim) + gate_bytes(problem)


def chunks_bytes(problem: Problem) -> int:
    """Memory of the chunked form: rows, systems and states of a group of chunks."""
    size = problem.head_dim
    tokens = groups(problem)[0].stop if problem.tokens else 0
    own = tokens * (10 * size + 3 * CHUNK) + 3 * (tokens // CHUNK + 2) * size * size
    return carry_bytes(problem, len(groups(problem)), size, size, own) + gate_bytes(problem)


def gate_bytes(problem: Problem) -> int:
    """Rate and log decay of each head and position, and a copy of each."""
    return 4 * problem.batch * problem.heads * problem.tokens * 8
