"""What a variant declares that it costs, at measured lengths and beyond them.

Rows hold it at measured lengths. Elsewhere the definition itself is asked, where the caller can reach it and
it agrees with the rows; else the parabola through the last three rows, which a fourth must confirm.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from reports.curve import Curve, Reason, Unavailable
from reports.shape import Shape

Declare = Callable[[str, Mapping[str, int], Shape, int], tuple[int, int] | None]
"""`declare(variant, parameters, shape, length)`: visible pairs of one head and useful FLOPs of the call, or None."""

_CONFIRMED: Final = 0.01
"""How far the parabola may miss the fourth row."""


def declare_nothing(_variant: str, _parameters: Mapping[str, int], _shape: Shape, _length: int) -> None:
    """No definition is at hand."""


@dataclass(frozen=True)
class DeclaredCosts:
    """The declared costs of one curve at any length from its first on."""

    curve: Curve
    shape: Shape
    declare: Declare

    def pairs(self, length: int) -> float:
        """Visible pairs of one head. Raises `Unavailable`."""
        return self._at(length, self._pairs, 0)

    def flops(self, length: int) -> float:
        """Floating-point operations of one call that the formula asks for. Raises `Unavailable`."""
        return self._at(length, self._flops, 1)

    def _at(self, length: int, known: Mapping[int, int], place: int) -> float:
        if length in known:
            return known[length]
        if not known:
            raise Unavailable([Reason("unpredictable", "its rows declare no visible pairs")])
        if self._agrees:
            found = self.declare(self.curve.variant, dict(self.curve.parameters), self.shape, length)
            if found is not None:
                return found[place]
        return _continued(known, length)

    @cached_property
    def _agrees(self) -> bool:
        """Whether the definition at hand declares what the last row says; one of another version may not."""
        last = max(self._pairs)
        found = self.declare(self.curve.variant, dict(self.curve.parameters), self.shape, last)
        return found is not None and found[0] == self._pairs[last]

    @cached_property
    def _pairs(self) -> dict[int, int]:
        rows = self.curve.rows().items()
        return {length: row.visible_pairs for length, row in rows if row.visible_pairs}

    @cached_property
    def _flops(self) -> dict[int, int]:
        rows = self.curve.rows().items()
        return {length: row.useful_flops for length, row in rows if row.useful_flops}


def _continued(known: Mapping[int, int], length: int) -> float:
    """The parabola through the last three points. Raises `Unavailable` where the fourth-last is not on it."""
    *_, fourth, one, two, three = [(0, 0.0)] * 4 + sorted(known.items())
    if len(known) < 4 or abs(_parabola((one, two, three), fourth[0]) / fourth[1] - 1) > _CONFIRMED:
        text = f"its rows do not tell the visible pairs at {length} tokens, and its definition is not at hand"
        raise Unavailable([Reason("unpredictable", text)])
    return _parabola((one, two, three), length)


def _parabola(points: tuple[tuple[int, float], ...], at: int) -> float:
    """Lagrange's form."""
    return sum(
        value * math.prod((at - there) / (here - there) for there, _ in points if there != here)
        for here, value in points
    )
