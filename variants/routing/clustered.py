"""Each cluster's queries and keys gathered into a tile; causal, keys sorted by cluster and cut into chunks.

Nearness is float64 for every dtype: another cluster would be another function.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.bucket_order import ROWS, Order, order_by_bucket, positions
from variants.problem import Problem
from variants.routing import centroids, cluster_count
from variants.sorted_ranges import attend_sorted, sorted_workspace_bytes, tiles_if_even
from variants.tiles import (
    CACHE_ELEMENTS,
    SCRATCH_BYTES,
    accumulator,
    attend,
    attend_gradients,
    flatten_heads,
    row_delta,
)
from variants.top_k.chunked import group_size, select
from variants.variant import Attention, variant


def nearness(
    x: Float[Tensor, "tokens head_dim"], middles: Float[Tensor, "clusters head_dim"]
) -> Float[Tensor, "clusters tokens"]:
    """Cosines of the centroids with each token, in float64; nought for a vector of zeros."""
    x = x.double()
    norms = x.norm(dim=-1, keepdim=True)
    return middles @ (x / torch.where(norms > 0, norms, 1.0)).T


def nearest(
    x: Float[Tensor, "tokens head_dim"], middles: Float[Tensor, "clusters head_dim"]
) -> Int64[Tensor, "clusters members"]:
    """The tokens nearest to each centroid, an even share of them; of those equally near the earlier."""
    share = -(-len(x) // len(middles))
    near = nearness(x, middles)
    group = group_size(len(x), share)
    if len(x) % group:
        near = torch.nn.functional.pad(near, (0, -len(x) % group), value=-torch.inf)
    return select(near, share, group)[1]


class _Clusters(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, middles: Tensor) -> Tensor:
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        fq, fk, fv, fo = (flatten_heads(x) for x in (q, k, v, out))
        needed = any(ctx.needs_input_grad)  # type: ignore[attr-defined]  # set before forward is called
        group = q.shape[1] // k.shape[1]
        parts = []
        for head in range(len(fq)):
            if head % group == 0:
                keys = nearest(fk[head // group], middles)
            rows = nearest(fq[head], middles)
            times = torch.bincount(rows.flatten(), minlength=q.shape[2]).clamp_(min=1)
            total = torch.zeros(fq.shape[1:], dtype=accumulator(q.dtype), device=q.device)
            tiles = []
            for r, j in _steps(rows, keys):
                tile, line = attend(fq[head, r][None], fk[head // group, j][None], fv[head // group, j][None], None)
                total.index_add_(0, r.flatten(), tile.flatten(0, 2).to(total.dtype))
                tiles.append((tile[0], line[0]) if needed else ())
            fo[head] = total / times[:, None]
            if needed:
                parts.append((rows, keys, times, tiles))
        if needed:
            ctx.save_for_backward(q, k, v)
            ctx.parts = parts  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        wide = accumulator(q.dtype)
        dq, dk, dv = (torch.zeros(x.shape, dtype=wide, device=q.device) for x in (q, k, v))
        fq, fk, fv, fg, fdq, fdk, fdv = (flatten_heads(x) for x in (q, k, v, grad, dq, dk, dv))
        group = q.shape[1] // k.shape[1]
        for head, (rows, keys, times, tiles) in enumerate(ctx.parts):  # type: ignore[attr-defined]  # set in forward
            shared = head // group
            slope = fg[head].to(wide) / times[:, None]
            for (r, j), (tile, line) in zip(_steps(rows, keys), tiles, strict=True):
                delta = row_delta(slope[r], tile)
                tq, tk, tv = attend_gradients(fq[head, r], fk[shared, j], fv[shared, j], None, slope[r], line, delta)
                fdq[head].index_add_(0, r.flatten(), tq.flatten(0, 1))
                fdk[shared].index_add_(0, j.flatten(), tk.flatten(0, 1))
                fdv[shared].index_add_(0, j.flatten(), tv.flatten(0, 1))
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None


def _steps(rows: Tensor, keys: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The clusters of a step: as many as fit the cache, one at least."""
    at_once = clusters_at_once(rows.shape[1], keys.shape[1])
    return list(zip(rows.split(at_once), keys.split(at_once), strict=True))


