"""One product and sum of shifted rows for each tap, a chunk of one head at a time."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.depthwise_convolution import filters
from variants.dtypes import TORCH_DTYPES
from variants.problem import Problem
from variants.tiles import CACHE_ELEMENTS, SCRATCH_BYTES, accumulator, flatten_heads
from variants.variant import Attention, variant


def spans(problem: Problem, taps: int) -> Iterator[tuple[int, slice, slice]]:
    """Each tap with the rows of a chunk that it reaches and the keys that it takes for them."""
    shift = problem.offset + (0 if problem.causal else (taps - 1) // 2)
    step = max(1, CACHE_ELEMENTS // (2 * problem.head_dim))
    for start in range(0, problem.tokens, step):
        stop = min(start + step, problem.tokens)
        for tap in range(taps):
            first, last = max(start, tap - shift), min(stop, problem.kv_tokens + tap - shift)
            if first < last:
                yield tap, slice(first, last), slice(first - tap + shift, last - tap + shift)


class _Shifted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, taps: Tensor, problem: Problem) -> Tensor:
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        fv, fo = flatten_heads(v), flatten_heads(out)
        plan = list(spans(problem, taps.shape[1]))
        first = min((keys.start for _, _, keys in plan), default=0)  # in decode few values are reached
        for head in range(fo.shape[0]):
            own = taps[head % problem.heads]
            values, sums = fv[head // problem.group, first:].to(taps.dtype), fo[head].to(taps.dtype)
            for tap, rows, keys in plan:
                sums[rows].addcmul_(values[keys.start - first : keys.stop - first], own[tap])
            if sums.dtype != out.dtype:
                fo[head] = sums
        ctx.save_for_backward(q, k, v, taps)
        ctx.plan = problem, plan  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, taps = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        problem, plan = ctx.plan  # type: ignore[attr-defined]  # set in forward
        dv = torch.zeros(v.shape, dtype=taps.dtype, device=v.device)
        fg, fdv = flatten_heads(grad), flatten_heads(dv)
        for head in range(fg.shape[0]):
            own, slope = taps[head % problem.heads], fg[head].to(taps.dtype)
            for tap, rows, keys in plan:
                fdv[head // problem.group, keys].addcmul_(slope[rows], own[tap])
        return torch.zeros_like(q), torch.zeros_like(k), dv.to(v.dtype), None, None


def workspace_bytes(problem: Problem, *, width: int) -> int:
    """The filters, and one head widened; in training wide gradients of the values."""
    wide = max(4, problem.element_bytes)
    held = problem.heads * width * problem.head_dim * wide + SCRATCH_BYTES
    if problem.element_bytes == wide:
        return held
    head = 2 * (problem.tokens + problem.kv_tokens) * problem.head_dim * wide
    widened = problem.key_bytes // problem.element_bytes * wide if problem.mode == "training" else 0
    return held + head + widened


@variant(
    "depthwise_convolution/shifted",
    summary="a product and sum of shifted rows for each tap",
    devices=("cpu", "cuda"),
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
)
def build(problem: Problem, *, width: int) -> Attention:
    """The filters are drawn here, and cast once."""
    wide = accumulator(TORCH_DTYPES[problem.dtype])
    taps = filters(problem.heads, width, problem.head_dim).to(problem.device, wide)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        out: Tensor = _Shifted.apply(q, k, v, taps, problem)  # type: ignore[no-untyped-call]  # torch types no apply
        return out

    return run
