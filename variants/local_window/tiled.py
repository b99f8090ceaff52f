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
    attend_gradients,
    expand_to,
    flatten_heads,
    head_groups,
    heads_at_once,
    hidden_bias,
    row_delta,
)
from variants.variant import Attention, variant

BACKWARD_ROWS = 128
EDGE_ROWS = 256


def tile_rows(window: int) -> int:
    """Rows of a forward tile: fewer waste fewer hidden pairs, more keep the products efficient."""
    return min(128, max(32, window // 8 // 32 * 32))


def plan(problem: Problem, window: int, rows: int, tiles_at_once: int) -> list[Band]:
    """Bands that cover every query row that sees a key: equal inner tiles together, the edges in larger ones.

    An inner tile's span of keys lies wholly within the keys; there are few edges, so that fewer calls
    outweigh their hidden pairs.
    """
    before, after = reach(window, problem.causal)
    first = max(0, -problem.offset - after)
    stop = problem.tokens if problem.kv_tokens else 0
    inner = max(first, before - problem.offset)
    inner_stop = min(stop, problem.kv_tokens - problem.offset - after)
    tiles = max(0, inner_stop - inner) // rows
    if tiles == 0:
        inner = inner_stop = stop
    bands = [
        _band(problem, before, after, start, min(max(rows, EDGE_ROWS), end - start), 1)
        for begin, end in ((first, inner), (inner + tiles * rows, stop))
        for start in range(begin, end, max(rows, EDGE_ROWS))
    ]
    if tiles:
        bands += _band(problem, before, after, inner, rows, tiles).parts(tiles_at_once)
    return bands


def _band(problem: Problem, before: int, after: int, start: int, rows: int, tiles: int) -> Band:
    position = start + problem.offset
    first = max(0, position - before)
    last = min(problem.kv_tokens, position + rows + after)
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
            delta = row_delta(hg, fo[rows])
            for band in ctx.back:  # type: ignore[attr-defined]  # set in forward
                tq, tk, tv = attend_gradients(
                    band.query_tiles(hq),
                    band.key_tiles(hk),
                    band.key_tiles(hv),
                    band.bias,
                    band.query_tiles(hg),
                    band.query_tiles(hl).squeeze(-1),
                    band.query_tiles(delta.unsqueeze(-1)).squeeze(-1),
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
    before, after = reach(window, problem.causal)
    return min(problem.kv_tokens, before + after + BACKWARD_ROWS)


def backward_tiles(problem: Problem, window: int) -> int:
    """How many backward tiles of one head are taken together: as many as fit the cache."""
    return max(1, CACHE_ELEMENTS // (BACKWARD_ROWS * max(1, backward_span(problem, window))))


def workspace_bytes(problem: Problem, *, window: int) -> int:
    """One step's fused output; in training also the log-sum-exp, wide gradients and a step's scores."""
    wide = max(4, problem.element_bytes)
    heads = heads_at_once(problem)
    forward = heads * problem.tokens * (problem.head_dim + 1) * wide
    if problem.mode != "training":
        return forward + SCRATCH_BYTES
    span = backward_span(problem, window)
    rows = min(problem.tokens, BACKWARD_ROWS * backward_tiles(problem, window))
    tile = rows * (2 * span + 4 * problem.head_dim) + (rows // BACKWARD_ROWS + 1) * 4 * span * problem.head_dim
    kept = wide * problem.batch * problem.heads * problem.tokens
    widened = problem.input_output_bytes // 2 * wide // problem.element_bytes if problem.element_bytes < wide else 0
    return kept + widened + max(forward, heads * tile * wide) + SCRATCH_BYTES


def executed_flops(problem: Problem, *, window: int) -> int:
    """Every pair of every tile, the hidden ones included."""
    before, after = reach(window, problem.causal)
    span = min(problem.kv_tokens, before + after + tile_rows(window))
    forward = 4 * problem.batch * problem.heads * problem.head_dim * problem.tokens * span
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
    back = plan(problem, window, BACKWARD_ROWS, backward_tiles(problem, window)) if training else None

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        out: Tensor = _Window.apply(q, k, v, forth, back)  # type: ignore[no-untyped-call]  # torch types no apply
        return out

    return run