def clusters_at_once(rows: int, keys: int) -> int:
    """Clusters whose scores fit the cache, one at least."""
    return max(1, CACHE_ELEMENTS // max(1, rows * keys))


def workspace_bytes(problem: Problem, *, members: int) -> int:
    """Nearness of one head's tokens in float64 and what selects from it; tiles, and in training all that are kept."""
    count = cluster_count(problem.kv_tokens, members)
    wide, size, dim = max(4, problem.element_bytes), problem.element_bytes, problem.head_dim
    longest = max(problem.group * problem.tokens if problem.causal else problem.tokens, problem.kv_tokens)
    near = 8 * longest * (count * (1 if problem.causal else 4) + 3 * dim) + 8 * count * dim
    if problem.causal:
        chunk = max(1, min(members, problem.kv_tokens))
        return max(near + 8 * longest, sorted_workspace_bytes(problem, max(1, count), chunk, 1)) + SCRATCH_BYTES
    if not count:
        return SCRATCH_BYTES
    rows, keys = -(-problem.tokens // count), -(-problem.kv_tokens // count)
    step = min(count, clusters_at_once(rows, keys))
    sums = 2 * problem.tokens * (dim * wide + 8) + 8 * count * (rows + keys)
    tiles = step * dim * (2 * rows * size + 2 * keys * size + 2 * rows * wide)
    if problem.mode != "training":
        return max(near, sums + tiles) + SCRATCH_BYTES
    places = problem.batch * problem.heads * count * rows
    kept = places * (dim * size + wide + 8) + problem.batch * problem.heads * (count * keys + problem.tokens) * 8
    back = step * wide * (3 * rows * keys + dim * (5 * rows + 5 * keys)) + 2 * problem.tokens * dim * wide
    widened = problem.input_output_bytes // 2 * wide // size if size < wide else 0
    return kept + widened + max(near, sums + tiles, back) + SCRATCH_BYTES


def executed_flops(problem: Problem, *, members: int) -> int:
    """Every pair of each cluster, or causal of every tile where clusters are even, and the centroids' products."""
    count = cluster_count(problem.kv_tokens, members)
    if not count:
        return 0
    met = problem.batch * count * (problem.heads * problem.tokens + problem.kv_heads * problem.kv_tokens)
    if problem.causal:
        chunk = min(members, problem.kv_tokens)
        pairs = problem.batch * problem.kv_heads * tiles_if_even(problem, count, chunk) * ROWS * chunk
    else:
        pairs = problem.batch * problem.heads * count * -(-problem.tokens // count) * -(-problem.kv_tokens // count)
    factor = 3.5 if problem.mode == "training" else 1
    return 2 * problem.head_dim * met + round(4 * problem.head_dim * pairs * factor)


@variant(
    "routing/clustered",
    summary="a tile for each cluster; causal, tiles over chunks of sorted clusters",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
)
def build(problem: Problem, *, members: int) -> Attention:
    """The centroids are drawn here; the clusters depend on the inputs."""
    count = cluster_count(problem.kv_tokens, members)
    middles = centroids(count, problem.head_dim).to(problem.device)
    chunk = max(1, min(members, problem.kv_tokens))
    position = positions(problem)

    def find(q: Tensor, k: Tensor) -> list[Order]:
        own_q, own_k = (nearness(x, middles).argmax(0) for x in (q, k))
        return [order_by_bucket(own_q, own_k, position, (count, chunk), causal=True, latest=chunk)]

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        if not problem.tokens or not count:
            return 0 * q + 0 * (k + v).sum()  # zero, and still a function of all three
        if problem.causal:
            return attend_sorted(q, k, v, find, chunk)
        out: Tensor = _Clusters.apply(q, k, v, middles)  # type: ignore[no-untyped-call]  # torch types no apply
        return out

    return run
