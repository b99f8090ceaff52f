"""Exact attention over a union of disjoint bands of pairs, merged by log-sum-exp; gradients band by band.

Whatever set of pairs a definition lets through, it is cut into bands that do not overlap. A band
of one tile is a plain rectangle: many rows over the same keys.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.powers import exp_
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
    row_delta,
    visible,
)

NARROW = 16  # keys: with fewer than these two plain products are faster than the fused kernel and a merge


@dataclass(frozen=True, slots=True)
class Step:
    """A band, and whether it is the first to write each of its rows: then there is nothing to merge.

    `blind` (rows, 1) marks rows that see no key of the band; None where there are none.
    """

    band: Band
    first: bool
    blind: Tensor | None


def in_order(bands: list[Band]) -> list[Step]:
    """The bands as steps, in the order given."""
    written: list[tuple[int, int]] = []
    steps = []
    for band in bands:
        start, stop = band.first_row, band.first_row + band.rows * band.tiles
        first = all(stop <= low or high <= start for low, high in written)
        steps.append(Step(band, first, blind_rows(band)))
        if first:
            written.append((start, stop))
    return steps


def blind_rows(band: Band) -> Tensor | None:
    """The rows whose every bias is -inf: for them the CPU's kernel gives a log-sum-exp of 0."""
    if band.bias is None or not bool((blind := (band.bias == -torch.inf).all(-1, keepdim=True)).any()):
        return None
    return blind


