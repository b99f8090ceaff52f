"""Causal attention to means of spans of keys, and the blocks of keys that it gives most weight to.

Weights that decide are float64 for every dtype: another block would be another function.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from variants.kv_groups import by_group
from variants.powers import exp_
from variants.problem import Problem
from variants.tiles import accumulator, attend_gradients, row_delta
from variants.top_k.chunked import select

ELEMENTS = 2**17  # weights of a chunk in float64: 1 MiB


@dataclass(frozen=True, slots=True)
class Spans:
    """A span of `strides` strides begins at each stride; a block of keys is `merged` strides."""

    stride: int
    strides: int
    merged: int

    def count(self, keys: int) -> int:
        """Spans that lie wholly within the first keys."""
        return max(0, keys // self.stride - self.strides + 1)

    def means(self, x: Float[Tensor, "keys dim"]) -> Float[Tensor, "spans dim"]:
        """The mean of each span, in float64."""
        count = self.count(len(x))
        if not count:
            return x[:0].double()
        whole: Tensor = x[: len(x) // self.stride * self.stride].double().unflatten(0, (-1, self.stride))
        sums = whole.sum(1)
        spans = torch.stack([sums[start : start + count] for start in range(self.strides)]).sum(0)
        return spans / (self.stride * self.strides)

    def spread(self, x: Float[Tensor, "spans dim"], keys: Float[Tensor, "keys dim"]) -> None:
        """Add what belongs to the means to each of their keys, in its share: the adjoint of `means`."""
        sums = functional.pad(x, (0, 0, 0, self.strides - 1))
        for start in range(1, self.strides):
            sums[start : start + len(x)] += x
        each = sums / (self.stride * self.strides)
        keys[: len(each) * self.stride].unflatten(0, (-1, self.stride)).add_(each.unsqueeze(1))

    def by_block(self, weights: Float[Tensor, "rows spans"], blocks: int) -> Float[Tensor, "rows blocks"]:
        """What the first blocks have of the spans' weights, as often as they share a stride."""
        places = blocks * self.merged
        padded = functional.pad(weights, (self.strides - 1, max(0, places - weights.shape[1])))
        by_stride = torch.stack([padded[:, start : start + places] for start in range(self.strides)]).sum(0)
        summed: Tensor = by_stride.unflatten(1, (blocks, self.merged)).sum(2)
        return summed


def chunks(problem: Problem, spans: Spans) -> list[tuple[slice, int]]:
    """Slices of the queries that see a key, each with the spans that its last sees."""
    step = chunk_rows(problem, spans)
    first = max(0, -problem.offset)
    ends = [(start, min(start + step, problem.tokens)) for start in range(first, problem.tokens, step)]
    return [(slice(start, end), spans.count(end + problem.offset)) for start, end in ends]


