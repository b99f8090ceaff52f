"""What lets a peer's module take q, k and v as they are: stand-ins for the projections that it owns."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from variants import Problem


class Held(nn.Module):
    """In place of a projection: gives what it holds, whatever comes in; `copied` where the module writes into it."""

    def __init__(self, *, copied: bool = False) -> None:
        """Holds nothing yet."""
        super().__init__()
        self.held: Any = None
        self.copied = copied

    def forward(self, *_: Any) -> Any:
        """The held tensor, or a copy of it."""
        return self.held.clone() if self.copied else self.held


class Parts:
    """In place of the output of one projection to q, k and v: `chunk` gives the three, which lie apart."""

    def __init__(self, *parts: Tensor) -> None:
        """The parts in their order."""
        self.parts = parts

    def chunk(self, count: int, dim: int) -> tuple[Tensor, ...]:
        """The parts; the arguments are those that a tensor would need."""
        assert count == len(self.parts) and dim == -1
        return self.parts


def at_rest(module: nn.Module) -> nn.Module:
    """The module for inference only: no gradients, no dropout."""
    return module.eval().requires_grad_(requires_grad=False)


def joined(x: Tensor) -> Tensor:
    """From batch-tokens-heads-dim to batch-tokens-(heads dim), without a copy."""
    return x.flatten(2)


def parted(x: Tensor, problem: Problem) -> Tensor:
    """Back from `joined`, without a copy."""
    apart: Tensor = x.unflatten(2, (problem.heads, problem.head_dim))
    return apart


def through_one_projection(module: Any, problem: Problem) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A module with one projection `to_qkv` and one `to_out`, called without either."""
    module.to_qkv, module.to_out = Held(), nn.Identity()
    at_rest(module)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        module.to_qkv.held = Parts(joined(q), joined(k), joined(v))
        return parted(module(joined(q)), problem)

    return run


def features(x: Tensor) -> Tensor:
    """elu + 1, as the definition of linear attention has it."""
    made: Tensor = torch.nn.functional.elu(x) + 1
    return made
