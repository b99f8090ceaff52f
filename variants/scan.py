"""Chunkwise recurrences: a state carried from one group of chunks to the next.

A step takes the state before a group and the group's rows and returns their outputs and the state
after them, in plain differentiable operations. Rows are (batch * heads, tokens, dim).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from variants.powers import exp_
from variants.problem import Problem
from variants.requirement import Limit
from variants.tiles import CACHE_ELEMENTS, SCRATCH_BYTES, accumulator, flatten_heads

CHUNK = 64
SEGMENT = 64
"""Tokens of a recurrent form between two kept states."""

Step = Callable[..., tuple[Tensor, Tensor]]
"""`step(state, q, k, v, *gates)`: the rows' outputs, and the state after them."""

Gradients = tuple[Tensor, Tensor, Tensor, Tensor]
"""Those of q, k, v and of the state before them."""

Adjoint = Callable[..., Gradients]
"""`adjoint((grad, after), state, q, k, v, *gates)`, from the gradients of the outputs and of the state after them."""

SELF_CAUSAL = (
    Limit(lambda problem: problem.causal, "causal only"),
    Limit(lambda problem: problem.tokens == problem.kv_tokens, "needs tokens = kv_tokens"),
)
"""A recurrence that reads its state where it has just written to it."""


class _Carry(torch.autograd.Function):
    """Keeps the state before each group; the backward pass recomputes one group at a time."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        step: Step,
        adjoint: Adjoint,
        groups: Sequence[slice],
        state: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *gates: Tensor,
    ) -> Tensor:
        out = torch.empty(*q.shape[:2], v.shape[2], dtype=v.dtype, device=v.device)
        wide = state.dtype
        before = []
        training = any(ctx.needs_input_grad)  # type: ignore[attr-defined]  # set by apply
        for rows in groups:
            if training:
                before.append(state)
            parts = (x[:, rows].to(wide) for x in (q, k, v))
            out[:, rows], state = step(state, *parts, *(gate[:, rows] for gate in gates))
        if training:
            ctx.save_for_backward(q, k, v, *gates, *before)
            ctx.plan = adjoint, groups  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        adjoint, groups = ctx.plan  # type: ignore[attr-defined]  # set in forward
        q, k, v, *kept = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        gates, before = kept[: len(kept) - len(groups)], kept[len(kept) - len(groups) :]
        gradients = [torch.empty_like(x) for x in (q, k, v)]
        after = torch.zeros_like(before[-1]) if before else None
        for rows, start in zip(reversed(groups), reversed(before), strict=True):
            inputs = (x[:, rows].to(start.dtype) for x in (q, k, v))
            own = (gate[:, rows] for gate in gates)
            *parts, after = adjoint((grad[:, rows].to(start.dtype), after), start, *inputs, *own)
            for whole, part in zip(gradients, parts, strict=True):
                whole[:, rows] = part
        return None, None, None, None, *gradients, *(None for _ in gates)


def by_graph(step: Step) -> Adjoint:
    """The adjoint of a step from the graph of its operations."""

    def adjoint(
        slopes: tuple[Tensor, Tensor], state: Tensor, q: Tensor, k: Tensor, v: Tensor, *gates: Tensor
    ) -> Gradients:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (q, k, v, state)]
            outputs = step(leaves[3], *leaves[:3], *gates)
        dq, dk, dv, before = torch.autograd.grad(outputs, leaves, slopes)
        return dq, dk, dv, before

    return adjoint


def carry(
    step: Step,
    groups: Sequence[slice],
    q: Float[Tensor, "rows tokens key_dim"],
    k: Float[Tensor, "rows tokens key_dim"],
    v: Float[Tensor, "rows tokens value_dim"],
    gates: Sequence[Tensor] = (),
    state_size: tuple[int, int] | None = None,
    adjoint: Adjoint | None = None,
) -> Float[Tensor, "rows tokens value_dim"]:
    """The outputs of all groups, from a state of zeros in at least float32: (key_dim, value_dim) unless it is given.

    `gates` have the tokens on axis 1 and take no gradient. Without an `adjoint` it is that of the step's graph.
    """
    size = state_size or (k.shape[2], v.shape[2])
    state = torch.zeros(q.shape[0], *size, dtype=accumulator(v.dtype), device=v.device)
    out: Tensor = _Carry.apply(step, adjoint or by_graph(step), groups, state, q, k, v, *gates)  # type: ignore[no-untyped-call]  # torch types no apply
    return out


def chunk_groups(tokens: int, elements: int, chunk: int = CHUNK) -> list[slice]:
    """As many chunks together as fit the cache, at `elements` for each token; the remainder is one short chunk."""
    step = max(1, CACHE_ELEMENTS // (max(1, elements) * chunk)) * chunk
    whole = tokens // chunk * chunk
    groups = [slice(first, min(first + step, whole)) for first in range(0, whole, step)]
    return [*groups, slice(whole, tokens)] if tokens > whole else groups


def token_segments(tokens: int) -> list[slice]:
    """The stretches of tokens that the backward pass of a recurrent form recomputes at a time."""
    return [slice(first, min(first + SEGMENT, tokens)) for first in range(0, tokens, SEGMENT)]


def split_chunks(x: Float[Tensor, "rows tokens *rest"], chunk: int = CHUNK) -> Float[Tensor, "rows chunks chunk *rest"]:
    """A view of whole chunks, or of one short one."""
    chunks: Tensor = x.unflatten(1, (max(1, x.shape[1] // chunk), -1))
    return chunks


def solve_unit_lower(
    system: Float[Tensor, "*batch size size"], right: Float[Tensor, "*batch size columns"]
) -> Float[Tensor, "*batch size columns"]:
    """(I + B)⁻¹ R with B what lies below the system's diagonal; nothing else of it is read.

    Solved as Xᵀ(I + B)ᵀ = Rᵀ: LAPACK wants columns, and these are there without a copy.
    """
    turned: Tensor = torch.linalg.solve_triangular(system.mT, right.mT, upper=True, left=False, unitriangular=True)
    return turned.mT


def repeated_rows(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Batch and heads as one axis, key-value heads repeated for grouped queries."""
    if problem.group > 1:
        k, v = (x.repeat_interleave(problem.group, 1) for x in (k, v))
    return flatten_heads(q), flatten_heads(k), flatten_heads(v)


