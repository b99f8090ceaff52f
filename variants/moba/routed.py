"""Queries routed to the blocks that they picked: each past block meets its queries in one fused call.

The gate is float64 for every dtype: another pick would be another function.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.block_local.tiled import plan
from variants.merged_bands import split
from variants.moba import DECODERS_ONLY
from variants.problem import Problem
from variants.tiles import (
    CACHE_ELEMENTS,
    SCRATCH_BYTES,
    Band,
    accumulator,
    attend,
    attend_gradients,
    flatten_heads,
    row_delta,
    visible,
)
from variants.top_k.chunked import select
from variants.variant import Attention, variant

TILE = 32  # queries of one product: of a fixed number, so that no result depends on how many others picked a block


def block_means(k: Float[Tensor, "kv_tokens dim"], block: int) -> Float[Tensor, "blocks dim"]:
    """Means of the whole blocks, in float64: none but a whole block is ever past."""
    blocks = k.shape[0] // block
    means: Tensor = k[: blocks * block].double().unflatten(0, (blocks, block)).mean(1)
    return means


def pick(
    q: Float[Tensor, "tokens dim"], means: Float[Tensor, "blocks dim"], offset: int, block: int, past: int
) -> Int64[Tensor, "tokens past"]:
    """The past blocks of each query, at most `past`; the number of blocks stands for none."""
    gate = q.double() @ means.T
    own = torch.div(torch.arange(len(q), device=q.device) + offset, block, rounding_mode="floor")
    gate.masked_fill_(torch.arange(len(means), device=q.device)[None, :] >= own[:, None], -torch.inf)
    values, blocks = select(gate, past, 1)
    return torch.where(values > -torch.inf, blocks, len(means))


def routes(picked: Int64[Tensor, "tokens past"], blocks: int, block: int) -> Iterator[tuple[slice, Tensor]]:
    """The keys of each block with the places in `picked`, flattened, that name it; a few thousand at a time."""
    order = picked.flatten().sort(stable=True).indices
    counts = torch.bincount(picked.flatten(), minlength=blocks + 1)[:blocks].tolist()
    start = 0
    for index, count in enumerate(counts):
        for places in order[start : start + count].split(rows_at_once(block)):
            if len(places):
                yield slice(index * block, (index + 1) * block), places
        start += count


def rows_at_once(block: int) -> int:
    """Queries that meet a block in one step."""
    return max(2, CACHE_ELEMENTS // (block * TILE)) * TILE


class _Routed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, own: list[Band], back: list[Band] | None, sizes: list[int]
    ) -> Tensor:
        block, past = sizes
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        lse = q.new_full(q.shape[:3], -torch.inf, dtype=accumulator(q.dtype))
        picked = q.new_zeros((*q.shape[:3], past), dtype=torch.int64)
        fq, fk, fv, fo, fl = (flatten_heads(x) for x in (q, k, v, out, lse.unsqueeze(-1)))
        fp = picked.flatten(0, 1)
        group, offset = q.shape[1] // k.shape[1], k.shape[2] - q.shape[2]
        for head in range(fq.shape[0]):
            keys = fk[head // group], fv[head // group]
            for band in own:
                one = slice(head, head + 1)
                near_k, near_v = (band.key_tiles(x.unsqueeze(0)) for x in keys)
                tile, line = attend(band.query_tiles(fq[one]), near_k, near_v, band.bias)
                band.query_tiles(fo[one]).copy_(tile)
                band.query_tiles(fl[one]).copy_(line.unsqueeze(-1))
            if past:
                fp[head] = pick(fq[head], block_means(keys[0], block), offset, block, past)
                _merge_past(fq[head], keys, fp[head], block, fo[head], fl[head])
        if back is not None:
            ctx.save_for_backward(q, k, v, out, lse, picked)
            ctx.back = back, block  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, picked = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        back, block = ctx.back  # type: ignore[attr-defined]  # set in forward
        wide = lse.dtype
        dq, dk, dv = (torch.zeros(x.shape, dtype=wide, device=q.device) for x in (q, k, v))
        fq, fk, fv, fg, fo, fl = (flatten_heads(x) for x in (q, k, v, grad, out, lse.unsqueeze(-1)))
        fp = picked.flatten(0, 1)
        fdq, fdk, fdv = (flatten_heads(x) for x in (dq, dk, dv))
        group = q.shape[1] // k.shape[1]
        for head in range(fq.shape[0]):
            one, shared = slice(head, head + 1), slice(head // group, head // group + 1)
            delta = row_delta(fg[one], fo[one]).unsqueeze(-1)
            for band in back:
                tq, tg, tl, td = (band.query_tiles(x) for x in (fq[one], fg[one], fl[one], delta))
                tk, tv = (band.key_tiles(x[shared]) for x in (fk, fv))
                tq, tk, tv = attend_gradients(tq, tk, tv, band.bias, tg, tl.squeeze(-1), td.squeeze(-1))
                band.query_tiles(fdq[one]).add_(tq)
                band.add_to_keys(fdk[shared], tk)
                band.add_to_keys(fdv[shared], tv)
            for keys, places in routes(fp[head], k.shape[2] // block, block) if fp.shape[2] else ():
                rows = places // fp.shape[2]
                tq, tk, tv = attend_gradients(
                    fq[head, rows],
                    fk[shared.start, keys],
                    fv[shared.start, keys],
                    None,
                    fg[head, rows],
                    fl[head, rows, 0],
                    delta[0, rows, 0],
                )
                fdq[head].index_add_(0, rows, tq)
                fdk[shared.start, keys] += tk
                fdv[shared.start, keys] += tv
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _merge_past(q: Tensor, keys: tuple[Tensor, Tensor], picked: Tensor, block: int, out: Tensor, lse: Tensor) -> None:
    """The picked blocks' parts, merged into one head's `out` and `lse`."""
    parts = q.new_zeros(picked.numel(), q.shape[1])
    lines = lse.new_full((picked.numel(),), -torch.inf)
    for span, places in routes(picked, len(keys[0]) // block, block):
        count = len(places)
        filled = torch.cat((places, places[:1].expand(-count % TILE))) // picked.shape[1]
        tiles: Tensor = q[filled].unflatten(0, (-1, TILE)).unsqueeze(0)
        own_k, own_v = (x[None, None, span].expand(-1, tiles.shape[1], -1, -1) for x in keys)
        tile, line = attend(tiles, own_k, own_v, None)
        parts[places] = tile[0].flatten(0, 1)[:count]
        lines[places] = line[0].flatten()[:count]
    lines = lines.view(picked.shape)
    joint = torch.logaddexp(lse, lines.logsumexp(-1, keepdim=True))
    shift = visible(joint)
    merged = torch.bmm(torch.exp(lines - shift).to(q.dtype).unsqueeze(1), parts.unflatten(0, picked.shape)).squeeze(1)
    out.mul_(torch.exp(lse - shift).to(q.dtype)).add_(merged)
    lse.copy_(joint)


def workspace_bytes(problem: Problem, *, block: int, selected: int) -> int:
    """One head's gates and parts, the log-sum-exps and picks; in training wide gradients and a step's scores."""
    wide = max(4, problem.element_bytes)
    blocks = problem.kv_tokens // block
    past = min(selected - 1, blocks)
    lines = problem.batch * problem.heads * problem.tokens * (wide + 8 * past)
    dim = problem.head_dim
    gates = problem.tokens * (17 * blocks + 8 * dim) + problem.kv_tokens * dim * 8
    parts = problem.tokens * past * (dim * problem.element_bytes + 40 + wide)
    step = rows_at_once(block) * dim * 3 * problem.element_bytes
    forward = max(gates, parts + step) + problem.tokens * dim * wide
    if problem.mode != "training":
        return lines + forward + SCRATCH_BYTES
    rows = min(problem.tokens, rows_at_once(block))
    routed = wide * (rows * (2 * block + 4 * dim) + 4 * block * dim)
    tiles = min(problem.tokens // block + 1, max(1, CACHE_ELEMENTS // (block * block)))
    near = wide * tiles * (2 * block * block + 5 * block * dim)
    widened = problem.input_output_bytes // 2 * wide // problem.element_bytes if problem.element_bytes < wide else 0
    return lines + widened + max(forward, routed, near) + SCRATCH_BYTES


def executed_flops(problem: Problem, *, block: int, selected: int) -> int:
    """Own blocks in full, the picked ones, and the gates of all blocks."""
    blocks = problem.kv_tokens // block
    past = min(selected - 1, blocks)
    pairs = problem.tokens * min(block, problem.kv_tokens) + problem.tokens * past * block
    one_pair = problem.batch * problem.heads * problem.head_dim
    gates = one_pair * (2 * problem.tokens * blocks + problem.kv_tokens) if past else 0
    return gates + round(4 * one_pair * pairs * (3.5 if problem.mode == "training" else 1))


@variant(
    "moba/routed",
    summary="own blocks in tiles, each past block with the queries that picked it",
    devices=("cpu", "cuda"),
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=(DECODERS_ONLY,),
)
def build(problem: Problem, *, block: int, selected: int) -> Attention:
    """The tiles of the own blocks are laid out here; what a query picks depends on its inputs."""
    own = plan(problem, block, look_back=0)
    back = split(own) if problem.mode == "training" else None
    past = min(selected - 1, problem.kv_tokens // block)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        out: Tensor = _Routed.apply(q, k, v, own, back, [block, past])  # type: ignore[no-untyped-call]  # torch types no apply
        return out

    return run
