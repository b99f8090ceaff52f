"""Tiles of queries by the CPU's fused kernel, which reads each tile's bias from one row of distances.

The bias of a head depends on j - i alone. With the queries of a tile in reverse order, row r
of it is the same row of distances, r further on: an overlapping view, and no mask is ever made.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.alibi import distance_bias
from variants.dtypes import TORCH_DTYPES
from variants.problem import Problem
from variants.sdpa import fused_workspace_bytes
from variants.tiles import accumulator
from variants.variant import Attention, variant

ROWS = 512  # of a causal tile: more waste hidden pairs, fewer cost more calls


@dataclass(frozen=True, slots=True)
class Tile:
    """Some queries, how many keys they see, and their biases (heads, rows, keys), last query first."""

    rows: slice
    keys: int
    bias: Tensor


def plan(problem: Problem) -> list[Tile]:
    """Tiles of the queries that see a key; without a causal mask one tile is all."""
    wide = accumulator(TORCH_DTYPES[problem.dtype])
    ahead = torch.arange(1 - problem.kv_tokens, max(problem.tokens, 1), device=problem.device)
    distances = distance_bias(problem, ahead, wide)
    first = max(0, -problem.offset) if problem.causal else 0
    step = ROWS if problem.causal else max(1, problem.tokens)
    tiles = []
    for start in range(first, problem.tokens if problem.kv_tokens else 0, step):
        stop = min(start + step, problem.tokens)
        keys = stop + problem.offset if problem.causal else problem.kv_tokens
        last = problem.tokens - stop  # where the tile's last query begins in the row of distances
        row = distances[:, last : last + keys + stop - start - 1]
        tiles.append(Tile(slice(start, stop), keys, row.unfold(1, keys, 1)))
    return tiles


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, tiles: list[Tile]) -> Tensor:
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        lse = q.new_empty(q.shape[:3], dtype=accumulator(q.dtype))
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        fk, fv = spread(k, q), spread(v, q)
        for tile in tiles:
            keys = fk[:, :, : tile.keys], fv[:, :, : tile.keys]
            part, line = fused(turned(q, tile), *keys, 0.0, False, attn_mask=bias_of(tile, q))
            out[:, :, tile.rows] = part.flip(2)
            lse[:, :, tile.rows] = line.flip(2)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.tiles = tiles  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        fk, fv = spread(k, q), spread(v, q)
        dq = torch.zeros_like(q, memory_format=torch.contiguous_format)
        dk, dv = (torch.zeros(fk.shape, dtype=lse.dtype) for _ in range(2))
        for tile in ctx.tiles:  # type: ignore[attr-defined]  # set in forward
            rows = [turned(x, tile) for x in (grad, q, out, lse)]
            keys = fk[:, :, : tile.keys], fv[:, :, : tile.keys]
            tq, tk, tv = fused(rows[0], rows[1], *keys, rows[2], rows[3], 0.0, False, attn_mask=bias_of(tile, q))
            dq[:, :, tile.rows] = tq.flip(2)
            dk[:, :, : tile.keys] += tk
            dv[:, :, : tile.keys] += tv
        if k.shape != fk.shape:
            dk, dv = (x.unflatten(1, (k.shape[1], -1)).sum(2) for x in (dk, dv))
        return dq, dk.to(k.dtype), dv.to(v.dtype), None


def turned(x: Tensor, tile: Tile) -> Tensor:
    """The tile's rows in reverse order, dense: the fused kernel reads the last axis as it lies."""
    return x[:, :, tile.rows].flip(2).contiguous()


def spread(x: Tensor, q: Tensor) -> Tensor:
    """Keys or values repeated for grouped queries, their last axis dense."""
    if x.shape[1] != q.shape[1]:
        x = x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)
    return x if x.stride(-1) == 1 else x.contiguous()


def bias_of(tile: Tile, q: Tensor) -> Tensor:
    """The tile's bias for every item of the batch; a view."""
    return tile.bias.expand(q.shape[0], -1, -1, -1)


def workspace_bytes(problem: Problem) -> int:
    """The distances, repeated keys of grouped queries, and a tile's copies; in training wide gradients too."""
    wide = max(4, problem.element_bytes)
    distances = problem.heads * (problem.tokens + problem.kv_tokens) * wide
    rows = min(problem.tokens, ROWS) if problem.causal else problem.tokens
    tile = problem.batch * problem.heads * rows * (problem.head_dim * problem.element_bytes + wide)
    repeated = 2 * problem.key_bytes * problem.group if problem.group > 1 else 0
    kernel = fused_workspace_bytes(problem.with_(causal=False)) + distances + repeated
    if problem.mode != "training":
        return kernel + 3 * tile
    spread_keys = 2 * problem.key_bytes * problem.group
    widened = spread_keys // problem.element_bytes * wide if problem.group > 1 or problem.element_bytes < wide else 0
    copied = spread_keys if problem.causal else 0  # the kernel makes keys dense that are cut off at a tile's last
    return kernel + 5 * tile + spread_keys + copied + widened


def executed_flops(problem: Problem) -> int:
    """The pairs of every tile."""
    step = ROWS if problem.causal else max(1, problem.tokens)
    pairs = 0
    for start in range(max(0, -problem.offset) if problem.causal else 0, problem.tokens, step):
        stop = min(start + step, problem.tokens)
        pairs += (stop - start) * (stop + problem.offset if problem.causal else problem.kv_tokens)
    forward = 4 * problem.batch * problem.heads * problem.head_dim * pairs
    return round(forward * 3.5) if problem.mode == "training" else forward


@variant(
    "alibi/chunked",
    summary="tiles of queries; each reads its bias from one row of distances",
    devices=("cpu",),
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
)
def build(problem: Problem) -> Attention:
    """The distances are laid out here; a tile's bias is a view of them."""
    tiles = plan(problem)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        out: Tensor = _Chunked.apply(q, k, v, tiles)  # type: ignore[no-untyped-call]  # torch types no apply
        return out

    return run
