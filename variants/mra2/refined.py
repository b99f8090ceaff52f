"""The refined blocks gathered row of blocks by row of blocks, merged with the block means by log-sum-exp.

The ranking is in float64 for every dtype: another pick would be another function.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.mra2 import ENCODERS_ONLY, refined_blocks
from variants.picked_blocks import Blocks, chunks, filling_bias, gathered, pick, places
from variants.powers import exp_
from variants.problem import Problem
from variants.tiles import (
    CACHE_ELEMENTS,
    SCRATCH_BYTES,
    accumulator,
    attend,
    attend_gradients,
    flatten_heads,
    head_groups,
    heads_at_once,
    row_delta,
    scaled_scores,
    visible,
)
from variants.variant import Attention, variant


class _Refined(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, axes: tuple[Blocks, Blocks], refined: int, training: bool
    ) -> Tensor:
        count = refined_blocks(len(axes[0].counts), len(axes[1].counts), refined)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = q.new_empty(q.shape[:3], dtype=accumulator(q.dtype))
        picked = q.new_empty((*q.shape[:2], *(len(axis.counts) for axis in axes)), dtype=torch.bool)
        fq, fk, fv, fo, fl = (flatten_heads(x) for x in (q, k, v, out, lse.unsqueeze(-1)))
        fp = picked.flatten(0, 1)
        for rows, kv in head_groups(q, k):
            mean_q, mean_k = (axis.means(x, torch.float64) for axis, x in zip(axes, (fq[rows], fk[kv]), strict=True))
            fp[rows] = pick(mean_q, mean_k, count)
            means = mean_q.to(lse.dtype), mean_k.to(lse.dtype), axes[1].means(fv[kv], lse.dtype)
            parts = _coarse_part(means, coarse_bias(fp[rows], axes[1], lse.dtype))
            tiles = axes[0].split(fq[rows]), axes[1].split(fk[kv]), axes[1].split(fv[kv])
            own, own_lse = _merged(tiles, fp[rows], axes[1], *parts)
            fo[rows], fl[rows] = (x.flatten(1, 2)[:, : q.shape[2]] for x in (own, own_lse))
        if training:
            ctx.save_for_backward(q, k, v, out, lse, picked)
            ctx.axes = axes  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, picked = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        axes: tuple[Blocks, Blocks] = ctx.axes  # type: ignore[attr-defined]  # set in forward
        dq, dk, dv = (torch.zeros(x.shape, dtype=lse.dtype, device=q.device) for x in (q, k, v))
        fq, fk, fv, fg, fo, fl = (flatten_heads(x) for x in (q, k, v, grad, out, lse.unsqueeze(-1)))
        fdq, fdk, fdv = (flatten_heads(x) for x in (dq, dk, dv))
        fp = picked.flatten(0, 1)
        for rows, kv in head_groups(q, k):
            inputs = fq[rows], fk[kv], fv[kv]
            # A filled-up row has no gradient and an infinite normaliser: no weight.
            slopes = (
                axes[0].split(fg[rows].to(lse.dtype)),
                axes[0].split(fl[rows], torch.inf),
                axes[0].split(row_delta(fg[rows], fo[rows]).unsqueeze(-1)),
            )
            grads = fdq[rows], fdk[kv], fdv[kv]
            _add_coarse_gradients(axes, inputs, fp[rows], slopes, grads)
            _add_refined_gradients(axes, inputs, fp[rows], slopes, grads)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def coarse_bias(exact: Tensor, keys: Blocks, dtype: torch.dtype) -> Float[Tensor, "heads rows columns"]:
    """The log of each block's tokens; -inf where it is refined."""
    return torch.where(exact, -torch.inf, keys.counts.T.to(dtype).log())


