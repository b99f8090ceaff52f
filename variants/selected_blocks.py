"""Causal attention to the own block, the one before and some picked ones, picked alike by all heads of a group."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.kv_groups import by_group, merge_rows
from variants.moba.routed import TILE, routes, rows_at_once
from variants.problem import Problem
from variants.tiles import CACHE_ELEMENTS, Band, accumulator, attend, attend_gradients, flatten_heads, row_delta


class _Selected(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        picked: Tensor,
        own: list[Band],
        back: list[Band] | None,
        block: int,
    ) -> Tensor:
        wide, group = accumulator(q.dtype), q.shape[1] // k.shape[1]
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        lse = torch.full(q.shape[:3], -torch.inf, dtype=wide, device=q.device)
        fq, fo, fl = (by_group(x, k.shape[1]) for x in (q, out, lse))
        fk, fv = (flatten_heads(x) for x in (k, v))
        for head in range(len(fk)):
            total = torch.zeros(fq.shape[1:], dtype=wide, device=q.device)
            keys, values = (x[head].expand(group, -1, -1) for x in (fk, fv))
            for band in own:
                near_k, near_v = band.key_tiles(keys), band.key_tiles(values)
                tile, line = attend(band.query_tiles(fq[head]), near_k, near_v, band.bias)
                band.query_tiles(total).copy_(tile)
                band.query_tiles(fl[head].unsqueeze(-1)).copy_(line.unsqueeze(-1))
            for span, places in routes(picked[head], k.shape[2] // block, block):
                rows = places // picked.shape[2]
                filled = torch.cat((rows, rows[:1].expand(-len(rows) % TILE)))
                tiles: Tensor = fq[head].index_select(1, filled).unflatten(1, (-1, TILE))
                far_k, far_v = (x[:, None, span].expand(-1, tiles.shape[1], -1, -1) for x in (keys, values))
                tile, line = attend(tiles, far_k, far_v, None)
                count = len(rows)
                merge_rows(total, fl[head], rows, tile.flatten(1, 2)[:, :count], line.flatten(1, 2)[:, :count])
            fo[head] = total
        if back is not None:
            ctx.save_for_backward(q, k, v, out, lse, picked)
            ctx.back = back, block  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, picked = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        back, block = ctx.back  # type: ignore[attr-defined]  # set in forward
        group = q.shape[1] // k.shape[1]
        dq, dk, dv = (torch.zeros(x.shape, dtype=lse.dtype, device=q.device) for x in (q, k, v))
        fq, fg, fo, fl, fdq = (by_group(x, k.shape[1]) for x in (q, grad, out, lse, dq))
        fk, fv, fdk, fdv = (flatten_heads(x) for x in (k, v, dk, dv))
        for head in range(len(fk)):
            delta = row_delta(fg[head], fo[head])
            keys, values = (x[head].expand(group, -1, -1) for x in (fk, fv))
            lines = fl[head].unsqueeze(-1), delta.unsqueeze(-1)
            for band in back:
                tq, tg, tl, td = (band.query_tiles(x) for x in (fq[head], fg[head], *lines))
                tk, tv = band.key_tiles(keys), band.key_tiles(values)
                tq, tk, tv = attend_gradients(tq, tk, tv, band.bias, tg, tl.squeeze(-1), td.squeeze(-1))
                band.query_tiles(fdq[head]).add_(tq)
                band.add_to_keys(fdk[head, None], tk.sum(0, keepdim=True))
                band.add_to_keys(fdv[head, None], tv.sum(0, keepdim=True))
            for span, places in routes(picked[head], k.shape[2] // block, block):
                rows = places // picked.shape[2]
                tq, tg, tl = (x[head][:, rows] for x in (fq, fg, fl))
                tq, tk, tv = attend_gradients(tq, keys[:, span], values[:, span], None, tg, tl, delta[:, rows])
                fdq[head].index_add_(1, rows, tq)
                fdk[head, span] += tk.sum(0)
                fdv[head, span] += tv.sum(0)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None, None


def attend_selected(
    q: Float[Tensor, "batch heads tokens head_dim"],
    k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    picked: Int64[Tensor, "kv_rows tokens past"],
    own: list[Band],
    back: list[Band] | None,
    block: int,
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Softmax over the keys of the `own` bands and of the picked blocks; without `back` no gradients.

    `picked` holds whole past blocks, none of them in a band, none twice; the number of blocks stands for none.
    """
    out: Tensor = _Selected.apply(q, k, v, picked, own, back, block)  # type: ignore[no-untyped-call]  # torch types no apply
    return out


def selected_workspace_bytes(problem: Problem, block: int, past: int) -> int:
    """One group's sums and a step; in training wide gradients of all heads and a step's scores."""
    wide, size, dim = max(4, problem.element_bytes), problem.element_bytes, problem.head_dim
    group, tokens = problem.group, problem.tokens
    blocks = problem.kv_tokens // block
    lines = problem.batch * problem.heads * tokens * wide
    picked = problem.batch * problem.kv_heads * tokens * past * 8
    sums = group * tokens * dim * (2 * wide + size) + tokens * past * 40
    rows = min(tokens, rows_at_once(block))
    step = group * rows * dim * (3 * size + 3 * wide) if past and blocks else 0
    held = lines + picked + problem.query_bytes
    if problem.mode != "training":
        return held + sums + step
    routed = group * wide * (rows * (2 * block + 5 * dim) + 3 * block * dim) if past and blocks else 0
    tiles = min(tokens // block + 1, max(1, CACHE_ELEMENTS // (2 * block * block)))
    near = group * wide * tiles * (4 * block * block + 8 * block * dim)
    widened = problem.input_output_bytes // 2 * wide // size if size < wide else 0
    return held + max(sums + step, widened + max(routed, near))