def running_states(
    state: Float[Tensor, "rows key_dim value_dim"],
    steps: Float[Tensor, "rows chunks key_dim value_dim"],
    kept: Float[Tensor, "#rows #chunks #key_dim 1"],
    backwards: bool = False,
) -> Float[Tensor, "rows chunks+1 key_dim value_dim"]:
    """The states before, between and after the chunks: S ← kept S + step; `backwards` from the last chunk on."""
    states = [state]
    pairs = list(zip(kept.expand(-1, steps.shape[1], -1, -1).unbind(1), steps.unbind(1), strict=True))
    for factor, step in reversed(pairs) if backwards else pairs:
        states.append(torch.addcmul(step, factor, states[-1]))
    return torch.stack(states[::-1] if backwards else states, 1)


class Tiles(NamedTuple):
    """What the decay leaves: of key j at query i, of the state at i, of key j and of the state at the chunk's end."""

    inner: Float[Tensor, "rows chunks chunk chunk"]
    reach: Float[Tensor, "rows chunks chunk 1"]
    rest: Float[Tensor, "rows chunks chunk 1"]
    whole: Float[Tensor, "rows chunks 1 1"]


def decay_tiles(log_decay: Float64[Tensor, "rows chunks chunk"], wide: torch.dtype) -> Tiles:
    """Sums of log decays over the segments of each chunk.

    Sums and their differences are in float64: in float32 the difference of two long sums has
    lost the digits of a short segment.
    """
    total = log_decay.cumsum(-1)
    inner = exp_((total.unsqueeze(-1) - total.unsqueeze(-2)).to(wide)).tril_()
    end = total[..., -1:]
    reach, rest, whole = (x.exp().to(wide).unsqueeze(-1) for x in (total, end - total, end))
    return Tiles(inner, reach, rest, whole)


