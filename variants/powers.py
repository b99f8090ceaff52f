"""Powers of e as those of 2, which a CPU has in less time and in the same for every element.

torch's own `exp` of float32 goes by MKL there, which leaves its vectors for what underflows or is −∞: on an AMD EPYC
with AVX2 an element takes it 1.0 to 1.6 ns, but 39 where the result is denormal and 7 for a hidden score. `exp2` takes
0.5 to 0.8 ns for all of them (docs/speed.md).
"""

from typing import Final

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

LOG2_E: Final = 1.4426950408889634
"""Powers are of 2, which cards have in hardware, too."""

LN_2: Final = 0.6931471805599453


class _Power(torch.autograd.Function):
    """In place; the gradient is that times the power, where a graph of the two steps would hold more."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        x.mul_(LOG2_E).exp2_()
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        power: Tensor = ctx.saved_tensors[0]  # type: ignore[attr-defined]  # set by save_for_backward
        return grad * power


def exp(x: Tensor) -> Tensor:
    """e^x, of any shape."""
    if not by_powers_of_two(x):
        return torch.exp(x)
    return exp_(x.clone()) if x.requires_grad else x.mul(LOG2_E).exp2_()


def exp_(x: Tensor) -> Tensor:
    """e^x in place, of a tensor that is no view."""
    if not by_powers_of_two(x):
        return x.exp_()
    if not x.requires_grad:
        return x.mul_(LOG2_E).exp2_()
    out: Tensor = _Power.apply(x)  # type: ignore[no-untyped-call]  # torch types no apply
    return out


def by_powers_of_two(x: Tensor) -> bool:
    """Whether that is the faster way; the half types have vectors of torch's own."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
