"""Operators that read the values alone: for autograd functions of q and k too, with gradients of zero."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def also_of(
    out: Float[Tensor, "batch heads tokens dim"],
    q: Float[Tensor, "batch heads tokens dim"],
    k: Float[Tensor, "batch kv_heads kv_tokens dim"],
) -> Float[Tensor, "batch heads tokens dim"]:
    """The output itself, on which q and k have no influence; nothing of them is read."""
    same: Tensor = _AlsoOf.apply(out, q, k)  # type: ignore[no-untyped-call]  # torch types no apply
    return same


class _AlsoOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, out: Tensor, q: Tensor, k: Tensor) -> Tensor:
        ctx.save_for_backward(q, k)
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, ...]:
        q, k = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        return grad, torch.zeros_like(q), torch.zeros_like(k)