def _coarse_part(means: tuple[Tensor, Tensor, Tensor], bias: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of block means to block means, and its log-sum-exp."""
    q, k, v = means
    scores = scaled_scores(q, k, bias)
    lse = scores.logsumexp(-1, keepdim=True)
    return exp_(scores.sub_(visible(lse))) @ v, lse


def _merged(
    tiles: tuple[Tensor, Tensor, Tensor], exact: Tensor, keys: Blocks, coarse: Tensor, coarse_lse: Tensor
) -> tuple[Tensor, Tensor]:
    """The output of every token and its log-sum-exp, in blocks: the refined blocks merged with the coarse part."""
    q, k, v = tiles
    out = coarse.to(q.dtype).unsqueeze(2).repeat(1, 1, q.shape[2], 1)
    lse = coarse_lse.unsqueeze(2).repeat(1, 1, q.shape[2], 1)
    every = k.flatten(0, 1), v.flatten(0, 1)
    for own, row, columns in chunks(exact, k.shape[2] * q.shape[3]):
        place = places(own, columns, k)
        chosen_k, chosen_v = (gathered(x, place) for x in every)
        tile, line = attend(q[own, row].unsqueeze(0), chosen_k, chosen_v, filling_bias(columns, keys, lse.dtype))
        line, behind = line[0].unsqueeze(-1), lse[own, row]
        joint = torch.logaddexp(line, behind)
        share = torch.exp(line - joint).to(q.dtype)
        out[own, row] = torch.lerp(out[own, row], tile[0], share)
        lse[own, row] = joint
    return out, lse


def _add_coarse_gradients(
    axes: tuple[Blocks, Blocks],
    inputs: tuple[Tensor, ...],
    exact: Tensor,
    slopes: tuple[Tensor, ...],
    grads: tuple[Tensor, ...],
) -> None:
    """Through the block means: the rows of a block as one, normalised by the smallest of their sums."""
    grad, lse, delta = slopes
    wide = lse.dtype
    least = lse.amin(2)
    share = torch.exp(least.unsqueeze(2) - lse)
    grad, delta = ((x * share).sum(2) for x in (grad, delta))
    q, k, v = (axis.means(x, wide) for axis, x in zip((axes[0], axes[1], axes[1]), inputs, strict=True))
    parts = attend_gradients(q, k, v, coarse_bias(exact, axes[1], wide), grad, least.squeeze(-1), delta.squeeze(-1))
    for axis, total, part in zip((axes[0], axes[1], axes[1]), grads, parts, strict=True):
        axis.add_gradient(total, part if len(part) == len(total) else part.sum(0, keepdim=True))


def _add_refined_gradients(
    axes: tuple[Blocks, Blocks],
    inputs: tuple[Tensor, ...],
    exact: Tensor,
    slopes: tuple[Tensor, ...],
    grads: tuple[Tensor, ...],
) -> None:
    """Through the refined blocks: their keys' gradients are added where they were gathered."""
    tiles = [axis.split(x) for axis, x in zip((axes[0], axes[1], axes[1]), inputs, strict=True)]
    totals = [torch.zeros(x.shape, dtype=slopes[1].dtype, device=x.device) for x in tiles]
    q, k, v = tiles
    every, flat = (k.flatten(0, 1), v.flatten(0, 1)), (totals[1].flatten(0, 1), totals[2].flatten(0, 1))
    for own, row, columns in chunks(exact, k.shape[2] * (4 * q.shape[3] + 2 * q.shape[2])):
        place = places(own, columns, k)
        chosen_k, chosen_v = (gathered(x, place)[0] for x in every)
        bias = filling_bias(columns, axes[1], slopes[1].dtype)
        grad, lse, delta = (x[own, row] for x in slopes)
        tq, *parts = attend_gradients(
            q[own, row],
            chosen_k,
            chosen_v,
            None if bias is None else bias[0],
            grad,
            lse.squeeze(-1),
            delta.squeeze(-1),
        )
        totals[0][own, row] = tq
        for total, part in zip(flat, parts, strict=True):
            total.index_add_(0, place.flatten(), part.unflatten(1, (columns.shape[1], -1)).flatten(0, 1))
    for gradient, total in zip(grads, totals, strict=True):
        gradient.add_(total.flatten(1, 2)[:, : gradient.shape[1]])


def workspace_bytes(problem: Problem, *, block: int, refined: int) -> int:
    """A step's means, ranks, filled-up inputs and blocks of the output, and its gathered blocks; the log-sum-exps."""
    wide, dim, heads = max(4, problem.element_bytes), problem.head_dim, heads_at_once(problem)
    rows, columns = (-(-tokens // block) for tokens in (problem.tokens, problem.kv_tokens))
    matrix = heads * rows * columns
    held = problem.batch * problem.heads * (problem.tokens * wide + rows * columns)
    own = heads * rows * min(block, problem.tokens)
    seen = heads // problem.group * columns * min(block, problem.kv_tokens)
    means = heads * (rows + 2 * columns) * dim * (8 + wide)
    filled = problem.tokens % block or problem.kv_tokens % block
    inputs = (own + 2 * seen) * dim * problem.element_bytes if filled else 0
    chunk = 4 * max(CACHE_ELEMENTS, min(refined, columns) * block * dim) * wide
    forward = means + inputs + own * (dim * problem.element_bytes + 2 * wide) + max(matrix * 34, chunk)
    if problem.mode != "training":
        return held + forward + SCRATCH_BYTES
    widened = problem.input_output_bytes // 2 * wide // problem.element_bytes if problem.element_bytes < wide else 0
    coarse = 5 * matrix * wide
    back = means + inputs + (4 * own + 2 * seen) * dim * wide + max(coarse, chunk)
    return held + widened + max(forward, back) + SCRATCH_BYTES


def executed_flops(problem: Problem, *, block: int, refined: int) -> int:
    """Every pair of the refined blocks and of the means, which are also ranked."""
    rows, columns = (-(-tokens // block) for tokens in (problem.tokens, problem.kv_tokens))
    pairs = refined_blocks(rows, columns, refined) * min(block, problem.tokens) * min(block, problem.kv_tokens)
    one_pair = problem.batch * problem.heads * problem.head_dim
    ranks = 2 * one_pair * rows * columns
    return ranks + round(4 * one_pair * (pairs + rows * columns) * (3.5 if problem.mode == "training" else 1))


@variant(
    "mra2/refined",
    summary="refined blocks gathered into fused tiles, merged with products of block means by log-sum-exp",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=(ENCODERS_ONLY,),
)
def build(problem: Problem, *, block: int, refined: int) -> Attention:
    """Nothing but the blocks' sizes can be laid out here: what is refined depends on the inputs."""
    axes = Blocks.of(problem.tokens, block, problem.device), Blocks.of(problem.kv_tokens, block, problem.device)
    training = problem.mode == "training"

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        if not problem.tokens or not problem.kv_tokens:
            return q * (k.sum() + v.sum())  # nothing to see: zeros, which gradients reach
        out: Tensor = _Refined.apply(q, k, v, axes, refined, training)  # type: ignore[no-untyped-call]  # torch types no apply
        return out

    return run
