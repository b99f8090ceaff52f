"""A differentiable function of one head, applied head by head; gradients by recomputation, one head at a time."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.tiles import flatten_heads

OneHead = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of q, k and v of one head, (tokens, dim) each, in the dtype that `head_by_head` is told."""


def head_by_head(
    q: Float[Tensor, "batch heads tokens head_dim"],
    k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    function: OneHead,
    dtype: torch.dtype,
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """`function` of every head, computed in `dtype`; nothing of a head is kept for the backward pass."""
    out: Tensor = _HeadByHead.apply(q, k, v, function, dtype)  # type: ignore[no-untyped-call]  # torch types no apply
    return out


class _HeadByHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, function: OneHead, dtype: torch.dtype) -> Tensor:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        fq, fk, fv, fo = (flatten_heads(x) for x in (q, k, v, out))
        group = q.shape[1] // k.shape[1]
        for head in range(fq.shape[0]):
            shared = head // group
            fo[head] = function(fq[head].to(dtype), fk[shared].to(dtype), fv[shared].to(dtype))
        ctx.save_for_backward(q, k, v)
        ctx.plan = function, dtype  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        function, dtype = ctx.plan  # type: ignore[attr-defined]  # set in forward
        group = q.shape[1] // k.shape[1]
        # Shared keys sum over their queries: in the wide dtype, where there are several.
        dq = torch.zeros_like(q, memory_format=torch.contiguous_format)
        dk, dv = (torch.zeros(x.shape, dtype=x.dtype if group == 1 else dtype, device=q.device) for x in (k, v))
        fq, fk, fv, fg, fdq, fdk, fdv = (flatten_heads(x) for x in (q, k, v, grad, dq, dk, dv))
        for head in range(fq.shape[0]):
            shared = head // group
            own = [x.detach().to(dtype).requires_grad_() for x in (fq[head], fk[shared], fv[shared])]
            with torch.enable_grad():
                out = function(*own)
            parts = torch.autograd.grad(out, own, fg[head].to(dtype), allow_unused=True)
            for total, part in zip((fdq[head], fdk[shared], fdv[shared]), parts, strict=True):
                if part is not None:
                    total.add_(part)
        return dq, dk.to(k.dtype), dv.to(v.dtype), None, None
