"""Exact attention of tiles whose queries and keys lie anywhere: each query in one tile, gathered by index.

For masks that are local in more than one dimension, where a tile is no range of consecutive tokens.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.problem import Problem
from variants.tiles import (
    CACHE_ELEMENTS,
    SCRATCH_BYTES,
    accumulator,
    attend,
    attend_gradients,
    expand_to,
    flatten_heads,
    head_groups,
    heads_at_once,
    row_delta,
)


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles of one shape and one mask: which queries and which keys each holds, and the mask as a bias."""

    rows: Int64[Tensor, "tiles rows"]
    keys: Int64[Tensor, "tiles keys"]
    bias: Float[Tensor, "rows keys"] | None

    def parts(self, tiles: int) -> list["Tiles"]:
        """The same tiles, at most that many at once."""
        pieces = zip(self.rows.split(tiles), self.keys.split(tiles), strict=True)
        return [Tiles(rows, keys, self.bias) for rows, keys in pieces]

    def elements(self, dim: int) -> int:
        """Elements of a tile's queries, keys, values and scores."""
        rows, keys = self.rows.shape[1], self.keys.shape[1]
        return dim * (2 * rows + 2 * keys) + rows * keys


def split(groups: list[Tiles], problem: Problem) -> list[Tiles]:
    """Pieces that fit the cache, all heads of a step together."""
    heads = max(1, heads_at_once(problem))
    return [
        part
        for group in groups
        for part in group.parts(max(1, 4 * CACHE_ELEMENTS // (heads * max(1, group.elements(problem.head_dim)))))
    ]


def attention(
    q: Float[Tensor, "batch heads tokens head_dim"],
    k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    groups: list[Tiles],
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Softmax of each query over the keys of its tile that the bias lets through: at least one."""
    out: Tensor = _Gathered.apply(q, k, v, groups)  # type: ignore[no-untyped-call]  # torch types no apply
    return out


def take(x: Float[Tensor, "heads tokens dim"], index: Int64[Tensor, "tiles rows"]) -> Tensor:
    """The indexed rows of every head."""
    taken: Tensor = x.index_select(1, index.flatten()).unflatten(1, tuple(index.shape))
    return taken


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, groups: list[Tiles]) -> Tensor:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = q.new_empty(q.shape[:3], dtype=accumulator(q.dtype))
        fq, fk, fv, fo, fl = (flatten_heads(x) for x in (q, k, v, out, lse.unsqueeze(-1)))
        for rows, kv in head_groups(q, k):
            for tiles in groups:
                own = take(fq[rows], tiles.rows)
                keys, values = (expand(take(x[kv], tiles.keys), own) for x in (fk, fv))
                tile, line = attend(own, keys, values, tiles.bias)
                fo[rows].index_copy_(1, tiles.rows.flatten(), tile.flatten(1, 2))
                fl[rows].index_copy_(1, tiles.rows.flatten(), line.flatten(1, 2).unsqueeze(-1))
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.groups = groups  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        dq, dk, dv = (torch.zeros(x.shape, dtype=lse.dtype, device=q.device) for x in (q, k, v))
        fq, fk, fv, fg, fo, fl = (flatten_heads(x) for x in (q, k, v, grad, out, lse.unsqueeze(-1)))
        fdq, fdk, fdv = (flatten_heads(x) for x in (dq, dk, dv))
        for rows, kv in head_groups(q, k):
            delta = row_delta(fg[rows], fo[rows]).unsqueeze(-1)
            for tiles in ctx.groups:  # type: ignore[attr-defined]  # set in forward
                own, slope, line, inner = (take(x, tiles.rows) for x in (fq[rows], fg[rows], fl[rows], delta))
                keys, values = (expand(take(x[kv], tiles.keys), own) for x in (fk, fv))
                tq, tk, tv = attend_gradients(own, keys, values, tiles.bias, slope, line.squeeze(-1), inner.squeeze(-1))
                fdq[rows].index_copy_(1, tiles.rows.flatten(), tq.flatten(1, 2))
                if tk.shape[0] != fdk[kv].shape[0]:  # grouped queries share their keys
                    tk, tv = tk.sum(0, keepdim=True), tv.sum(0, keepdim=True)
                fdk[kv].index_add_(1, tiles.keys.flatten(), tk.flatten(1, 2))
                fdv[kv].index_add_(1, tiles.keys.flatten(), tv.flatten(1, 2))
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None


def expand(x: Float[Tensor, "kv_rows tiles keys dim"], like: Float[Tensor, "rows tiles _rows dim"]) -> Tensor:
    """Keys of one key-value head for each of its query heads, without a copy."""
    expanded: Tensor = expand_to(x.flatten(1, 2), like.flatten(1, 2)).unflatten(1, x.shape[1:3])
    return expanded


def held_bytes(groups: list[Tiles]) -> int:
    """Bytes of the indices and biases; pieces share them."""
    tensors = [x for group in groups for x in (group.rows, group.keys, group.bias) if x is not None]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def workspace_bytes(problem: Problem, groups: list[Tiles], pieces: list[Tiles]) -> int:
    """Indices, biases and the log-sum-exp; of the largest piece what is gathered; in training wide gradients."""
    wide = max(4, problem.element_bytes)
    heads, dim = heads_at_once(problem), problem.head_dim
    lse = wide * problem.batch * problem.heads * problem.tokens
    held = held_bytes(groups) + lse + SCRATCH_BYTES
    sizes = [(len(piece.rows), piece.rows.shape[1], piece.keys.shape[1]) for piece in pieces]
    gathered = max((n * dim * (2 * rows + 2 * keys) for n, rows, keys in sizes), default=0)
    packed = 2 * dim * max((n * (keys + 64) for n, rows, keys in sizes if min(rows, keys) >= 64), default=0)
    forward = heads * problem.element_bytes * (gathered + (packed if problem.element_bytes == 2 else 0))
    if problem.mode != "training":
        return held + forward
    step = max((n * (2 * rows * keys + dim * (4 * rows + 5 * keys)) for n, rows, keys in sizes), default=0)
    widened = problem.input_output_bytes // 2 // problem.element_bytes * wide if problem.element_bytes < wide else 0
    return held + widened + max(forward, heads * wide * (step + problem.tokens))


def executed_flops(problem: Problem, groups: list[Tiles]) -> int:
    """Every pair of every tile, the hidden ones included."""
    pairs = sum(group.rows.numel() * group.keys.shape[1] for group in groups)
    forward = 4 * problem.batch * problem.heads * problem.head_dim * pairs
    return round(forward * 3.5) if problem.mode == "training" else forward
