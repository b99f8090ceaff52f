"""Near keys in one fused call, the segments of all levels in another, merged by their log-sum-exps."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.dtypes import TORCH_DTYPES
from variants.problem import Problem
from variants.segment_levels import Levels
from variants.tiles import (
    CACHE_ELEMENTS,
    SCRATCH_BYTES,
    Band,
    accumulator,
    attend,
    expand_to,
    flatten_heads,
    fused_gradients,
    head_groups,
    heads_at_once,
    hidden_bias,
)
from variants.variant import Attention, variant


@dataclass(frozen=True, slots=True)
class Piece:
    """A band of query blocks with their near keys, and for each block its far segments and the logs of their sizes.

    `far` is (tiles, places) and `far_bias` (tiles, 1, places); without far segments there are no places.
    """

    near: Band
    far: Tensor
    far_bias: Tensor


def plan(problem: Problem, levels: Levels, block: int, rank: int, tiles_at_once: int) -> list[Piece]:
    """Pieces that cover every query row that sees a key: whole inner blocks together, the edges one by one."""
    row = max(0, -problem.offset) if problem.causal else 0
    bands: list[Band] = []
    inner: list[Band] = []
    while row < problem.tokens:
        own = (row + problem.offset) // block
        stop = min(problem.tokens, (own + 1) * block - problem.offset)
        band = _near(problem, block, row, stop, own)
        span = (2 if problem.causal else 3) * block
        (inner if band.rows == block and band.keys == span else bands).append(band)
        row = stop
    if inner:
        bands += replace(inner[0], tiles=len(inner)).parts(tiles_at_once)
    pieces = [_with_far(problem, levels, block, rank, band) for band in bands]
    return [piece for piece in pieces if piece.near.keys or piece.far.shape[1]]


def _near(problem: Problem, block: int, row: int, stop: int, own: int) -> Band:
    """The band of one block of queries, or a part of one."""
    start = min(problem.kv_tokens, max(0, own - 1) * block)
    end = min(problem.kv_tokens, stop + problem.offset if problem.causal else (own + 2) * block)
    bias = None
    if problem.causal:
        position = torch.arange(row, stop, device=problem.device)[:, None] + problem.offset
        bias = hidden_bias(
            torch.arange(start, end, device=problem.device)[None, :] > position, TORCH_DTYPES[problem.dtype]
        )
    return Band(row, stop - row, 1, start, max(0, end - start), bias)


def _with_far(problem: Problem, levels: Levels, block: int, rank: int, band: Band) -> Piece:
    own = (torch.arange(band.tiles, device=problem.device) * block + band.first_row + problem.offset) // block
    if not levels.counts:
        return Piece(band, own[:, None][:, :0], torch.empty(0))
    far, bias = levels.far(problem, block, rank, own)
    # Not in the half types: their rounding of log g would be the largest error of all.
    return Piece(band, far, bias.unsqueeze(1).to(accumulator(TORCH_DTYPES[problem.dtype])))


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, forth: list[Piece], back: list[Piece] | None, levels: Levels
    ) -> Tensor:
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        lse = None if back is None else q.new_full(q.shape[:3], -torch.inf, dtype=accumulator(q.dtype))
        fq, fk, fv, fo = (flatten_heads(x) for x in (q, k, v, out))
        for rows, kv in head_groups(q, k):
            hq = fq[rows]
            keys = expand_to(fk[kv], hq), expand_to(fv[kv], hq)
            means = levels.means(fk[kv]), levels.means(fv[kv])
            lines = None if lse is None else flatten_heads(lse.unsqueeze(-1))[rows]
            for piece in forth:
                _attend_piece(piece, hq, keys, means, fo[rows], lines)
        if lse is not None:
            ctx.save_for_backward(q, k, v, out, lse)
            ctx.plan = back, levels  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        pieces, levels = ctx.plan  # type: ignore[attr-defined]  # set in forward
        wide = accumulator(q.dtype)
        dq, dk, dv = (torch.zeros(x.shape, dtype=wide, device=q.device) for x in (q, k, v))
        fq, fk, fv, fg, fo, fl = (flatten_heads(x) for x in (q, k, v, grad, out, lse.unsqueeze(-1)))
        fdq, fdk, fdv = (flatten_heads(x) for x in (dq, dk, dv))
        for rows, kv in head_groups(q, k):
            hq = fq[rows]
            keys = expand_to(fk[kv], hq), expand_to(fv[kv], hq)
            means = levels.means(fk[kv]), levels.means(fv[kv])
            sums = tuple(torch.zeros(x.shape, dtype=wide, device=q.device) for x in means)
            inputs = hq, fg[rows], fl[rows], fo[rows]
            for piece in pieces:
                if piece.near.keys:
                    _near_gradients(piece.near, inputs, keys, fdq[rows], fdk[kv], fdv[kv])
                if piece.far.shape[1]:
                    _far_gradients(piece, inputs, means, fdq[rows], sums)
            levels.add_gradient(fdk[kv], sums[0])
            levels.add_gradient(fdv[kv], sums[1])
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _attend_piece(
    piece: Piece, q: Tensor, keys: tuple[Tensor, ...], means: tuple[Tensor, ...], out: Tensor, lines: Tensor | None
) -> None:
    """Both parts of one piece, merged into its rows of `out`; the joint log-sum-exp into `lines`."""
    band = piece.near
    queries, target = band.query_tiles(q), band.query_tiles(out)
    parts = []
    if band.keys:
        near_k, near_v = (band.key_tiles(x) for x in keys)
        parts.append(attend(queries, near_k, near_v, band.bias))
    if piece.far.shape[1]:
        far_k, far_v = (gather(x, piece.far, q.shape[0]) for x in means)
        parts.append(attend(queries, far_k, far_v, piece.far_bias))
    (tile, lse), *rest = parts
    if not rest:
        target.copy_(tile)
    else:
        far_tile, far_lse = rest[0]
        share = torch.sigmoid(lse - far_lse).unsqueeze(-1).to(tile.dtype)
        torch.lerp(far_tile, tile, share, out=target)
        lse = torch.logaddexp(lse, far_lse)
    if lines is not None:
        band.query_tiles(lines).copy_(lse.unsqueeze(-1))


def gather(
    x: Float[Tensor, "kv_rows segments dim"], far: Int64[Tensor, "tiles places"], heads: int
) -> Float[Tensor, "heads tiles places dim"]:
    """The means that each tile sees, shared by grouped queries without a copy."""
    tiles: Tensor = x.index_select(1, far.flatten()).unflatten(1, far.shape)
    return tiles.expand(heads, -1, -1, -1)


def _near_gradients(
    band: Band, inputs: tuple[Tensor, ...], keys: tuple[Tensor, ...], dq: Tensor, dk: Tensor, dv: Tensor
) -> None:
    q, grad, lse, out = (band.query_tiles(x) for x in inputs)
    k, v = (band.key_tiles(x) for x in keys)
    tq, tk, tv = fused_gradients(q, k, v, band.bias, grad, lse.squeeze(-1), out)
    band.query_tiles(dq).add_(tq)
    band.add_to_keys(dk, _shared(tk, dk))
    band.add_to_keys(dv, _shared(tv, dv))


def _far_gradients(
    piece: Piece, inputs: tuple[Tensor, ...], means: tuple[Tensor, ...], dq: Tensor, sums: tuple[Tensor, ...]
) -> None:
    q, grad, lse, out = (piece.near.query_tiles(x) for x in inputs)
    k, v = (gather(x, piece.far, q.shape[0]) for x in means)
    tq, *parts = fused_gradients(q, k, v, piece.far_bias, grad, lse.squeeze(-1), out)
    piece.near.query_tiles(dq).add_(tq)
    for total, part in zip(sums, parts, strict=True):
        total.index_add_(1, piece.far.flatten(), _shared(part, total).flatten(1, 2))


def _shared(gradient: Tensor, like: Tensor) -> Tensor:
    """Summed over the grouped queries of one key-value head, where there are several."""
    return gradient if gradient.shape[0] == like.shape[0] else gradient.sum(0, keepdim=True)


def places(problem: Problem, block: int, rank: int) -> int:
    """Far segments of one block of queries, at most."""
    levels = max(0, (max(problem.kv_tokens, problem.tokens) // block).bit_length() - 1)
    return levels * rank * (2 if problem.causal else 3)


def forward_tiles(problem: Problem, block: int) -> int:
    """Blocks of queries of one forward step: their rows fit the cache."""
    return max(1, CACHE_ELEMENTS // (block * problem.head_dim))


def backward_tiles(block: int) -> int:
    """Blocks of queries of one backward step: their keys' gradients about fit the cache."""
    return max(1, 2 * CACHE_ELEMENTS // (3 * block * block))


def workspace_bytes(problem: Problem, *, block: int, rank: int) -> int:
    """The far segments and their biases, the means of a step's heads, and a step's outputs; in training scores."""
    wide, dim = max(4, problem.element_bytes), problem.head_dim
    heads, far = heads_at_once(problem), places(problem, block, rank)
    blocks = problem.tokens // block + 2
    held = blocks * far * (8 + wide)
    means = 4 * heads * (2 * problem.kv_tokens // max(1, block // rank) + 64) * dim * wide if far else 0
    tiles = min(blocks, forward_tiles(problem, block))
    rows = min(problem.tokens, tiles * block)
    step = heads * wide * ((dim + 2) * (2 * rows + 2 * tiles * far))
    mask = 0
    if problem.causal:
        mask = 3 * min(problem.tokens, block) * min(problem.kv_tokens, 2 * block) * problem.element_bytes
    if problem.mode != "training":
        return held + means + step + mask + SCRATCH_BYTES
    tiles = min(blocks, backward_tiles(block))
    rows, keys = min(problem.tokens, tiles * block), max(min(3 * block, problem.kv_tokens), far)
    tile = heads * wide * (rows * (2 * keys + 4 * dim) + 4 * tiles * keys * dim)
    kept = wide * problem.batch * problem.heads * problem.tokens
    widened = problem.input_output_bytes // 2 * wide // problem.element_bytes if problem.element_bytes < wide else 0
    return 2 * held + 2 * means + 2 * mask + kept + widened + max(step, tile) + SCRATCH_BYTES


def executed_flops(problem: Problem, *, block: int, rank: int) -> int:
    """Every near block in full and every place of a far segment, hidden or not."""
    keys = min(problem.kv_tokens, (2 if problem.causal else 3) * block) + places(problem, block, rank)
    forward = 4 * problem.batch * problem.heads * problem.head_dim * problem.tokens * keys
    return round(forward * 3.5) if problem.mode == "training" else forward


@variant(
    "hierarchical_low_rank/merged",
    summary="two fused attention calls, near keys and the segments of all levels, merged by log-sum-exp",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
)
def build(problem: Problem, *, block: int, rank: int) -> Attention:
    """Blocks, masks and far segments are laid out here."""
    levels = Levels.of(problem, block, rank)
    forth = plan(problem, levels, block, rank, forward_tiles(problem, block))
    training = problem.mode == "training"
    back = plan(problem, levels, block, rank, backward_tiles(block)) if training else None

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        out: Tensor = _Merged.apply(q, k, v, forth, back, levels)  # type: ignore[no-untyped-call]  # torch types no apply
        return out

    return run
