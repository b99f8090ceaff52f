"""A formula computed plainly in a half type: in float64, every step rounded to what the type can hold."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class Rounded(TorchDispatchMode):
    """Rounds the result of every operation, those of a backward pass too; a product is summed up exactly first.

    What a kernel that keeps its sums in float32 is held to: it may err at most twice as much as this
    (FlashAttention's own tests have that rule, arXiv:2205.14135).
    """

    def __init__(self, dtype: torch.dtype) -> None:
        """To that type."""
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation's own result, rounded in place where it is no view."""
        out = func(*args, **(kwargs or {}))
        if all(each.alias_info is None or each.alias_info.is_write for each in func._schema.returns):
            tree_map_only(Tensor, self._round, out)
        return out

    def _round(self, x: Tensor) -> Tensor:
        return x.copy_(x.to(self.dtype)) if x.dtype == torch.float64 else x
