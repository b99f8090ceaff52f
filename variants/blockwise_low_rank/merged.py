"""Two fused exact-attention calls, near and far, merged by their log-sum-exps."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.dtypes import TORCH_DTYPES
from variants.problem import Problem
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

HIDDEN = -1e30  # not -inf: a block without far keys must keep a finite log-sum-exp


@dataclass(frozen=True, slots=True)
class Piece:
    """A band of query blocks with their near keys, and the bias of the far segments for each block.

    `far_bias` is (tiles, 1, segments), log g_a where far and HIDDEN elsewhere; None without far keys.
    """

    near: Band
    far_bias: Tensor | None


def plan(problem: Problem, block: int, rank: int, tiles_at_once: int) -> list[Piece]:
    """Pieces that cover every query row that sees a key: whole inner blocks together, the edges one by one."""
    first = max(0, -problem.offset) if problem.causal else 0
    bands: list[Band] = []
    inner: list[Band] = []
    row = first
    while row < problem.tokens:
        own = (row + problem.offset) // block
        stop = min(problem.tokens, (own + 1) * block - problem.offset)
        band = _near(problem, block, row, stop, own)
        span = (2 if problem.causal else 3) * block
        (inner if band.rows == block and band.keys == span else bands).append(band)
        row = stop
    if inner:
        bands += replace(inner[0], tiles=len(inner)).parts(tiles_at_once)
    pieces = [Piece(band, _far_bias(problem, block, rank, band)) for band in bands]
    return [piece for piece in pieces if piece.near.keys > 0 or piece.far_bias is not None]


def _near(problem: Problem, block: int, row: int, stop: int, own: int) -> Band:
    """The band of one block of queries, or a part of one."""
    start = max(0, (own - 1) * block)
    end = min(problem.kv_tokens, stop + problem.offset if problem.causal else (own + 2) * block)
    bias = None
    if problem.causal:
        position = torch.arange(row, stop, device=problem.device)[:, None] + problem.offset
        key = torch.arange(start, end, device=problem.device)[None, :]
        bias = hidden_bias(key > position, TORCH_DTYPES[problem.dtype])
    return Band(row, stop - row, 1, start, max(0, end - start), bias)


def _far_bias(problem: Problem, block: int, rank: int, band: Band) -> Tensor | None:
    counts = segment_counts(problem, block // rank)
    own = (torch.arange(band.tiles, device=problem.device) * block + band.first_row + problem.offset) // block
    home = torch.arange(len(counts), device=problem.device) // rank
    apart = own[:, None] - home[None, :]
    far = apart > 1 if problem.causal else apart.abs() > 1
    if not bool(far.any()):
        return None
    bias = torch.where(far, counts.log()[None, :], HIDDEN)
    # Not in the half types: their rounding of log g would be the largest error of all.
    return bias.unsqueeze(1).to(accumulator(TORCH_DTYPES[problem.dtype]))


def segment_counts(problem: Problem, segment: int) -> Float[Tensor, " segments"]:
    """Tokens of each segment: all alike but for a shorter last one."""
    counts = [segment] * (problem.kv_tokens // segment)
    if problem.kv_tokens % segment:
        counts.append(problem.kv_tokens % segment)
    return torch.tensor(counts, dtype=torch.float64, device=problem.device)


def segment_means(x: Float[Tensor, "heads tokens dim"], segment: int) -> Float[Tensor, "heads segments dim"]:
    """The mean of each segment, of a shorter last one too."""
    whole = x.shape[1] // segment * segment
    means = x[:, :whole].unflatten(1, (-1, segment)).mean(2) if whole else x[:, :0]
    if whole == x.shape[1]:
        return means
    return torch.cat((means, x[:, whole:].mean(1, keepdim=True)), 1)


def add_to_segments(x: Tensor, gradient: Tensor, segment: int) -> None:
    """The adjoint of `segment_means`: each token takes its share of its segment's gradient."""
    whole = x.shape[1] // segment
    x[:, : whole * segment].unflatten(1, (whole, segment)).add_(gradient[:, :whole].unsqueeze(2) / segment)
    rest = x.shape[1] - whole * segment
    if rest:
        x[:, whole * segment :].add_(gradient[:, whole:] / rest)


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, forth: list[Piece], back: list[Piece] | None, segment: int
    ) -> Tensor:
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        lse = None if back is None else q.new_full(q.shape[:3], -torch.inf, dtype=accumulator(q.dtype))
        fq, fk, fv, fo = (flatten_heads(x) for x in (q, k, v, out))
        for rows, kv in head_groups(q, k):
            hq, ho = fq[rows], fo[rows]
            hk, hv = expand_to(fk[kv], hq), expand_to(fv[kv], hq)
            mk, mv = (expand_to(segment_means(x[kv], segment), hq) for x in (fk, fv))
            for piece in forth:
                lines = None if lse is None else flatten_heads(lse.unsqueeze(-1))[rows]
                _attend_piece(piece, (hq, hk, hv), (mk, mv), ho, lines)
        if lse is not None:
            ctx.save_for_backward(q, k, v, out, lse)
            ctx.plan = back, segment  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        pieces, segment = ctx.plan  # type: ignore[attr-defined]  # set in forward
        wide = accumulator(q.dtype)
        dq, dk, dv = (torch.zeros(x.shape, dtype=wide, device=q.device) for x in (q, k, v))
        fq, fk, fv, fg, fo = (flatten_heads(x) for x in (q, k, v, grad, out))
        fdq, fdk, fdv, flse = (flatten_heads(x) for x in (dq, dk, dv, lse.unsqueeze(-1)))
        for rows, kv in head_groups(q, k):
            hq = fq[rows]
            hk, hv = expand_to(fk[kv], hq), expand_to(fv[kv], hq)
            mk, mv = (expand_to(segment_means(x[kv], segment), hq) for x in (fk, fv))
            dmk, dmv = (torch.zeros(fdk[kv].shape[0], *x.shape[1:], dtype=wide, device=q.device) for x in (mk, mv))
            for piece in pieces:
                inputs = (hq, fg[rows], flse[rows], fo[rows])
                if piece.near.keys:
                    _near_gradients(piece.near, inputs, (hk, hv), fdq[rows], fdk[kv], fdv[kv])
                if piece.far_bias is not None:
                    _far_gradients(piece, inputs, (mk, mv), fdq[rows], dmk, dmv)
            add_to_segments(fdk[kv], dmk, segment)
            add_to_segments(fdv[kv], dmv, segment)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _attend_piece(
    piece: Piece,
    near: tuple[Tensor, Tensor, Tensor],
    means: tuple[Tensor, Tensor],
    out: Tensor,
    lines: Tensor | None,
) -> None:
    """Both parts of one piece, merged into its rows of `out`; the joint log-sum-exp into `lines`."""
    band = piece.near
    q, k, v = near
    queries, target = band.query_tiles(q), band.query_tiles(out)
    parts = []
    if band.keys:
        parts.append(attend(queries, band.key_tiles(k), band.key_tiles(v), band.bias))
    if piece.far_bias is not None:
        far_k, far_v = (x.unsqueeze(1).expand(-1, band.tiles, -1, -1) for x in means)
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


