"""What every call of a built variant must keep to, whatever its errors: its output's form and memory, its inputs."""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Final

import torch
from torch import Tensor

NAMES: Final = ("q", "k", "v")
DEPENDENCE_UP_TO_SECONDS: Final = 1.0
"""A call that took longer is not made on other values besides: what keeps an output shows at shorter lengths."""

PIECE: Final = 2**17
MULTIPLIER: Final = 0x9E3779B97F4A7C15 - 2**64
WORDS: Final = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class BrokenContract(ValueError):
    """A call that is wrong whatever it computes; the message says how."""


class WatchedCalls:
    """Calls of one built variant on the inputs that it is timed on, which `wait` waits for.

    `seconds` and `least_seconds` are those of the last and of the fastest call, `total_seconds` those of all.
    Raises `BrokenContract`, also where the builder returned nothing to be called.
    """

    def __init__(self, run: Any, inputs: Sequence[Tensor], *, training: bool, wait: Callable[[], None]) -> None:
        """The inputs are contiguous, and q has the shape, type and device that an output must have."""
        require_callable(run)
        self._run, self._inputs, self._training, self._wait = run, inputs, training, wait
        self._marks = [fingerprint(x) for x in inputs]
        self._earlier: Tensor | None = None
        self.seconds = self.total_seconds = 0.0
        self.least_seconds = float("inf")

    def once(self) -> Tensor:
        """The output, in the variant's own layout."""
        out = self._called()
        self.require_inputs()
        self._earlier = out.detach()
        return out

    def require_inputs(self) -> None:
        """That q, k and v are what they were, bit for bit."""
        pairs = zip(NAMES, self._marks, self._inputs, strict=True)
        if changed := [name for name, mark, x in pairs if fingerprint(x) != mark]:
            raise BrokenContract(f"changed its input {', '.join(changed)}")

    def require_dependence(self) -> None:
        """That other values in the same memory give another output than the last; they are put back."""
        first = self._earlier
        if first is None or self.seconds > DEPENDENCE_UP_TO_SECONDS or not first.any():
            return
        values = self._inputs[2].detach()
        values.neg_()
        out = self._called()
        values.neg_()
        self.require_inputs()
        if torch.equal(out, first):
            raise BrokenContract("returned its first output again, though v was another")

    def spoil(self) -> None:
        """Overwrite the last output, which no later call may need; it stays, so that none may be given its memory."""
        if self._earlier is not None:
            self._earlier.untyped_storage().fill_(0xFF)  # type: ignore[attr-defined]  # torch's own types leave it out

    def _called(self) -> Tensor:
        begin = perf_counter()
        out = self._run(*self._inputs)
        self._wait()
        self.seconds = perf_counter() - begin
        self.total_seconds += self.seconds
        self.least_seconds = min(self.least_seconds, self.seconds)
        require_form(out, self._inputs[0])
        if self._training and not out.requires_grad:
            raise BrokenContract("returned an output without a gradient; in training it must be one of q, k and v")
        self._require_own_memory(out)
        return out  # type: ignore[no-any-return]  # it was asked whether it is a tensor

    def _require_own_memory(self, out: Tensor) -> None:
        others = dict(zip(NAMES, self._inputs, strict=True)) | (
            {} if self._earlier is None else {"an earlier output": self._earlier}
        )
        for name, other in others.items():
            if out.numel() and out.untyped_storage().data_ptr() == other.untyped_storage().data_ptr():
                raise BrokenContract(f"returned the memory of {name}; each output must have its own")


def require_callable(run: Any) -> None:
    """Raises `BrokenContract` where a builder returned nothing to be called."""
    if not callable(run):
        raise BrokenContract(f"the builder returned {_named(run)}; must be what is called with q, k and v")


def require_form(out: Any, like: Tensor) -> None:
    """Raises `BrokenContract` where an output has not the shape, type and device of q."""
    must = f"must be {_form(like)}"
    if not isinstance(out, Tensor):
        raise BrokenContract(f"returned {_named(out)}; {must}")
    if (out.shape, out.dtype) != (like.shape, like.dtype):
        raise BrokenContract(f"returned {_form(out)}; {must}")
    if out.device != like.device:
        raise BrokenContract(f"returned a tensor on {out.device}; must be on {like.device}")


def require_gradients(found: Sequence[Tensor | None]) -> None:
    """Raises `BrokenContract` where an output does not depend on an input by autograd."""
    if lacking := [name for name, grad in zip(NAMES, found, strict=False) if grad is None]:
        raise BrokenContract(
            f"its output has no gradient of {', '.join(lacking)}; where the formula has none it is nought"
        )


def fingerprint(x: Tensor) -> int:
    """A number that tells a contiguous tensor's bits and their order from others, a MiB at a time."""
    weights = MULTIPLIER * (2 * torch.arange(min(PIECE, x.numel()), device=x.device) + 1)
    total = torch.zeros((), dtype=torch.int64, device=x.device)
    for words in x.detach().flatten().view(WORDS[x.element_size()]).split(PIECE):
        mixed = words * weights[: len(words)]
        total = (
            total * MULTIPLIER + mixed.bitwise_xor_(mixed >> 29).sum()
        )  # a sum alone would lose the signs of float64
    return int(total)


def _form(x: Tensor) -> str:
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"


def _named(x: object) -> str:
    return "None" if x is None else f"a {type(x).__name__}"
