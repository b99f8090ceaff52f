"""Level after level in fused calls, each level's part spread to the finer one and merged by log-sum-exp.

Backward, the gradients of the tokens of a stretch are gathered with the weights that the joint
normaliser gives them, so that a coarse level costs no more than it did forward.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from variants.block_local.tiled import plan as near_bands
from variants.dtypes import TORCH_DTYPES
from variants.h_transformer import SELF_ATTENTION
from variants.merged_bands import Step, attend_band, band_gradients, bands_workspace_bytes, in_order, split
from variants.problem import Problem
from variants.segment_levels import Levels
from variants.tiles import (
    SCRATCH_BYTES,
    Band,
    accumulator,
    expand_to,
    flatten_heads,
    head_groups,
    heads_at_once,
    row_delta,
    visible,
)
from variants.variant import Attention, variant


def coarse_bands(problem: Problem, half: int, counts: Tensor) -> list[Band]:
    """One level: blocks of stretches with the block before and the block after, but for the parts that touch.

    `counts` holds the tokens of each stretch; the last may hold fewer, and has the log of its share as a bias.
    """
    block, size = 2 * half, len(counts)
    whole, rest = divmod(size, block)
    # Not in the half types: their rounding of the log would be the largest error of all.
    last = torch.zeros(block, block, dtype=accumulator(TORCH_DTYPES[problem.dtype]), device=problem.device)
    corner = last.clone()
    corner[:half, half:] = -torch.inf
    bands = [Band(block, block, whole - 1, 0, block, corner)] if whole > 1 else []
    if rest:
        bands.append(Band(whole * block, rest, 1, (whole - 1) * block, block, corner[:rest]))
    if problem.causal:
        return bands
    if not rest:
        whole, rest = whole - 1, block
    if whole > 1:
        bands.append(Band(0, block, whole - 1, block, block, corner.mT))
    last.copy_(corner.mT)
    last[:, rest - 1] += math.log(float(counts[-1] / counts[0]))
    return [*bands, Band((whole - 1) * block, block, 1, whole * block, rest, last[:, :rest])]


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of the near pairs and of each level, finest first; for training the same in smaller pieces."""

    levels: Levels
    near: list[Step]
    coarse: list[list[Step]]
    back: tuple[list[Band], list[list[Band]]] | None

    @classmethod
    def of(cls, problem: Problem, half: int) -> "Plan":
        """All bands of a problem."""
        levels = Levels.of(problem, 2 * half, half)
        near = near_bands(problem, 2 * half, 1)
        coarse = [coarse_bands(problem, half, counts) for counts in levels.counts]
        back = (split(near), [split(bands) for bands in coarse]) if problem.mode == "training" else None
        return cls(levels, in_order(near), [in_order(bands) for bands in coarse], back)

    def by_level(self, x: Float[Tensor, "heads tokens dim"]) -> list[Tensor]:
        """The means of the stretches of each level."""
        return list(self.levels.means(x).split([len(counts) for counts in self.levels.counts], 1))

    def queries(self, q: Float[Tensor, "heads tokens dim"], causal: bool) -> list[Tensor]:
        """What stands for the queries of each stretch: their mean; causal, the first."""
        return [q[:, :: 2 << level] for level in range(len(self.coarse))] if causal else self.by_level(q)


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, plan: Plan, causal: bool) -> Tensor:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = q.new_empty(q.shape[:3], dtype=accumulator(q.dtype))
        fq, fk, fv, fo, fl = (flatten_heads(x) for x in (q, k, v, out, lse.unsqueeze(-1)))
        for rows, kv in head_groups(q, k):
            hq = fq[rows]
            keys = expand_to(fk[kv], hq), expand_to(fv[kv], hq)
            for step in plan.near:
                attend_band(step, hq, *keys, fo[rows], fl[rows])
            if plan.coarse:
                coarse_k, coarse_v = ([expand_to(x, hq) for x in plan.by_level(flat[kv])] for flat in (fk, fv))
                far, far_lse = _far_part(plan, plan.queries(hq, causal), coarse_k, coarse_v)
                _merge(fo[rows], fl[rows], far, far_lse)
        if plan.back is not None:
            ctx.save_for_backward(q, k, v, out, lse)
            ctx.plan = plan, causal  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        plan, causal = ctx.plan  # type: ignore[attr-defined]  # set in forward
        dq, dk, dv = (torch.zeros(x.shape, dtype=lse.dtype, device=q.device) for x in (q, k, v))
        fq, fk, fv, fg, fo, fl = (flatten_heads(x) for x in (q, k, v, grad, out, lse.unsqueeze(-1)))
        fdq, fdk, fdv = (flatten_heads(x) for x in (dq, dk, dv))
        for rows, kv in head_groups(q, k):
            inputs = fq[rows], fk[kv], fv[kv]
            slopes = fg[rows], fl[rows], row_delta(fg[rows], fo[rows]).unsqueeze(-1)
            _add_gradients(plan, causal, inputs, slopes, (fdq[rows], fdk[kv], fdv[kv]))
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


