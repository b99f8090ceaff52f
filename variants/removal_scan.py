"""RWKV-7's recurrence, token by token and chunk by chunk.

S_i = (diag(w_i) − b_i κ_iᵀ) S_{i−1} + k̃_i v_iᵀ with b = a⊙κ: like a delta rule with decaying channels.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from variants.dtypes import TORCH_DTYPES
from variants.gated_scan import gated_gradients, gated_products, running_sums
from variants.powers import exp, exp_
from variants.problem import Problem
from variants.rwkv7 import key_scales, learning_rates, log_decays
from variants.scan import (
    CHUNK,
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
from variants.tiles import accumulator


class Gates(NamedTuple):
    """The drawn parts, in at least float32."""

    log_decay: Float[Tensor, "rows tokens dim"]
    rate: Float[Tensor, "rows tokens dim"]
    removal: Float[Tensor, "rows tokens dim"]
    mixing: Float[Tensor, "rows tokens dim"]


def gates(problem: Problem) -> Gates:
    """The drawn parts of a problem, on its device; those without a position repeat without a copy."""
    size = problem.heads, problem.tokens, problem.head_dim
    wide = accumulator(TORCH_DTYPES[problem.dtype])
    by_token = (draw(*size).repeat(problem.batch, 1, 1) for draw in (log_decays, learning_rates))
    by_channel = (
        x.repeat(problem.batch, 1).unsqueeze(1).to(problem.device, wide).expand(-1, problem.tokens, -1)
        for x in key_scales(problem.heads, problem.head_dim)
    )
    return Gates(*(x.to(problem.device, wide) for x in by_token), *by_channel)


def removal_and_replacement(k: Tensor, rate: Tensor, removal: Tensor, mixing: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """κ, b and k̃."""
    unit = functional.normalize(k * removal, dim=-1)
    return unit, unit * rate, k * ((rate - 1) * mixing + 1)


def removal_tokens(state: Tensor, q: Tensor, k: Tensor, v: Tensor, *drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Token by token."""
    log_decay, *scales = drawn
    unit, taken, key = removal_and_replacement(k, *scales)
    # Removal and replacement are one product of two columns with two rows.
    columns = torch.stack((taken, key), -1).unbind(1)
    kept = log_decay.exp().unsqueeze(3).unbind(1)
    readers, values, queries = (x.unsqueeze(2).unbind(1) for x in (-unit, v, q))
    outs = []
    for column, factor, reader, value, query in zip(columns, kept, readers, values, queries, strict=True):
        state = torch.baddbmm(state * factor, column, torch.cat((reader @ state, value), 1))
        outs.append(query @ state)
    return torch.cat(outs, 1), state


