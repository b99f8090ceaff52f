"""What a kernel in a half type is held to: its definition's formula, every step of it rounded to that type."""

import math
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from variants import Problem
from variants.definition import Definition
from variants.dtypes import TORCH_DTYPES

FACTOR: Final = 2
"""A kernel may err so many times as much as the plain formula (the rule of FlashAttention's own tests)."""

LEAST_TOKENS: Final = 16
"""Of fewer queries it is chance which of two errs more."""

MOST_PAIRS: Final = 2**20
MOST_PAIRS_BY_TOKEN: Final = 2**17
"""Beyond, the formula would take too long once more; the fixed tolerances are there for all."""


class Rounded(TorchDispatchMode):
    """Rounds the result of every operation, those of a backward pass too; a product is summed up exactly first.

    As dense matrices in the half type err: what lies between the steps is rounded, sums within a step are not.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        """To that type."""
        super().__init__()  # type: ignore[no-untyped-call]  # torch types it not
        self.dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation's own result, rounded in place where it is no view."""
        out = func(*args, **(kwargs or {}))
        if all(each.alias_info is None or each.alias_info.is_write for each in func._schema.returns):
            tree_map_only(Tensor, self._round, out)
        return out

    def _round(self, x: Tensor) -> Tensor:
        return x.copy_(x.to(self.dtype)) if x.dtype == torch.float64 else x


def is_held_to_plain(problem: Problem, definition: Definition) -> bool:
    """Whether the plain formula's error is computed: in half types, where it tells something and is cheap."""
    most = MOST_PAIRS_BY_TOKEN if getattr(definition, "by_token", False) else MOST_PAIRS
    enough = problem.tokens >= LEAST_TOKENS and problem.tokens * problem.kv_tokens <= most
    return problem.dtype in ("bfloat16", "float16") and enough


def allowed(plain: float, tolerance: float, dtype: str) -> float:
    """The error that a kernel may have: no more than the tolerance, and twice the plain formula's, if that is known.

    Of a formula without any error, as over one key, the result may still be rounded twice.
    """
    if math.isnan(plain):
        return tolerance
    return min(tolerance, max(FACTOR * plain, torch.finfo(TORCH_DTYPES[dtype]).eps))
