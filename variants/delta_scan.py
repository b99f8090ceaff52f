"""The delta rule, plain or with a decaying state, token by token and chunk by chunk.

S_i = e^{a_i} (I − β_i κ_i κ_iᵀ) S_{i−1} + β_i κ_i v_iᵀ with κ = k/‖k‖; a = 0 is the plain rule.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from variants.decayed_scan import Tiles, decay_tiles
from variants.problem import Problem
from variants.scan import (
    Gradients,
    carry_bytes,
    chunk_groups,
    segment_bytes,
    solve_unit_lower,
    solve_unit_upper,
    split_chunks,
    unit_and_length,
    unit_gradient,
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
    group = _solved(q, functional.normalize(k, dim=-1), v, beta, log_decay)
    before, changes, after = _walk(group, state)
    reads = group.q @ before
    if group.tiles is not None:
        reads.mul_(group.tiles.reach)
    own = torch.baddbmm(*(x.flatten(0, 1) for x in (reads, _weights(group), changes)))
    return own.view(changes.shape).flatten(1, 2), after


def delta_gradients(
    slopes: tuple[Tensor, Tensor],
    state: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
) -> Gradients:
    """The adjoint of `delta_chunks`: one more system, whose right side is the slope of the changes.

    With y its solution, a change's slope reaches its value as β y and the state as −D κ β y, so that
    neither the solutions for values and keys nor the system need a slope of their own:
    dB = −y uᵀ.
    """
    unit, length = unit_and_length(k)
    group = _solved(q, unit, v, beta, log_decay)
    q, unit, tiles = group.q, group.unit, group.tiles
    before, changes, _ = _walk(group, state)
    grad = split_chunks(slopes[0].contiguous(), CHUNK)
    read = grad if tiles is None else grad * tiles.reach
    own, seen = _weights(group).mT @ grad, q.mT @ read
    later, parts = [slopes[1]], []
    for c in reversed(range(q.shape[1])):
        parts.append(torch.baddbmm(own[:, c], group.ends[:, c], later[-1]))
        kept = seen[:, c].add_(later[-1]) if tiles is None else seen[:, c].addcmul_(later[-1], tiles.whole[:, c])
        later.append(torch.baddbmm(kept, group.keys[:, c].mT, parts[-1], alpha=-1))
    y = solve_unit_upper(group.system, torch.stack(parts[::-1], 1)).mul_(group.beta)
    inner, turned = grad @ changes.mT, (y @ changes.mT).tril_(-1)
    written, removed = changes @ torch.stack(later[-2::-1], 1).mT, y @ before.mT
    if tiles is None:
        inner.tril_()
        dunit = written.sub_(removed)
    else:
        inner.mul_(tiles.inner)
        turned.mul_(tiles.inner)
        dunit = written.mul_(tiles.rest).addcmul_(removed, tiles.reach, value=-1)
    dq = (read @ before.mT).add_(inner @ unit)
    dunit.add_(inner.mT @ q).sub_((turned + turned.mT) @ unit)
    dk = unit_gradient(dunit.flatten(1, 2), unit.flatten(1, 2), length)
    return dq.flatten(1, 2), dk, y.flatten(1, 2), later[-1]


class _Group(NamedTuple):
    """A group of chunks and what is solved for it: (I + B)⁻¹ β [v, D κ], B = the strict lower part of the system."""

    q: Tensor
    unit: Tensor
    beta: Tensor
    system: Tensor
    values: Tensor
    keys: Tensor
    ends: Tensor
    tiles: Tiles | None


def _solved(q: Tensor, unit: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None) -> _Group:
    """The system is β D_ij (κ_i·κ_j)."""
    q, unit, v, beta = (split_chunks(x, CHUNK) for x in (q.contiguous(), unit, v, beta.unsqueeze(2)))
    tiles = None if log_decay is None else decay_tiles(split_chunks(log_decay, CHUNK), unit.dtype)
    scaled = unit * beta
    system = scaled @ unit.mT
    ends = unit
    if tiles is not None:
        system = system.mul_(tiles.inner)
        scaled, ends = scaled.mul_(tiles.reach), unit * tiles.rest
    values, keys = solve_unit_lower(system, torch.cat((v * beta, scaled), -1)).split((v.shape[-1], unit.shape[-1]), -1)
    return _Group(q, unit, beta, system, values, keys, ends, tiles)


def _walk(group: _Group, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The state before each chunk, each chunk's changes, and the state after the last."""
    states, changes = [state], []
    for c in range(group.q.shape[1]):
        changes.append(torch.baddbmm(group.values[:, c], group.keys[:, c], states[-1], alpha=-1))
        kept = states[-1] if group.tiles is None else states[-1] * group.tiles.whole[:, c]
        states.append(torch.baddbmm(kept, group.ends[:, c].mT, changes[-1]))
    return torch.stack(states[:-1], 1), torch.stack(changes, 1), states[-1]


def _weights(group: _Group) -> Tensor:
    """D_ij (q_i·κ_j) for j ≤ i."""
    weights = group.q @ group.unit.mT
    return weights.tril_() if group.tiles is None else weights.mul_(group.tiles.inner)


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
