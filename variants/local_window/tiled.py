"""The window by tiles of queries, each over just the keys that its rows see."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.dtypes import TORCH_DTYPES
from variants.local_window import reach
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

BACKWARD_ROWS = 64
EDGE_ROWS = 256
ALIGNED = 16  # keys: products of odd lengths cost more than the hidden pairs that even them out


def tile_rows(window: int) -> int:
    """Rows of a forward tile: fewer waste fewer hidden pairs, more keep the products efficient."""
    return min(128, max(32, window // 8 // 32 * 32))


def plan(problem: Problem, window: int, rows: int, tiles_at_once: int) -> list[Band]:
    """Bands that cover every query row that sees a key: equal inner tiles together, the edges in larger ones.

    An inner tile's span of keys lies wholly within the keys; there are few edges, so that fewer calls
    outweigh their hidden pairs.
    """
    first = max(0, -problem.offset - reach(window, problem.causal)[1])
    before, after = span(window, problem.causal)
    stop = problem.tokens if problem.kv_tokens else 0
    inner = max(first, before - problem.offset)
    inner_stop = min(stop, problem.kv_tokens - problem.offset - after)
    tiles = max(0, inner_stop - inner) // rows
    if tiles == 0:
        inner = inner_stop = stop
    bands = [
        _band(problem, window, start, min(max(rows, EDGE_ROWS), end - start), 1)
        for begin, end in ((first, inner), (inner + tiles * rows, stop))
        for start in range(begin, end, max(rows, EDGE_ROWS))
    ]
    if tiles:
        bands += _band(problem, window, inner, rows, tiles).parts(tiles_at_once)
    return bands


def span(window: int, causal: bool) -> tuple[int, int]:
    """How many keys a tile holds before its first row and after its last."""
    before, after = (-(-keys // ALIGNED) * ALIGNED for keys in reach(window, causal))
    return before, after


def _band(problem: Problem, window: int, start: int, rows: int, tiles: int) -> Band:
    before, after = span(window, problem.causal)
    position = start + problem.offset
    first = max(0, position - before)
    last = min(problem.kv_tokens, position + rows + after)
    before, after = reach(window, problem.causal)
    row = torch.arange(rows, device=problem.device)[:, None] + position
    key = torch.arange(first, last, device=problem.device)[None, :]
    bias = hidden_bias((key < row - before) | (key > row + after), TORCH_DTYPES[problem.dtype])
    return Band(start, rows, tiles, first, last - first, bias)


class _Window(torch.autograd.Function):
    """Fused tiles forward; gradients from recomputed tiles, so that no score is kept."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, forth: list[Band], back: list[Band] | None
    ) -> Tensor:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        if not covers(forth, q.shape[2]):
            out.zero_()  # rows that see no key
        lse = None if back is None else q.new_full(q.shape[:3], -torch.inf, dtype=accumulator(q.dtype))
        fq, fk, fv, fo = (flatten_heads(x) for x in (q, k, v, out))
        for rows, kv in head_groups(q, k):
            hq, ho = fq[rows], fo[rows]
            hk, hv = expand_to(fk[kv], hq), expand_to(fv[kv], hq)
            for band in forth:
                tile, tile_lse = attend(band.query_tiles(hq), band.key_tiles(hk), band.key_tiles(hv), band.bias)
                band.query_tiles(ho).copy_(tile)
                if lse is not None:
                    lines = flatten_heads(lse.unsqueeze(-1))[rows]
                    band.query_tiles(lines).copy_(tile_lse.unsqueeze(-1))
        if lse is not None:
            ctx.save_for_backward(q, k, v, out, lse)
            ctx.back = back  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        wide = accumulator(q.dtype)
        dq = torch.zeros(q.shape, dtype=wide, device=q.device)
        dk, dv = (torch.zeros(k.shape, dtype=wide, device=q.device) for _ in range(2))
        fq, fk, fv, fg, fo = (flatten_heads(x) for x in (q, k, v, grad, out))
        fdq, fdk, fdv, flse = (flatten_heads(x) for x in (dq, dk, dv, lse.unsqueeze(-1)))
        for rows, kv in head_groups(q, k):
            hq, hg, hl = fq[rows], fg[rows], flse[rows]
            hk, hv = expand_to(fk[kv], hq), expand_to(fv[kv], hq)
            for band in ctx.back:  # type: ignore[attr-defined]  # set in forward
                tq, tk, tv = fused_gradients(
                    band.query_tiles(hq),
                    band.key_tiles(hk),
                    band.key_tiles(hv),
                    band.bias,
                    band.query_tiles(hg),
                    band.query_tiles(hl).squeeze(-1),
                    band.query_tiles(fo[rows]),
                )
                band.query_tiles(fdq[rows]).copy_(tq)
                if tk.shape[0] != fdk[kv].shape[0]:  # grouped queries share their keys
                    tk, tv = tk.sum(0, keepdim=True), tv.sum(0, keepdim=True)
                band.add_to_keys(fdk[kv], tk)
                band.add_to_keys(fdv[kv], tv)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