def _near_gradients(
    band: Band, inputs: tuple[Tensor, ...], keys: tuple[Tensor, Tensor], dq: Tensor, dk: Tensor, dv: Tensor
) -> None:
    q, grad, lse, out = (band.query_tiles(x) for x in inputs)
    k, v = (band.key_tiles(x) for x in keys)
    tq, tk, tv = fused_gradients(q, k, v, band.bias, grad, lse.squeeze(-1), out)
    band.query_tiles(dq).add_(tq)
    band.add_to_keys(dk, _shared(tk, dk))
    band.add_to_keys(dv, _shared(tv, dv))


def _far_gradients(
    piece: Piece, inputs: tuple[Tensor, ...], means: tuple[Tensor, Tensor], dq: Tensor, dk: Tensor, dv: Tensor
) -> None:
    q, grad, lse, out = (piece.near.query_tiles(x) for x in inputs)
    k, v = (x.unsqueeze(1).expand(-1, piece.near.tiles, -1, -1) for x in means)
    tq, tk, tv = fused_gradients(q, k, v, piece.far_bias, grad, lse.squeeze(-1), out)
    piece.near.query_tiles(dq).add_(tq)
    dk.add_(_shared(tk.sum(1), dk))
    dv.add_(_shared(tv.sum(1), dv))


def _shared(gradient: Tensor, like: Tensor) -> Tensor:
    """Summed over the grouped queries of one key-value head, where there are several."""
    return gradient if gradient.shape[0] == like.shape[0] else gradient.sum(0, keepdim=True)


def backward_tiles(problem: Problem, block: int, rank: int) -> int:
    """How many blocks of one head are taken together in the backward pass: as many as fit the cache."""
    keys = max(3 * block, problem.kv_tokens // max(1, block // rank))
    return max(1, 2 * CACHE_ELEMENTS // (block * keys))


def workspace_bytes(problem: Problem, *, block: int, rank: int) -> int:
    """The far biases, and one step's two outputs; in training wide gradients and a step's scores besides."""
    wide = max(4, problem.element_bytes)
    heads = heads_at_once(problem)
    segments = problem.kv_tokens // (block // rank) + 1
    bias = (problem.tokens // block + 1) * segments * problem.element_bytes
    step = heads * (2 * problem.tokens + 2 * segments) * (problem.head_dim + 1) * wide
    if problem.mode != "training":
        return bias + step + SCRATCH_BYTES
    tiles = backward_tiles(problem, block, rank)
    keys = max(3 * block, segments)
    rows = min(problem.tokens, tiles * block)
    tile = heads * (rows * (2 * keys + 4 * problem.head_dim) + 3 * (rows // block + 1) * keys * problem.head_dim)
    kept = wide * problem.batch * problem.heads * problem.tokens
    widened = problem.input_output_bytes // 2 * wide // problem.element_bytes if problem.element_bytes < wide else 0
    return 2 * bias + kept + widened + max(step, tile * wide) + SCRATCH_BYTES


def executed_flops(problem: Problem, *, block: int, rank: int) -> int:
    """Every near block in full and every segment, hidden or not."""
    keys = min(problem.kv_tokens, (2 if problem.causal else 3) * block) + problem.kv_tokens // (block // rank)
    forward = 4 * problem.batch * problem.heads * problem.head_dim * problem.tokens * keys
    return round(forward * 3.5) if problem.mode == "training" else forward


@variant(
    "blockwise_low_rank/merged",
    summary="two fused attention calls, near and far, merged by log-sum-exp",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
)
def build(problem: Problem, *, block: int, rank: int) -> Attention:
    """Blocks, masks and far biases are laid out here."""
    forth = plan(problem, block, rank, tiles_at_once=max(1, problem.tokens))
    training = problem.mode == "training"
    back = plan(problem, block, rank, backward_tiles(problem, block, rank)) if training else None

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        out: Tensor = _Merged.apply(q, k, v, forth, back, block // rank)  # type: ignore[no-untyped-call]  # torch types no apply
        return out

    return run
