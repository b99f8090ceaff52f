"""What a cost model answers, and how it says no."""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Final, Literal, Self

Provenance = Literal["measured", "interpolated", "extrapolated", "transferred"]

FEWEST_POINTS: Final = 4
"""Measured lengths below which nothing is predicted."""

FURTHEST: Final = 4
"""Nothing is predicted beyond this multiple of the last measured length."""

WIDEST: Final = 2.0
"""Nothing is predicted where the upper end of the band is more than this multiple of the lower end."""


Refusal = Literal["too few points", "too short", "too far", "band too wide", "outgrew its work", "far from roofline"]


class Unpredictable(ValueError):
    """A figure that the measurements do not support; the message says why, `kind` in which way."""

    def __init__(self, kind: Refusal, message: str) -> None:
        """Keep the kind beside the message."""
        super().__init__(message)
        self.kind: Refusal = kind


class InvalidPoints(ValueError):
    """Measurements, or what is declared about them, that cannot be; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class TimePrediction:
    """Seconds per call with a 90 % band; a measured figure has no band of its own here."""

    seconds: float
    low: float
    high: float
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class MemoryPrediction:
    """Bytes with a band; a measured figure has no band of its own here."""

    size_bytes: float
    low: float
    high: float
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class Points:
    """Measured values by strictly rising length. Raises `InvalidPoints` at construction."""

    tokens: tuple[int, ...]
    values: tuple[float, ...]

    @classmethod
    def of(cls, tokens: Sequence[int], values: Sequence[float], what: str) -> Self:
        """Points in any order; `what` names the values in the messages."""
        if len(tokens) != len(values):
            raise InvalidPoints(f"{len(tokens)} lengths but {len(values)} {what}")
        if not len(tokens):
            raise InvalidPoints("measured at no length")
        for length in tokens:
            if not _is_length(length):
                raise InvalidPoints(f"a length must be a whole number of at least 1, not {length!r}")
        for value in values:
            if not math.isfinite(value) or value <= 0:
                raise InvalidPoints(f"{what} must be positive finite numbers, not {value!r}")
        pairs = sorted((int(length), float(value)) for length, value in zip(tokens, values, strict=True))
        twice = [one[0] for one, other in zip(pairs, pairs[1:], strict=False) if one[0] == other[0]]
        if twice:
            raise InvalidPoints(f"{twice[0]} tokens were measured twice")
        return cls(tuple(length for length, _ in pairs), tuple(value for _, value in pairs))

    @property
    def last(self) -> tuple[int, float]:
        """The longest length with its value."""
        return self.tokens[-1], self.values[-1]

    @property
    def shares(self) -> list[float]:
        """The values as multiples of the last one."""
        return [value / self.values[-1] for value in self.values]

    def between(self, length: int, shape: Callable[[int], float]) -> tuple[float, float]:
        """The value between two neighbours, which keep theirs, along a rising shape, and how badly it fits them.

        The second figure is the natural logarithm of how much more the values rise than the shape.
        """
        above = bisect_left(self.tokens, length)
        (low, high), (start, end) = self.values[above - 1 : above + 1], map(shape, self.tokens[above - 1 : above + 1])
        share = (shape(length) - start) / (end - start) if end > start else 0.5
        return low + share * (high - low), math.log(high / low) - math.log(end / start)

    def measured(self, length: int) -> float | None:
        """The value at a measured length; None elsewhere."""
        return dict(zip(self.tokens, self.values, strict=True)).get(length)

    def refuse(self, length: int) -> None:
        """Raise `Unpredictable` where there are too few points, or the length is out of their reach."""
        count, first, last = len(self.tokens), self.tokens[0], self.tokens[-1]
        if count < FEWEST_POINTS:
            text = f"a prediction needs {FEWEST_POINTS} measured lengths; there {'is' if count == 1 else 'are'} {count}"
            raise Unpredictable("too few points", text)
        if length < first:
            raise Unpredictable("too short", f"{length} tokens are below the first measured length, {first}")
        if length > FURTHEST * last:
            text = f"{length} tokens are more than {FURTHEST} times the last measured length, {last}"
            raise Unpredictable("too far", text)


def _is_length(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 1


def band_factor(half_band: float) -> float:
    """The factor between a figure and the ends of its band, from the natural logarithm of it; never endless."""
    return math.exp(min(half_band, 100.0))


def refuse_wide(where: str, low: float, high: float) -> None:
    """Raise `Unpredictable` where a band is too wide to be of use; `where` begins the message."""
    if not high <= WIDEST * low:
        factor = f"{high / low:.1f}" if low > 0 and high / low < 1e4 else "more than 10000"
        text = f"{where} the ends of the band differ by a factor of {factor}, more than {WIDEST:g}"
        raise Unpredictable("band too wide", text)