def _far_part(plan: Plan, q: list[Tensor], k: list[Tensor], v: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The joint part of all coarse levels and its log-sum-exp, for each stretch of the finest of them."""
    above: tuple[Tensor, Tensor] | None = None
    for level in reversed(range(len(plan.coarse))):
        out = torch.zeros(q[level].shape, dtype=q[level].dtype, device=q[level].device)
        lse = out.new_full((*out.shape[:2], 1), -torch.inf, dtype=accumulator(out.dtype))
        for step in plan.coarse[level]:
            attend_band(step, q[level], k[level], v[level], out, lse)
        out = out.to(lse.dtype)  # many levels are merged into one
        lse += (level + 1) * math.log(2)
        if above is not None:
            _merge(out, lse, *above)
        above = out, lse
    assert above is not None
    return above


def _merge(out: Tensor, lse: Tensor, above: Tensor, above_lse: Tensor) -> None:
    """Merge the parts of stretches, of two rows each, into their rows of `out` and `lse`."""
    spread, spread_lse = (x.repeat_interleave(2, 1)[:, : out.shape[1]] for x in (above, above_lse))
    joint = torch.logaddexp(lse, spread_lse)
    share = torch.exp(lse - visible(joint))  # 0 where neither part saw a key
    out.copy_(spread.lerp_(out.to(spread.dtype), share))
    lse.copy_(joint)


def _add_gradients(
    plan: Plan, causal: bool, inputs: tuple[Tensor, ...], slopes: tuple[Tensor, ...], grads: tuple[Tensor, ...]
) -> None:
    """The gradients of a group of heads, added to `grads`; `slopes`: gradient, log-sum-exp and delta of each row."""
    q, k, v = inputs
    grad, lse, delta = slopes
    near, coarse = plan.back or ([], [])
    keys = expand_to(k, q), expand_to(v, q)
    for band in near:
        band_gradients(band, (q, grad, lse, delta), keys, *grads)
    if not coarse:
        return
    levels = [plan.queries(q, causal), plan.by_level(k), plan.by_level(v)]
    totals = [[torch.zeros(x.shape, dtype=lse.dtype, device=q.device) for x in parts] for parts in levels]
    grad = grad.to(lse.dtype)
    for level, bands in enumerate(coarse):
        grad, lse, delta = _gathered(grad, lse, delta)
        lq, lk, lv = (parts[level] for parts in levels)
        shift = lse - (level + 1) * math.log(2)
        for band in bands:
            keys = expand_to(lk, lq), expand_to(lv, lq)
            band_gradients(band, (lq, grad, shift, delta), keys, *(total[level] for total in totals))
    if causal:
        for level, part in enumerate(totals.pop(0)):
            grads[0][:, :: 2 << level] += part
        grads = grads[1:]
    for gradient, parts in zip(grads, totals, strict=True):
        plan.levels.add_gradient(gradient, torch.cat(parts, 1))


def _gathered(grad: Tensor, lse: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of a stretch as one: normalised by the smallest of their two sums, so that no weight exceeds one."""
    if odd := lse.shape[1] % 2:
        grad, delta = (functional.pad(x, (0, 0, 0, odd)) for x in (grad, delta))
        lse = functional.pad(lse, (0, 0, 0, odd), value=torch.inf)
    pairs = lse.unflatten(1, (-1, 2))
    least = pairs.amin(2)
    share = torch.exp(least.unsqueeze(2) - pairs)
    grad, delta = ((x.unflatten(1, (-1, 2)) * share).sum(2) for x in (grad, delta))
    return grad, least, delta


def workspace_bytes(problem: Problem, *, half_block: int) -> int:
    """What the near bands need, and the means, parts and merges of all levels of a step's heads."""
    plan = Plan.of(problem.with_(device="cpu"), half_block)
    near = [step.band for step in plan.near]
    total = bands_workspace_bytes(problem, near, plan.back and plan.back[0])
    if not plan.coarse:
        return total
    wide, heads = max(4, problem.element_bytes), heads_at_once(problem)
    masks = 6 * len(plan.coarse) * (2 * half_block) ** 2 * wide
    row = (problem.head_dim + 3) * wide
    queries, keys = heads * problem.tokens * row, heads // problem.group * problem.kv_tokens * row
    if problem.mode != "training":
        return max(total, 7 * queries // 2 + 2 * keys) + masks + SCRATCH_BYTES
    widened = problem.input_output_bytes // 2 * wide // problem.element_bytes if problem.element_bytes < wide else 0
    return max(total, widened + 11 * queries // 2 + 4 * keys) + masks + SCRATCH_BYTES


def executed_flops(problem: Problem, *, half_block: int) -> int:
    """Every pair of every tile, the hidden ones included."""
    plan = Plan.of(problem.with_(device="cpu"), half_block)
    bands = [step.band for steps in (plan.near, *plan.coarse) for step in steps]
    pairs = sum(band.tiles * band.rows * band.keys for band in bands)
    forward = 4 * problem.batch * problem.heads * problem.head_dim * pairs
    return round(forward * 3.5) if problem.mode == "training" else forward


@variant(
    "h_transformer/merged",
    summary="fused tiles at each level, spread to the finer level and merged by log-sum-exp",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=(SELF_ATTENTION,),
)
def build(problem: Problem, *, half_block: int) -> Attention:
    """The bands of all levels are laid out here."""
    plan = Plan.of(problem, half_block)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        out: Tensor = _Merged.apply(q, k, v, plan, problem.causal)  # type: ignore[no-untyped-call]  # torch types no apply
        return out

    return run
