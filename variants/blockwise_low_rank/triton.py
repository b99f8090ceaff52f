"""One fused kernel in Triton: near keys and far segments in one online softmax, nothing merged in memory."""

from types import ModuleType
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.blockwise_low_rank import DEFINITION
from variants.powers import LOG2_E
from variants.problem import Problem
from variants.tile_search import fastest, telling
from variants.triton_launch import (
    DTYPES,
    REQUIRES,
    Tile,
    device_code,
    dot_mode,
    fitting,
    on_device,
    padded,
    row_products,
    softmax_tiles,
    tile_count,
)
from variants.variant import Attention, variant

MEAN_ROWS = 16
PROGRAMS = 264
"""Twice the multiprocessors of a large card: where segments are fewer, the queries are split."""


class Plan(NamedTuple):
    """Blocks, and the tiles of the kernels."""

    causal: bool
    block: int
    segment: int
    forward: Tile
    queries: Tile
    keys: Tile
    segments: Tile


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, kernels: ModuleType, plan: Plan) -> Tensor:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        training = any(ctx.needs_input_grad)  # type: ignore[attr-defined]  # set by apply
        lse = torch.empty(q.shape[:3] if training else (1,), dtype=torch.float32, device=q.device)
        tile = plan.forward
        with on_device(q):
            mk, mv = (segment_means(kernels, x, plan.segment) for x in (k, v))
            kernels.forward[(q.shape[0] * q.shape[1] * _query_tiles(q, k, plan, tile.own),)](
                *(q, k, v, mk, mv, out, lse, *_query_sizes(q, k, mk, plan), q.shape[3] ** -0.5 * LOG2_E),
                *(*q.stride(), *k.stride(), *v.stride(), *out.stride()),
                **_constants(kernels, q, plan, tile.own, tile.visited),
                KEEP=training,
                **tile.options,
            )
        if training:
            ctx.save_for_backward(q, k, v, mk, mv, out, lse)
            ctx.plan = kernels, plan  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mk, mv, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        kernels, plan = ctx.plan  # type: ignore[attr-defined]  # set in forward
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        scales = (q.shape[3] ** -0.5 * LOG2_E, q.shape[3] ** -0.5)
        given = [step for x in (q, k, v, grad) for step in x.stride()]
        with on_device(q):
            delta = row_products(kernels, out, grad)
            tile = plan.queries
            kernels.query_gradient[(q.shape[0] * q.shape[1] * _query_tiles(q, k, plan, tile.own),)](
                *(q, k, v, mk, mv, grad, lse, delta, dq, *_query_sizes(q, k, mk, plan), *scales, *given, *dq.stride()),
                **_constants(kernels, q, plan, tile.own, tile.visited),
                **tile.options,
            )
            far = _segment_gradients(kernels, plan, (q, mk, mv, grad, lse, delta), k.shape[2])
            tile = plan.keys
            blocks = tile_count(k.shape[2], plan.block)
            kernels.key_gradients[(k.shape[0] * k.shape[1] * blocks * tile_count(plan.block, tile.own),)](
                *(q, k, v, grad, lse, delta, *far, dk, dv, q.shape[2], k.shape[2], mk.shape[2], k.shape[1]),
                *(q.shape[1] // k.shape[1], k.shape[2] - q.shape[2], blocks, plan.block, plan.segment, *scales),
                *(*given, *dk.stride(), *dv.stride()),
                **_constants(kernels, q, plan, tile.visited, tile.own),
                **tile.options,
            )
        return dq, dk, dv, None, None


def segment_means(
    kernels: ModuleType, x: Float[Tensor, "batch kv_heads kv_tokens dim"], segment: int
) -> Float[Tensor, "batch kv_heads segments dim"]:
    """The mean of each segment, of a shorter last one too, rounded to the dtype of `x`."""
    batch, heads, tokens, width = x.shape
    segments = tile_count(tokens, segment)
    means = torch.empty(batch, heads, segments, width, dtype=x.dtype, device=x.device)
    kernels.segment_means[(batch * heads * tile_count(segments, MEAN_ROWS),)](
        *(x, means, heads, tokens, segments, segment, *x.stride()),
        WIDTH=width,
        BLOCK=padded(width),
        ROWS=MEAN_ROWS,
        DOT=dot_mode(kernels, x.dtype),
    )
    return means


def _segment_gradients(
    kernels: ModuleType, plan: Plan, given: tuple[Tensor, ...], kv_tokens: int
) -> tuple[Tensor, Tensor]:
    """Gradients of the means in float32, (batch, kv_heads, segments, dim): summed over parts of the queries."""
    q, mk, mv, grad, lse, delta = given
    batch, kv_heads, segments, width = mk.shape
    tokens, tile = q.shape[2], plan.segments
    programs = batch * kv_heads * tile_count(segments, tile.own)
    splits = max(1, min(tile_count(PROGRAMS, max(1, programs)), tokens // (8 * tile.visited)))
    share = tile_count(tile_count(tokens, splits), tile.visited) * tile.visited
    dmk, dmv = (torch.empty(splits, *mk.shape, dtype=torch.float32, device=q.device) for _ in range(2))
    kernels.segment_gradients[(programs * splits,)](
        *(q, mk, mv, grad, lse, delta, dmk, dmv, tokens, kv_tokens, segments, kv_heads, batch * kv_heads),
        *(q.shape[1] // kv_heads, kv_tokens - tokens, plan.block, plan.block // plan.segment, plan.segment),
        *(splits, share, width**-0.5 * LOG2_E, width**-0.5, *q.stride(), *grad.stride()),
        **_constants(kernels, q, plan, tile.visited, tile.own),
        **tile.options,
    )
    return (dmk.sum(0), dmv.sum(0)) if splits > 1 else (dmk[0], dmv[0])


def _query_blocks(q: Tensor, k: Tensor, block: int) -> range:
    """The blocks that hold queries; those before the first key have negative numbers."""
    offset = k.shape[2] - q.shape[2]
    return range(offset // block, tile_count(k.shape[2], block) if q.shape[2] else offset // block)


def _query_tiles(q: Tensor, k: Tensor, plan: Plan, rows: int) -> int:
    return len(_query_blocks(q, k, plan.block)) * tile_count(plan.block, rows)


def _query_sizes(q: Tensor, k: Tensor, means: Tensor, plan: Plan) -> tuple[int, ...]:
    """Tokens, keys, segments, heads, group, offset, blocks and their sizes, as the kernels over queries take them."""
    blocks = _query_blocks(q, k, plan.block)
    counts = (q.shape[2], k.shape[2], means.shape[2], q.shape[1], q.shape[1] // k.shape[1], k.shape[2] - q.shape[2])
    return *counts, blocks.start, len(blocks), plan.block, plan.block // plan.segment, plan.segment


def _constants(kernels: ModuleType, q: Tensor, plan: Plan, rows: int, keys: int) -> dict[str, int | str | bool]:
    shape: dict[str, int | str | bool] = {"WIDTH": q.shape[3], "BLOCK": padded(q.shape[3]), "ROWS": rows, "KEYS": keys}
    return shape | {"DOT": dot_mode(kernels, q.dtype), "CAUSAL": plan.causal}


def attend(
    q: Float[Tensor, "batch heads tokens head_dim"],
    k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    kernels: ModuleType,
    plan: Plan,
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Blockwise low-rank attention by the kernels of `variants.kernels_low_rank`."""
    out: Tensor = _Fused.apply(q, k, v, kernels, plan)  # type: ignore[no-untyped-call]  # torch types no apply
    return out


def tiles(problem: Problem, kernel: str, block: int) -> list[Tile]:
    """A kernel's tiles, best first; none taller than a block, and none twice for that."""
    return list(dict.fromkeys(_within(tile, block) for tile in softmax_tiles(problem, kernel)))


def _within(tile: Tile, block: int) -> Tile:
    own = min(tile.own, padded(block))
    return tile._replace(own=own, warps=tile.warps if own >= 64 else 4)


def workspace_bytes(problem: Problem, *, block: int, rank: int) -> int:
    """The means; in training also their gradients in parts, the log-sum-exp and Σ out·gradient of each row."""
    segments = tile_count(problem.kv_tokens, block // rank)
    elements = problem.batch * problem.kv_heads * segments * problem.head_dim
    means = 2 * elements * problem.element_bytes
    if problem.mode != "training":
        return means + 4
    programs = max(1, problem.batch * problem.kv_heads * tile_count(segments, 128))
    splits = max(1, min(tile_count(PROGRAMS, programs), problem.tokens // 256))
    return means + 2 * 4 * elements * (splits + 1) + 8 * problem.batch * problem.heads * problem.tokens


def executed_flops(problem: Problem, *, block: int, rank: int) -> int:
    """The formula's pairs, and at most a tile's width of hidden ones for each query."""
    wasted = 4 * problem.batch * problem.heads * problem.head_dim * problem.tokens * min(64, block)
    return DEFINITION.useful_flops(problem, {"block": block, "rank": rank}) + (
        round(wasted * 4.5) if problem.mode == "training" else wasted
    )


@variant(
    "blockwise_low_rank/triton",
    summary="one fused Triton kernel, near and far in one online softmax",
    devices=("cuda",),
    dtypes=DTYPES,
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=REQUIRES,
    source=f"{DEFINITION.source}; online softmax and backward pass: arXiv:2307.08691, algorithms 1 and 2",
)
def build(problem: Problem, *, block: int, rank: int) -> Attention:
    """Tiles are tried on the card here, and compiled."""
    kernels = device_code("low_rank")
    choices = {
        "forward": fitting(problem, tiles(problem, "forward", block), owned=1, visited=2),
        "queries": fitting(problem, tiles(problem, "queries", block), owned=2, visited=2),
        "keys": fitting(problem, tiles(problem, "keys", block), owned=2, visited=2),
        "segments": fitting(problem, softmax_tiles(problem, "keys"), owned=2, visited=2),
    }
    names = list(choices) if problem.mode == "training" else ["forward"]
    plan = fastest(
        problem,
        [Plan(problem.causal, block, block // rank, *(found[0] for found in choices.values()))],
        {name: choices[name] for name in names},
        executed_flops(problem, block=block, rank=rank),
        lambda q, k, v, plan: attend(q, k, v, kernels, plan),
    )

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return attend(q, k, v, kernels, plan)

    return telling(run, *(getattr(plan, name) for name in names))
