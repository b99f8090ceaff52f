"""Products of large matrices on a CPU by oneDNN, where torch's own take MKL.

MKL keeps to vectors of half the width on processors that are not Intel's: on an AMD EPYC with AVX-512 a product of
float32 takes it 2.2 times as long (docs/speed.md). Small products and other types go torch's way.
"""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

FEWEST_PRODUCTS: Final = 2**21
"""Below so many multiplications the call costs more than the wider vectors save."""


def product(a: Float[Tensor, "rows inner"], b: Float[Tensor, "inner columns"]) -> Float[Tensor, "rows columns"]:
    """a b, not differentiable where oneDNN takes it: for use inside of an autograd function."""
    if not by_onednn(a, b):
        return torch.mm(a, b)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.mT, None, "none", [], "")
    return out


def by_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether a product goes by oneDNN: of this type, on this device, of this size, as it lies in memory."""
    if a.device.type != "cpu" or a.dtype != torch.float32 or a.shape[0] * b.numel() < FEWEST_PRODUCTS:
        return False
    # A slice of columns is of neither order: there oneDNN falls back on loops.
    dense = all(x.is_contiguous() or x.mT.is_contiguous() for x in (a, b))
    return dense and torch.backends.mkldnn.is_available() and in_full_precision()


def in_full_precision() -> bool:
    """Whether oneDNN may not round the factors of a product of float32, which torch can be told to allow."""
    precision: str = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]  # set at run time
    return precision in ("none", "ieee")


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return product(a, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        wanted = ctx.needs_input_grad  # type: ignore[attr-defined]  # set by apply
        grad = grad.contiguous()
        return product(grad, b.mT) if wanted[0] else None, product(a.mT, grad) if wanted[1] else None


def differentiable_product(
    a: Float[Tensor, "rows inner"], b: Float[Tensor, "inner columns"]
) -> Float[Tensor, "rows columns"]:
    """The same with gradients, of the first order."""
    out: Tensor = _Product.apply(a, b)  # type: ignore[no-untyped-call]  # torch types no apply
    return out
