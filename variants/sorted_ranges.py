"""Softmax over ranges of sorted keys: in each of several orders of the keys a query sees the places of one range.

A range lies in a chunk and the one before it, so that all work is tiles of queries over one chunk. A pair
that several orders hold counts once: an order leaves out what one before it has.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from variants.bucket_order import ROWS, Order
from variants.kv_groups import by_group, merge_rows, taken
from variants.problem import Problem
from variants.tiles import (
    CACHE_ELEMENTS,
    SCRATCH_BYTES,
    accumulator,
    attend,
    attend_gradients,
    row_delta,
)

Find = Callable[[Tensor, Tensor], list[Order]]
"""The orders of one key-value head, from its queries (of all heads that share it, one after another) and its keys."""


@dataclass(frozen=True, slots=True)
class Step:
    """Tiles with their keys: `rows` and `filling` (tiles, ROWS), `keys` (tiles, chunk), `bias` (tiles, ROWS, chunk)."""

    rows: Tensor
    filling: Tensor
    keys: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class Reach:
    """An order's places by key, and the middle and half the length of each query's range, as float32.

    A place lies in the range where it is no further from the middle. On a CPU such sums are a few
    times faster than comparisons; they are exact up to 2^23 places.
    """

    places: Tensor
    middle: Tensor
    half: Tensor

    @staticmethod
    def of(order: Order) -> "Reach":
        """Integers and halves, all exact."""
        low, last = order.low.float(), order.high.float() - 1
        return Reach(order.places.float(), (low + last) / 2, (last - low) / 2)


def steps(orders: list[Order], chunk: int, dtype: torch.dtype) -> Iterator[Step]:
    """Every tile of every order over its own chunk and over the one before; no query is twice in one step."""
    at_once = tiles_at_once(chunk)
    reaches = [Reach.of(order) for order in orders]
    for index, order in enumerate(orders):
        for rows, filling, first in (
            (order.rows, order.filling, order.first),
            (order.rows[order.back], order.filling[order.back], order.first[order.back] - chunk),
        ):
            for part in zip(*(x.split(at_once) for x in (rows, filling, first)), strict=True):
                if len(part[0]):
                    yield _step(order, reaches[: index + 1], chunk, dtype, *part)


def _step(
    order: Order, reaches: list[Reach], chunk: int, dtype: torch.dtype, rows: Tensor, filling: Tensor, first: Tensor
) -> Step:
    """The bias hides what is outside the range of the last order, or inside the range of one before it."""
    place = first[:, None] + torch.arange(chunk, device=rows.device)
    keys = taken(order.keys, place.clamp(max=len(order.keys) - 1))
    *earlier, own = reaches
    within = taken(own.half, rows).unsqueeze(2) - _distance(place.float(), own, rows)  # negative where hidden
    for other in earlier:
        outside = _distance(taken(other.places, keys), other, rows).sub_(taken(other.half, rows).unsqueeze(2) + 1)
        torch.minimum(within, outside, out=within)
    bias = functional.threshold(within, -0.25, -torch.inf, inplace=True).clamp_(max=0)
    return Step(rows, filling, keys, bias.to(dtype))


def _distance(places: Tensor, reach: Reach, rows: Tensor) -> Tensor:
    """How far the places of each tile's keys lie from the middle of each query's range."""
    return (places.unsqueeze(1) - taken(reach.middle, rows).unsqueeze(2)).abs_()


def tiles_at_once(chunk: int) -> int:
    """Tiles whose scores fit the cache, one at least."""
    return max(1, CACHE_ELEMENTS // (ROWS * chunk))


class _Sorted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, find: Find, chunk: int, own: Tensor | None
    ) -> Tensor:
        wide, heads = accumulator(q.dtype), k.shape[1]
        fq, fk, fv = (by_group(x, heads).flatten(1, 2) for x in (q, k, v))
        out = torch.zeros_like(fq, memory_format=torch.contiguous_format)
        lse = torch.full(fq.shape[:2], -torch.inf, dtype=wide, device=q.device)
        needed = any(ctx.needs_input_grad)  # type: ignore[attr-defined]  # set before forward is called
        found = []
        for head in range(len(fq)):
            orders = find(fq[head], fk[head])
            total = torch.zeros(fq.shape[1:], dtype=wide, device=q.device)
            for step in steps(orders, chunk, q.dtype):
                _merge(step, fq[head], fk[head], fv[head], total, lse[head])
            out[head] = total
            if own is not None:
                alone, key = _alone(lse[head], own)
                out[head, alone] = fv[head, key]
            if needed:
                found.append(orders)
        if needed:
            ctx.save_for_backward(q, k, v, out, lse)
            ctx.plan = found, chunk, own  # type: ignore[attr-defined]  # the context takes attributes
        return out.view(q.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        found, chunk, own = ctx.plan  # type: ignore[attr-defined]  # set in forward
        fq, fk, fv, fg = (by_group(x, k.shape[1]).flatten(1, 2) for x in (q, k, v, grad))
        dq, dk, dv = (torch.zeros(x.shape, dtype=lse.dtype, device=q.device) for x in (fq, fk, fv))
        for head, orders in enumerate(found):
            delta = row_delta(fg[head], out[head])
            for step in steps(orders, chunk, lse.dtype):
                rows, keys = step.rows, step.keys
                line = lse[head, rows].masked_fill(step.filling, torch.inf)  # the filling's weights are nought
                own_q, own_k, own_v = (taken(x[head], at) for x, at in ((fq, rows), (fk, keys), (fv, keys)))
                slope = taken(fg[head], rows)
                tq, tk, tv = attend_gradients(own_q, own_k, own_v, step.bias, slope, line, delta[rows])
                dq[head].index_add_(0, rows.flatten(), tq.flatten(0, 1))
                dk[head].index_add_(0, keys.flatten(), tk.flatten(0, 1))
                dv[head].index_add_(0, keys.flatten(), tv.flatten(0, 1))
            if own is not None:
                alone, key = _alone(lse[head], own)
                dv[head].index_add_(0, key, fg[head, alone].to(lse.dtype))
        gradients = (x.to(q.dtype).view(like.shape) for x, like in ((dq, q), (dk, k), (dv, v)))
        return *gradients, None, None, None


def _merge(step: Step, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> None:
    """A step's part, merged into one head's `out` and `lse`."""
    part, line = attend(
        taken(q, step.rows)[None], taken(k, step.keys)[None], taken(v, step.keys)[None], step.bias[None]
    )
    hidden = step.bias.amax(-1) == -torch.inf  # the fused kernel's log-sum-exp of nothing is 0
    kept = (~step.filling & ~hidden).flatten().nonzero().flatten()
    merge_rows(out, lse, step.rows.flatten()[kept], taken(part.flatten(0, 2), kept), line.flatten()[kept])


def _alone(lse: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that saw nothing and have an own key, and those keys; `own` is -1 where there is none."""
    alone = ((lse == -torch.inf) & (own >= 0)).nonzero().flatten()
    return alone, own[alone]