def split(bands: list[Band]) -> list[Band]:
    """The same pairs in pieces whose scores of one head fit the cache: a few tiles, or a few rows of one tile."""
    elements = CACHE_ELEMENTS
    pieces = []
    for band in bands:
        if band.tiles > 1:
            pieces += band.parts(max(1, elements // max(1, band.rows * band.keys)))
            continue
        rows = max(1, elements // max(1, band.keys))
        for start in range(0, band.rows, rows):
            stop = min(start + rows, band.rows)
            bias = None if band.bias is None else band.bias[start:stop]
            pieces.append(replace(band, first_row=band.first_row + start, rows=stop - start, bias=bias))
    return pieces


def attention(
    q: Float[Tensor, "batch heads tokens head_dim"],
    k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    forth: list[Step],
    back: list[Band] | None,
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Softmax over the pairs of all bands; zero in rows that no band holds. Without `back` no gradients."""
    return attention_and_lse(q, k, v, forth, back)[0]


def attention_and_lse(
    q: Float[Tensor, "batch heads tokens head_dim"],
    k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    forth: list[Step],
    back: list[Band] | None,
) -> tuple[Float[Tensor, "batch heads tokens head_dim"], Float[Tensor, "batch heads tokens"]]:
    """The same with the log-sum-exp of each row, which has gradients too; -inf in rows that no band holds."""
    out, lse = _Merged.apply(q, k, v, forth, back)  # type: ignore[no-untyped-call]  # torch types no apply
    return out, lse


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, forth: list[Step], back: list[Band] | None
    ) -> tuple[Tensor, Tensor]:
        # Rows that no band writes first must begin at zero, with a log-sum-exp of -inf.
        whole = sum(step.band.rows * step.band.tiles for step in forth if step.first) == q.shape[2]
        out = (torch.empty_like if whole else torch.zeros_like)(q, memory_format=torch.contiguous_format)
        lse = q.new_full(q.shape[:3], -torch.inf, dtype=accumulator(q.dtype))
        fq, fk, fv, fo, fl = (flatten_heads(x) for x in (q, k, v, out, lse.unsqueeze(-1)))
        for rows, kv in head_groups(q, k):
            hq = fq[rows]
            hk, hv = expand_to(fk[kv], hq), expand_to(fv[kv], hq)
            for step in forth:
                attend_band(step, hq, hk, hv, fo[rows], fl[rows])
        if back is not None:
            ctx.save_for_backward(q, k, v, out, lse)
            ctx.back = back  # type: ignore[attr-defined]  # the context takes attributes
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        wide = accumulator(q.dtype)
        dq, dk, dv = (torch.zeros(x.shape, dtype=wide, device=q.device) for x in (q, k, v))
        fq, fk, fv, fg, fo = (flatten_heads(x) for x in (q, k, v, grad, out))
        fl, fgl = (flatten_heads(x.unsqueeze(-1)) for x in (lse, grad_lse))
        fdq, fdk, fdv = (flatten_heads(x) for x in (dq, dk, dv))
        for rows, kv in head_groups(q, k):
            hq = fq[rows]
            keys = expand_to(fk[kv], hq), expand_to(fv[kv], hq)
            # A score's gradient is weight * (grad·v - grad·out + grad_lse).
            delta = row_delta(fg[rows], fo[rows]).unsqueeze(-1).sub_(fgl[rows])
            for band in ctx.back:  # type: ignore[attr-defined]  # set in forward
                band_gradients(band, (hq, fg[rows], fl[rows], delta), keys, fdq[rows], fdk[kv], fdv[kv])
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


def attend_band(step: Step, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> None:
    """One band's attention, merged into its rows of `out` and `lse`."""
    band = step.band
    target, line = band.query_tiles(out), band.query_tiles(lse)
    if band.tiles == 1 and band.keys <= NARROW and not step.first and q.dtype == lse.dtype:
        _add_few_keys(band, q, k, v, target[:, 0], line[:, 0])
        return
    tile, tile_lse = attend(band.query_tiles(q), band.key_tiles(k), band.key_tiles(v), band.bias)
    tile_lse = tile_lse.unsqueeze(-1)
    if step.blind is not None:
        tile_lse = tile_lse.masked_fill(step.blind, -torch.inf)
    if step.first:
        target.copy_(tile)
        line.copy_(tile_lse)
        return
    joint = torch.logaddexp(line, tile_lse)
    share = torch.exp(tile_lse - visible(joint))  # 0 where neither part saw a key
    torch.lerp(target, tile, share.to(tile.dtype), out=target)
    line.copy_(joint)


def _add_few_keys(band: Band, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> None:
    """A rectangle of a few keys, added to its rows of `out` and `lse` without an output of its own.

    Keys come before rows: a last axis of a few elements would be slow to reduce.
    """
    keys = band.key_tiles(k)[:, 0] * q.shape[-1] ** -0.5
    scores = torch.bmm(keys, band.query_tiles(q)[:, 0].mT)
    if band.bias is not None:
        scores.add_(band.bias.mT)
    joint = torch.logaddexp(lse.mT, scores.logsumexp(1, keepdim=True))
    shift = visible(joint)
    out.mul_(torch.exp(lse - shift.mT)).baddbmm_(exp_(scores.sub_(shift)).mT, band.key_tiles(v)[:, 0])
    lse.copy_(joint.mT)


def band_gradients(
    band: Band, inputs: tuple[Tensor, ...], keys: tuple[Tensor, Tensor], dq: Tensor, dk: Tensor, dv: Tensor
) -> None:
    """One band's share of the gradients, added to them."""
    q, grad, lse, delta = (band.query_tiles(x) for x in inputs)
    k, v = (band.key_tiles(x) for x in keys)
    tq, tk, tv = attend_gradients(q, k, v, band.bias, grad, lse.squeeze(-1), delta.squeeze(-1))
    band.query_tiles(dq).add_(tq)
    if tk.shape[0] != dk.shape[0]:  # grouped queries share their keys
        tk, tv = tk.sum(0, keepdim=True), tv.sum(0, keepdim=True)
    band.add_to_keys(dk, tk)
    band.add_to_keys(dv, tv)


def bands_workspace_bytes(problem: Problem, forth: list[Band], back: list[Band] | None) -> int:
    """The biases, the log-sum-exp and the largest band's output; in training the widest step of the backward pass."""
    wide = max(4, problem.element_bytes)
    heads = heads_at_once(problem)
    rows = max((band.rows * band.tiles for band in forth), default=0)
    lse = wide * problem.batch * problem.heads * problem.tokens
    forward = heads * (rows * (problem.head_dim * problem.element_bytes + 5 * wide) + _packed_bytes(problem, forth))
    held = bias_bytes(forth) + lse + SCRATCH_BYTES
    if back is None:
        return held + forward
    step = (
        heads * wide * (problem.tokens + max((_gradient_elements(band, problem.head_dim) for band in back), default=0))
    )
    widened = problem.input_output_bytes // 2 * wide // problem.element_bytes if problem.element_bytes < wide else 0
    return held + bias_bytes(back) + widened + max(forward, step)


def _packed_bytes(problem: Problem, bands: list[Band]) -> int:
    """The CPU's kernel repacks the keys and values of long enough tiles in the half types."""
    if problem.element_bytes > 2:
        return 0
    keys = [band.tiles * (band.keys + 64) for band in bands if min(band.rows, band.keys) >= 64]
    return 2 * problem.head_dim * problem.element_bytes * max(keys, default=0)


def _gradient_elements(band: Band, dim: int) -> int:
    """Elements that one head's gradients of a band hold at once."""
    return band.tiles * (2 * band.rows * band.keys + dim * (2 * band.rows + 3 * band.keys))


def bias_bytes(bands: list[Band]) -> int:
    """Bytes of the biases that the bands hold; pieces of one bias count once."""
    held = {
        band.bias.untyped_storage().data_ptr(): band.bias.untyped_storage().nbytes()
        for band in bands
        if band.bias is not None
    }
    return sum(held.values())
