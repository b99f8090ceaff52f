"""Each level as blocks of the rows of one residue class, a strided view; levels merged by log-sum-exp."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.dilated import SELF_ATTENTION
from variants.dtypes import TORCH_DTYPES
from variants.problem import Problem
from variants.tiles import (
    CACHE_ELEMENTS,
    SCRATCH_BYTES,
    Band,
    accumulator,
    attend,
    attend_gradients,
    flatten_heads,
    hidden_bias,
    row_delta,
)
from variants.variant import Attention, variant

Steps = dict[int, list[Band]]
"""The bands of a class, by its number of rows."""


def blocks_of(rows: int, segment: int, bias: Tensor | None) -> list[Band]:
    """Whole blocks in parts that fit the cache, and what is left over."""
    whole, rest = divmod(rows, segment)
    bands = []
    if whole:
        tiles = max(1, CACHE_ELEMENTS // segment**2)
        bands += Band(0, segment, whole, 0, segment, bias).parts(tiles)
    if rest:
        first = whole * segment
        bands.append(Band(first, rest, 1, first, rest, None if bias is None else bias[:rest, :rest]))
    return bands


def plan(problem: Problem, segment: int, levels: int) -> Steps:
    """The bands of every class that a level can have."""
    place = torch.arange(min(segment, problem.tokens), device=problem.device)
    bias = hidden_bias(place[None, :] > place[:, None], TORCH_DTYPES[problem.dtype]) if problem.causal else None
    sizes = {
        len(range(head % 2**level, problem.tokens, 2**level))
        for level in range(levels)
        for head in range(min(problem.heads, 2**level))
    }
    return {rows: blocks_of(rows, segment, bias) for rows in sizes}


class _Dilated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, steps: Steps, levels: int) -> Tensor:
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        lse = q.new_full(q.shape[:3], -torch.inf, dtype=accumulator(q.dtype))
        fq, fk, fv, fo, fl = (flatten_heads(x) for x in (q, k, v, out, lse.unsqueeze(-1)))
        group = q.shape[1] // k.shape[1]
        for head in range(fq.shape[0]):
            for level in range(levels):
                own = slice(head % q.shape[1] % 2**level, None, 2**level)
                hq, ho, hl = (x[head : head + 1, own] for x in (fq, fo, fl))
                hk, hv = (x[head // group : head // group + 1, own] for x in (fk, fv))
                _merge_level(steps, hq, hk, hv, ho, hl)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan = steps, levels  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        steps, levels = ctx.plan  # type: ignore[attr-defined]  # set in forward
        dq, dk, dv = (torch.zeros(x.shape, dtype=lse.dtype, device=q.device) for x in (q, k, v))
        fq, fk, fv, fg, fo, fl = (flatten_heads(x) for x in (q, k, v, grad, out, lse.unsqueeze(-1)))
        fdq, fdk, fdv = (flatten_heads(x) for x in (dq, dk, dv))
        for head in range(fq.shape[0]):
            one = slice(head, head + 1)
            shared = slice(head // (q.shape[1] // k.shape[1]), head // (q.shape[1] // k.shape[1]) + 1)
            rows = fq[one], fg[one], fl[one], row_delta(fg[one], fo[one]).unsqueeze(-1), fdq[one]
            keys = fk[shared], fv[shared], fdk[shared], fdv[shared]
            for level in range(levels):
                own = slice(head % q.shape[1] % 2**level, None, 2**level)
                _level_gradients(steps, [x[:, own] for x in rows], [x[:, own] for x in keys])
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


def _merge_level(steps: Steps, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> None:
    """One level's attention of one head, merged into its rows of `out` and `lse`."""
    for band in steps.get(q.shape[1], []):
        target, line = band.query_tiles(out), band.query_tiles(lse)
        tile, tile_lse = attend(band.query_tiles(q), band.key_tiles(k), band.key_tiles(v), band.bias)
        tile_lse = tile_lse.unsqueeze(-1)
        joint = torch.logaddexp(line, tile_lse)
        # An `out` that is a strided view cannot be written by lerp itself.
        target.copy_(torch.lerp(target, tile, torch.exp(tile_lse - joint).to(tile.dtype)))
        line.copy_(joint)


def _level_gradients(steps: Steps, rows: list[Tensor], keys: list[Tensor]) -> None:
    """One level's share of one head's gradients, added to them."""
    for band in steps.get(rows[0].shape[1], []):
        q, grad, lse, delta, dq = (band.query_tiles(x) for x in rows)
        k, v, dk, dv = (band.key_tiles(x) for x in keys)  # blocks do not overlap: these may be written to
        parts = attend_gradients(q, k, v, band.bias, grad, lse.squeeze(-1), delta.squeeze(-1))
        for total, part in zip((dq, dk, dv), parts, strict=True):
            total.add_(part)


def workspace_bytes(problem: Problem, *, segment: int, levels: int) -> int:
    """The causal bias, the log-sum-exp and a step's outputs; in training a step's scores and wide gradients."""
    wide, size = max(4, problem.element_bytes), min(segment, problem.tokens)
    mask = 2 * size * size * problem.element_bytes if problem.causal else 0
    held = mask + wide * problem.batch * problem.heads * problem.tokens + SCRATCH_BYTES
    rows = min(problem.tokens, segment * max(1, CACHE_ELEMENTS // segment**2))
    step = rows * wide * (3 * problem.head_dim + 4)
    if problem.mode != "training":
        return held + step
    step += rows * wide * (2 * size + 4 * problem.head_dim) + wide * problem.tokens * (problem.head_dim + 1)
    widened = problem.input_output_bytes // 2 * wide // problem.element_bytes if problem.element_bytes < wide else 0
    return held + step + widened


def executed_flops(problem: Problem, *, segment: int, levels: int) -> int:
    """Every pair of every block, the hidden ones included."""
    pairs = 0
    for head in range(problem.heads):
        for level in range(levels):
            whole, rest = divmod(len(range(head % 2**level, problem.tokens, 2**level)), segment)
            pairs += whole * segment**2 + rest**2
    forward = 4 * problem.batch * problem.head_dim * pairs
    return round(forward * 3.5) if problem.mode == "training" else forward


@variant(
    "dilated/merged",
    summary="blocks of strided rows, level after level, merged by log-sum-exp",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=(SELF_ATTENTION,),
)
def build(problem: Problem, *, segment: int, levels: int) -> Attention:
    """The blocks and the causal bias are laid out here."""
    steps = plan(problem, segment, levels)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        out: Tensor = _Dilated.apply(q, k, v, steps, levels)  # type: ignore[no-untyped-call]  # torch types no apply
        return out

    return run