def attend_sorted(
    q: Float[Tensor, "batch heads tokens head_dim"],
    k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    find: Find,
    chunk: int,
    own: Int64[Tensor, " rows"] | None = None,
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Softmax over all that the orders let a query see, else the value of its `own` key, else zero."""
    out: Tensor = _Sorted.apply(q, k, v, find, chunk, own)  # type: ignore[no-untyped-call]  # torch types no apply
    return out


def tiles_if_even(problem: Problem, buckets: int, chunk: int) -> int:
    """Tiles over own chunks and over chunks before, of one key-value head and order whose buckets are even."""
    if not problem.kv_tokens:
        return 0
    rows = problem.group * problem.tokens
    each = -(-problem.kv_tokens // buckets)
    chunks = buckets * -(-each // chunk)
    tiles = chunks * max(1, -(-rows // (chunks * ROWS)))
    return tiles + max(0, tiles - tiles // -(-each // chunk))


def sorted_workspace_bytes(problem: Problem, buckets: int, chunk: int, orders: int) -> int:
    """One head's orders and sums and a step; in training every head's orders, wide gradients and a step's scores."""
    wide, size, dim = max(4, problem.element_bytes), problem.element_bytes, problem.head_dim
    rows, keys = problem.group * problem.tokens, problem.kv_tokens
    tiles = -(-rows // ROWS) + min(buckets + keys // chunk, rows)
    order = 12 * keys + 8 * rows + tiles * (9 * ROWS + 9)
    reach = 4 * keys + 8 * rows
    sort = 24 * keys + 64 * rows
    sums = 3 * rows * dim * wide + 24 * rows
    lse = problem.batch * problem.heads * problem.tokens * wide
    step = min(tiles, tiles_at_once(chunk))
    pairs = step * ROWS * chunk
    gathered = step * dim * (2 * ROWS * size + 2 * chunk * size + ROWS * wide)
    if problem.mode != "training":
        return lse + orders * (order + reach) + max(sort, sums + pairs * (size + 8) + gathered) + SCRATCH_BYTES
    every = problem.batch * problem.kv_heads * orders * order
    widened = problem.input_output_bytes // 2 * wide // size if size < wide else 0
    scores = pairs * (3 * wide + 3) + step * dim * wide * (4 * ROWS + 5 * chunk)
    return lse + every + orders * reach + widened + max(sort, sums + gathered, scores) + SCRATCH_BYTES