def decayed_chunks(state: Tensor, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> tuple[Tensor, Tensor]:
    """o_i = Σ_{j≤i} D_ij (q_i·k_j) v_j: within a chunk by a masked product, between chunks by the state."""
    q, k, v = (split_chunks(x) for x in (q, k, v))
    states = running_states(state, (k * tiles.rest).mT @ v, tiles.whole)
    tile = ((q @ k.mT).mul_(tiles.inner) @ v).addcmul_(tiles.reach, q @ states[:, :-1])
    return tile.flatten(1, 2), states[:, -1]


def decayed_gradients(
    slopes: tuple[Tensor, Tensor], state: Tensor, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles
) -> Gradients:
    """The adjoint of `decayed_chunks`: ten products where the graph of its operations has twelve, and fewer copies."""
    # Dense once, not once for each product.
    q, k, v, grad = (split_chunks(x.contiguous()) for x in (q, k, v, slopes[0]))
    kept, read = k * tiles.rest, grad * tiles.reach
    states = running_states(state, kept.mT @ v, tiles.whole)
    inner = (grad @ v.mT).mul_(tiles.inner)
    dq = (inner @ k).add_(read @ states[:, :-1].mT)
    later = running_states(slopes[1], q.mT @ read, tiles.whole, backwards=True)
    dk = (inner.mT @ q).addcmul_(tiles.rest, v @ later[:, 1:].mT)
    dv = ((q @ k.mT).mul_(tiles.inner).mT @ grad).add_(kept @ later[:, 1:])
    return dq.flatten(1, 2), dk.flatten(1, 2), dv.flatten(1, 2), later[:, 0]


def decayed_tokens(state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """S ← e^a S + k vᵀ, o = qᵀS: token by token; `log_decay` is (rows, tokens, 1), or one for each key channel."""
    decay = log_decay.exp().to(state.dtype).unsqueeze(3)
    queries, keys, values = q.unsqueeze(2).unbind(1), k.unsqueeze(3).unbind(1), v.unsqueeze(2).unbind(1)
    outs = []
    for query, key, value, kept in zip(queries, keys, values, decay.unbind(1), strict=True):
        state = torch.addcmul(state * kept, key, value)
        outs.append(query @ state)
    return torch.cat(outs, 1), state


def with_ones(v: Float[Tensor, "rows tokens dim"]) -> Float[Tensor, "rows tokens dim+1"]:
    """Values and a column of ones, whose sums are the normaliser."""
    return functional.pad(v, (0, 1), value=1.0)


def normalised(sums: Float[Tensor, "rows tokens dim+1"]) -> Float[Tensor, "rows tokens dim"]:
    """Weighted values over weights; zero where there is no weight."""
    total = sums[..., -1:]
    return sums[..., :-1] / torch.where(total > 0, total, 1.0)


def carry_bytes(problem: Problem, groups: int, key_dim: int, value_dim: int, group_elements: int) -> int:
    """Repeated heads, states before the groups, and one group's own tensors, `group_elements` of them for each head.

    In training a group is run again with a graph, whose gradients are as large as itself.
    """
    wide = max(4, problem.element_bytes)
    rows = problem.batch * problem.heads
    repeated = 2 * rows * problem.kv_tokens * problem.head_dim * problem.element_bytes if problem.group > 1 else 0
    training = problem.mode == "training"
    states = (groups if training else 2) * rows * key_dim * value_dim * wide
    own = rows * group_elements * wide
    return (2 * repeated if training else repeated) + states + (2 * own if training else own) + SCRATCH_BYTES


def segment_bytes(problem: Problem, key_dim: int, value_dim: int) -> int:
    """Memory of a recurrent form: the rows of a segment; in training every state of one."""
    tokens = min(SEGMENT, problem.tokens)
    steps = tokens if problem.mode == "training" else 3
    own = tokens * 4 * (key_dim + value_dim) + steps * key_dim * value_dim
    return carry_bytes(problem, len(token_segments(problem.tokens)), key_dim, value_dim, own)
