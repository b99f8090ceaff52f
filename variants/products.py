"""Products of matrices on a CPU, each by what is fastest there.

MKL, which torch's own take, keeps to vectors of half the width on processors that are not Intel's: on an AMD EPYC with
AVX-512 a large product of float32 takes it 2.2 times as long as oneDNN, where with AVX2 alone MKL is the faster
(docs/speed.md). A processor without products of a half type takes 10 to 50 times as long for them as for float32.
"""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

FEWEST_PRODUCTS: Final = 2**21
"""Below so many multiplications the call costs more than the wider vectors save."""

FEW_ROWS: Final = 4
"""Of so few MKL leaves all to one thread."""


def product(a: Float[Tensor, "rows inner"], b: Float[Tensor, "inner columns"]) -> Float[Tensor, "rows columns"]:
    """a b, not differentiable where oneDNN takes it: for use inside of an autograd function."""
    if not multiplies(a):
        return torch.mm(a.float(), b.float()).to(a.dtype)
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
    better = wide_vectors() or a.shape[0] <= FEW_ROWS
    return dense and better and torch.backends.mkldnn.is_available() and in_full_precision()


def multiplies(x: Tensor) -> bool:
    """Whether the device of a tensor has products of its type; a CPU may lack those of the half types."""
    if x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float16):
        return True
    kind = "bf16" if x.dtype == torch.bfloat16 else "fp16"
    return bool(getattr(torch.ops.mkldnn, f"_is_mkldnn_{kind}_supported")())


def wide_vectors() -> bool:
    """Whether the processor has vectors of 512 bits."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


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