def covers(bands: list[Band], tokens: int) -> bool:
    """Whether the bands write every query row."""
    return sum(band.rows * band.tiles for band in bands) == tokens


def backward_span(problem: Problem, window: int) -> int:
    """Keys of one backward tile."""
    return min(problem.kv_tokens, sum(span(window, problem.causal)) + BACKWARD_ROWS)


def backward_tiles(problem: Problem, window: int) -> int:
    """How many backward tiles of one head are taken together: as many as fit the cache."""
    return max(1, CACHE_ELEMENTS // (BACKWARD_ROWS * max(1, backward_span(problem, window))))


def fused_tiles(problem: Problem, window: int) -> int:
    """The same with the fused kernel, which holds no scores: more tiles, fewer calls. The half types do without it."""
    return backward_tiles(problem, window) * (4 if problem.element_bytes > 2 else 1)


def workspace_bytes(problem: Problem, *, window: int) -> int:
    """One step's fused output; in training also the log-sum-exp, wide gradients and a step's scores."""
    wide = max(4, problem.element_bytes)
    heads = heads_at_once(problem)
    forward = heads * problem.tokens * (problem.head_dim + 1) * wide
    if problem.mode != "training":
        return forward + SCRATCH_BYTES
    keys = backward_span(problem, window)
    rows = min(problem.tokens, BACKWARD_ROWS * fused_tiles(problem, window))
    tile = rows * (2 * keys + 4 * problem.head_dim) + (rows // BACKWARD_ROWS + 1) * 4 * keys * problem.head_dim
    kept = wide * problem.batch * problem.heads * problem.tokens
    widened = problem.input_output_bytes // 2 * wide // problem.element_bytes if problem.element_bytes < wide else 0
    return kept + widened + max(forward, heads * tile * wide) + SCRATCH_BYTES


def executed_flops(problem: Problem, *, window: int) -> int:
    """Every pair of every tile, the hidden ones included."""
    keys = min(problem.kv_tokens, sum(span(window, problem.causal)) + tile_rows(window))
    forward = 4 * problem.batch * problem.heads * problem.head_dim * problem.tokens * keys
    if problem.mode != "training":
        return forward
    pairs = problem.tokens * backward_span(problem, window)
    return forward + 10 * problem.batch * problem.heads * problem.head_dim * pairs


@variant(
    "local_window/tiled",
    summary="tiles of queries over just the keys that they see",
    devices=("cpu", "cuda"),
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
)
def build(problem: Problem, *, window: int) -> Attention:
    """The tiles and their masks are laid out here, outside the clock."""
    forth = plan(problem, window, tile_rows(window), tiles_at_once=problem.tokens)
    training = problem.mode == "training"
    back = plan(problem, window, BACKWARD_ROWS, fused_tiles(problem, window)) if training else None

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        out: Tensor = _Window.apply(q, k, v, forth, back)  # type: ignore[no-untyped-call]  # torch types no apply
        return out

    return run