def chunk_rows(problem: Problem, spans: Spans) -> int:
    """Queries of a chunk."""
    return max(16, ELEMENTS // max(1, problem.group * spans.count(problem.kv_tokens)))


def hidden_spans(rows: slice, seen: int, problem: Problem, spans: Spans, dtype: torch.dtype) -> Tensor:
    """-inf for spans that end after the query, (rows, seen)."""
    position = torch.arange(rows.start, rows.stop, device=problem.device) + problem.offset
    last = torch.arange(seen, device=problem.device) * spans.stride + spans.stride * spans.strides - 1
    bias = torch.zeros(len(position), seen, dtype=dtype, device=problem.device)
    return bias.masked_fill_(last > position[:, None], -torch.inf)


class _Compressed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, problem: Problem, spans: Spans, selected: int
    ) -> tuple[Tensor, Tensor]:
        wide = accumulator(q.dtype)
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        lse = torch.zeros(q.shape[:3], dtype=wide, device=q.device)
        blocks = problem.kv_tokens // (spans.stride * spans.merged)
        shape = problem.batch * problem.kv_heads, problem.tokens, min(selected, max(0, blocks - 1))
        picked = torch.full(shape, blocks, dtype=torch.int64, device=q.device)
        fq, fo, fl = (by_group(x, problem.kv_heads) for x in (q, out, lse))
        fk, fv = (x.flatten(0, 1) for x in (k, v))
        for head in range(len(fk)):
            keys = spans.means(fk[head]).mul_(q.shape[3] ** -0.5)
            values = spans.means(fv[head]).to(wide)
            for rows, seen in chunks(problem, spans):
                scores = fq[head, :, rows].double() @ keys[:seen].T
                scores += hidden_spans(rows, seen, problem, spans, scores.dtype)
                weights, line = _softmax(scores)
                fo[head, :, rows] = weights.to(wide) @ values[:seen]
                fl[head, :, rows] = line
                if shape[2]:
                    picked[head, rows] = _pick(weights.sum(0), rows, problem, spans, shape[2])
        ctx.mark_non_differentiable(picked)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan = problem, spans  # type: ignore[attr-defined]  # the context takes attributes
        return out, picked

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        problem, spans = ctx.plan  # type: ignore[attr-defined]  # set in forward
        wide, group = lse.dtype, problem.group
        dq, dk, dv = (torch.zeros(x.shape, dtype=wide, device=q.device) for x in (q, k, v))
        fq, fg, fo, fl, fdq = (by_group(x, problem.kv_heads) for x in (q, grad, out, lse, dq))
        fk, fv, fdk, fdv = (x.flatten(0, 1) for x in (k, v, dk, dv))
        for head in range(len(fk)):
            keys, values = (spans.means(x[head]).to(wide) for x in (fk, fv))
            sums = torch.zeros_like(keys), torch.zeros_like(values)
            for rows, seen in chunks(problem, spans):
                bias = hidden_spans(rows, seen, problem, spans, wide)
                slope = fg[head, :, rows]
                delta = row_delta(slope, fo[head, :, rows])
                short = keys[:seen].expand(group, -1, -1), values[:seen].expand(group, -1, -1)
                tq, *parts = attend_gradients(fq[head, :, rows], *short, bias, slope, fl[head, :, rows], delta)
                fdq[head, :, rows] = tq
                for total, part in zip(sums, parts, strict=True):
                    total[:seen] += part.sum(0)
            for total, tokens in zip(sums, (fdk[head], fdv[head]), strict=True):
                if len(total):
                    spans.spread(total, tokens)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax in place and its log-sum-exp; of nothing zero weights and 0."""
    if not scores.shape[-1]:
        return scores, scores.sum(-1)
    top = scores.amax(-1, keepdim=True)
    top.masked_fill_(top == -torch.inf, 0.0)
    weights = exp_(scores.sub_(top))
    total = weights.sum(-1, keepdim=True)
    total.masked_fill_(total == 0, 1.0)
    return weights.div_(total), (total.log() + top).squeeze(-1)


def _pick(
    weights: Float[Tensor, "rows spans"], rows: slice, problem: Problem, spans: Spans, selected: int
) -> Int64[Tensor, "rows selected"]:
    """The blocks of most weight but for the first, the own and the one before; the number of blocks stands for none."""
    size = spans.stride * spans.merged
    blocks = problem.kv_tokens // size
    own = (torch.arange(rows.start, rows.stop, device=weights.device) + problem.offset) // size
    last = int((rows.stop - 1 + problem.offset) // size) - 1
    picked = torch.full((len(own), selected), blocks, dtype=torch.int64, device=weights.device)
    if last <= 1:
        return picked
    shares = spans.by_block(weights, last)
    number = torch.arange(last, device=weights.device)
    shares.masked_fill_((number == 0) | (number >= own[:, None] - 1), -torch.inf)
    values, chosen = select(shares, min(selected, last), 1)
    picked[:, : chosen.shape[1]] = torch.where(values > -torch.inf, chosen, blocks)
    return picked


def attend_compressed(
    q: Float[Tensor, "batch heads tokens head_dim"],
    k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    problem: Problem,
    spans: Spans,
    selected: int,
) -> tuple[Float[Tensor, "batch heads tokens head_dim"], Int64[Tensor, "kv_rows tokens selected"]]:
    """Softmax over the means of the spans that end at or before a query, and the blocks of most weight."""
    out: tuple[Tensor, Tensor] = _Compressed.apply(q, k, v, problem, spans, selected)  # type: ignore[no-untyped-call]  # torch types no apply
    return out


def compressed_workspace_bytes(problem: Problem, spans: Spans, selected: int) -> int:
    """One head's means, a chunk's weights and what is made of them; in training wide gradients of all heads."""
    wide, size, dim = max(4, problem.element_bytes), problem.element_bytes, problem.head_dim
    count = spans.count(problem.kv_tokens)
    rows = min(problem.tokens, chunk_rows(problem, spans))
    means = dim * (8 * problem.kv_tokens + 8 * (spans.strides + 4) * count)
    blocks = problem.kv_tokens // (spans.stride * spans.merged)
    shares = 8 * rows * (count * (spans.strides + 4) + 4 * blocks + 6 * selected)
    weights = problem.group * rows * (count * (16 + wide) + dim * (8 + 2 * wide))
    lines = problem.batch * problem.heads * problem.tokens * wide
    picked = 8 * problem.batch * problem.kv_heads * problem.tokens * min(selected, blocks)
    held = lines + picked + problem.query_bytes
    if problem.mode != "training":
        return held + means + weights + shares
    back = problem.group * wide * (rows * (3 * count + 4 * dim) + 3 * count * dim)
    widened = problem.input_output_bytes // 2 * wide // size if size < wide else 0
    return held + means + max(weights + shares, back + widened)
