"""Chunkwise recurrences: a state carried from one group of chunks to the next.

A step takes the state before a group and the group's rows and returns their outputs and the state
after them, in plain differentiable operations. Rows are (batch * heads, tokens, dim).
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.problem import Problem
from variants.requirement import Limit
from variants.tiles import CACHE_ELEMENTS, SCRATCH_BYTES, accumulator, flatten_heads

CHUNK = 64
LEAST_LENGTH = 1e-12
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


def solve_unit_upper(
    system: Float[Tensor, "*batch size size"], right: Float[Tensor, "*batch size columns"]
) -> Float[Tensor, "*batch size columns"]:
    """(I + Bᵀ)⁻¹ R, of the same B."""
    solved: Tensor = torch.linalg.solve_triangular(system.mT, right, upper=True, unitriangular=True)
    return solved


def unit_and_length(k: Float[Tensor, "*axes dim"]) -> tuple[Float[Tensor, "*axes dim"], Float[Tensor, "*axes 1"]]:
    """What `functional.normalize` gives, and what it divides by."""
    length = k.norm(dim=-1, keepdim=True).clamp_min_(LEAST_LENGTH)
    return k / length, length


def unit_gradient(
    slope: Float[Tensor, "*axes dim"], unit: Float[Tensor, "*axes dim"], length: Float[Tensor, "*axes 1"]
) -> Float[Tensor, "*axes dim"]:
    """The gradient of k, from that of its unit vector: what lies across it, over the length."""
    return torch.addcmul(slope, unit, (unit * slope).sum(-1, keepdim=True), value=-1).div_(length)


def repeated_rows(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Batch and heads as one axis, key-value heads repeated for grouped queries."""
    if problem.group > 1:
        k, v = (x.repeat_interleave(problem.group, 1) for x in (k, v))
    return flatten_heads(q), flatten_heads(k), flatten_heads(v)


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
