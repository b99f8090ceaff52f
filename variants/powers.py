"""Powers of e as those of 2, which a CPU has in less time and in the same for every element.

torch's own `exp` of float32 goes by MKL there, which leaves its vectors for what underflows or is −∞: on an AMD EPYC
with AVX2 an element takes it 1.0 to 1.6 ns, but 39 where the result is denormal and 7 for a hidden score. `exp2` takes
0.5 to 0.8 ns for all of them (docs/speed.md).
"""

from typing import Final

import torch
from torch import Tensor

LOG2_E: Final = 1.4426950408889634
"""Powers are of 2, which cards have in hardware, too."""

LN_2: Final = 0.6931471805599453


def exp(x: Tensor) -> Tensor:
    """e^x, of any shape."""
    return torch.exp2(x * LOG2_E) if by_powers_of_two(x) else torch.exp(x)


def exp_(x: Tensor) -> Tensor:
    """e^x in place."""
    return x.mul_(LOG2_E).exp2_() if by_powers_of_two(x) else x.exp_()


def by_powers_of_two(x: Tensor) -> bool:
    """Whether that is the faster way; the half types have vectors of torch's own."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