def removal_chunks(state: Tensor, q: Tensor, k: Tensor, v: Tensor, *drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Chunk by chunk: what the tokens of a chunk read before they remove it solves one triangular system.

    With u_i = S_{i−1}ᵀκ_i: u_i = (w…κ_i)ᵀS + Σ_{j<i} (κ_i·k̃_j) v_j − Σ_{j<i} (κ_i·b_j) u_j, the products
    decayed from j to i − 1.
    """
    q, k, v, log_decay, *scales = (split_chunks(x) for x in (q, k, v, *drawn))
    group = _solved(q, v, log_decay, *removal_and_replacement(k, *scales))
    before, reads, after = _walk(group, state)
    tile = (group.seen @ v).sub_(group.late @ reads)
    return tile.add_((q * exp(group.upto)) @ before).flatten(1, 2), after


def removal_gradients(
    slopes: tuple[Tensor, Tensor], state: Tensor, q: Tensor, k: Tensor, v: Tensor, *drawn: Tensor
) -> Gradients:
    """The adjoint of `removal_chunks`: one more system, whose right side is the slope of the reads.

    Its solution y is the slope of the system's own right side, and −y uᵀ that of the system.
    """
    grad, q, k, v, log_decay, rate, removal, mixing = (
        split_chunks(x.contiguous()) for x in (slopes[0], q, k, v, *drawn)
    )
    unit, length = unit_and_length(k * removal)
    replaced = (rate - 1).mul_(mixing).add_(1)
    group = _solved(q, v, log_decay, unit, unit * rate, k * replaced)
    before, reads, _ = _walk(group, state)
    reach, rest = exp(group.upto), exp_(group.upto[..., -1:, :] - group.upto)
    own, seen = group.late.mT @ grad, (q * reach).mT @ grad
    later, parts = [slopes[1]], []
    for c in reversed(range(q.shape[1])):
        parts.append(torch.baddbmm(own[:, c], group.taken[:, c], later[-1], beta=-1, alpha=-1))
        kept = torch.addcmul(seen[:, c], group.whole[:, c], later[-1])
        later.append(torch.baddbmm(kept, group.keys[:, c].mT, parts[-1]))
    y = solve_unit_upper(group.system, torch.stack(parts[::-1], 1))
    behind = torch.stack(later[-2::-1], 1)
    dv = (group.early.mT @ y).add_(group.seen.mT @ grad).add_(group.written @ behind)
    inner = [
        [(y @ reads.mT).neg_().tril_(-1), (y @ v.mT).tril_(-1)],
        [(grad @ reads.mT).neg_().tril_(), (grad @ v.mT).tril_()],
    ]
    queries = [(unit, group.before), (q, group.upto)]
    (dunit, dq), (dtaken, dkey) = gated_gradients(inner, queries, [unit * rate, k * replaced], group.upto)
    dq.addcmul_(reach, grad @ before.mT)
    dtaken.addcmul_(rest, reads @ behind.mT, value=-1)
    dkey.addcmul_(rest, v @ behind.mT)
    dunit.addcmul_(exp(group.before), y @ before.mT).addcmul_(dtaken, rate)
    dk = dkey.mul_(replaced).addcmul_(unit_gradient(dunit, unit, length), removal)
    return dq.flatten(1, 2), dk.flatten(1, 2), dv.flatten(1, 2), later[-1]


class _Group(NamedTuple):
    """A group of chunks: its products, and (I + B)⁻¹ [what is read of v, what is read of the state], B below `system`.

    `before` and `upto` are the running sums of log decays, without and with a token's own.
    """

    before: Tensor
    upto: Tensor
    system: Tensor
    early: Tensor
    late: Tensor
    seen: Tensor
    values: Tensor
    keys: Tensor
    taken: Tensor
    written: Tensor
    steps: Tensor
    whole: Tensor


def _solved(q: Tensor, v: Tensor, log_decay: Tensor, unit: Tensor, taken: Tensor, key: Tensor) -> _Group:
    """`taken` and `written` are b and k̃ decayed to the chunk's end, `steps` what k̃ writes."""
    upto = running_sums(log_decay)
    before = upto - log_decay
    (system, early), (late, seen) = gated_products([(unit, before), (q, upto)], [taken, key], upto)
    early = early.tril_(-1)
    solved = solve_unit_lower(system, torch.cat((early @ v, unit * exp(before)), -1))
    values, keys = solved.split((v.shape[-1], unit.shape[-1]), -1)
    end = upto[..., -1:, :]
    rest = exp_(end - upto)
    written = key * rest
    steps, whole = written.mT @ v, end.mT.exp()
    return _Group(
        before, upto, system, early, late.tril_(), seen.tril_(), values, keys, taken * rest, written, steps, whole
    )


def _walk(group: _Group, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The state before each chunk, what the tokens of each read, and the state after the last."""
    states, reads = [state], []
    for c in range(group.upto.shape[1]):
        reads.append(torch.baddbmm(group.values[:, c], group.keys[:, c], states[-1]))
        kept = torch.addcmul(group.steps[:, c], group.whole[:, c], states[-1])
        states.append(torch.baddbmm(kept, group.taken[:, c].mT, reads[-1], alpha=-1))
    return torch.stack(states[:-1], 1), torch.stack(reads, 1), states[-1]


def groups(problem: Problem) -> list[slice]:
    """The chunks that the chunked form takes together."""
    return chunk_groups(problem.tokens, problem.batch * problem.heads * max(problem.head_dim, CHUNK))


def gate_bytes(problem: Problem) -> int:
    """Decays and rates of each channel at each position."""
    wide = max(4, problem.element_bytes)
    return 2 * problem.batch * problem.heads * (problem.tokens + 1) * problem.head_dim * wide


def tokens_bytes(problem: Problem) -> int:
    """Memory of the recurrent form: gates, state and the rows of a segment; in training every state of one."""
    size = problem.head_dim
    return gate_bytes(problem) + segment_bytes(problem, size, size)


def chunks_bytes(problem: Problem) -> int:
    """Memory of the chunked form: gates, and rows, products, systems and states of a group of chunks."""
    size = problem.head_dim
    tokens = groups(problem)[0].stop if problem.tokens else 0
    own = tokens * (18 * size + 8 * CHUNK) + 4 * (tokens // CHUNK + 2) * size * size
    return gate_bytes(problem) + carry_bytes(problem, len(groups(problem)), size, size, own)
