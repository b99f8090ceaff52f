"""Figures at a length between measured lengths, and of errors a little beyond them.

Time and memory follow the straight line between their two neighbours on log-log axes. A sum of
powers of the length, which both are, is convex on such axes: the line is exact for a pure power and
otherwise lies above the curve, so that a figure is rather too large than too small. Where one
neighbour is zero the line is drawn on linear axes. Errors are linear in the logarithm of the length;
beyond the last length they go on as they went from doubling to doubling. An approximation may be exact up to
some length, as a window is that covers the whole sequence: between that and a real error the band is from the
one to the other, and what rounding does says nothing of a trend.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import dropwhile, pairwise
from typing import Final, Literal

Provenance = Literal["measured", "interpolated", "extrapolated", "transferred"]

FURTHEST: Final = 4
"""Nothing is foretold beyond this multiple of the last measured length."""

LATEST: Final = 3
"""The trend of an error is that of this many of its last lengths."""

ROUNDING: Final = 1e-12
"""At most this is no approximation but rounding: the float64 oracles of one function differ by less than 1e-15,
and the least error of any approximation that was measured is 2e-6."""

ERROR_DRIFT: Final = 0.25
"""The least that an error may change with each doubling, either way: with it nine of ten stayed inside."""


class OutOfRange(ValueError):
    """A length beyond the measured ones; the message names their range."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A value, where it comes from, and its band; None where it has none.

    The band of a measured figure is its 95 % interval, every other one's a 90 % band.
    """

    value: float
    provenance: Provenance = "measured"
    low: float | None = None
    high: float | None = None

    @property
    def least(self) -> float:
        """The lower end of the band, or the value."""
        return self.value if self.low is None else self.low

    @property
    def most(self) -> float:
        """The upper end of the band, or the value."""
        return self.value if self.high is None else self.high

    def widened(self, half_band: float) -> "Figure":
        """With a band that is wider by the root of the sum of squares; natural logarithms."""
        if self.value <= 0:
            return self
        low = math.hypot(half_band, math.log(self.value / self.least)) if self.least > 0 else math.inf
        high = math.hypot(half_band, math.log(self.most / self.value))
        return Figure(self.value, self.provenance, self.value * math.exp(-low), self.value * math.exp(high))


def neighbours(lengths: Iterable[int], length: int) -> tuple[int, int]:
    """The measured lengths on both sides of `length`; twice the same where it was measured itself.

    Raises `OutOfRange`.
    """
    known = sorted(set(lengths))
    if not known:
        raise OutOfRange("measured at no length")
    place = bisect_left(known, length)
    if place < len(known) and known[place] == length:
        return length, length
    if place in (0, len(known)):
        span = f"from {known[0]} to {known[-1]} tokens" if len(known) > 1 else f"at {known[0]} tokens"
        raise OutOfRange(f"measured only {span}, not at {length}")
    return known[place - 1], known[place]


def time_at(seconds: Mapping[int, float], length: int) -> Figure:
    """Seconds at `length` from seconds by measured length. Raises `OutOfRange`."""
    return _power_law(seconds, length)


def bytes_at(sizes: Mapping[int, float], length: int) -> Figure:
    """Bytes at `length` from bytes by measured length. Raises `OutOfRange`."""
    return _power_law(sizes, length)


def error_at(errors: Mapping[int, float], length: int) -> Figure:
    """The relative error at `length` from errors by measured length. Raises `OutOfRange`."""
    below, above = neighbours(errors, length)
    if below == above:
        return Figure(errors[length])
    value = _between(errors[below], errors[above], _log_share(below, above, length))
    least, most = sorted((errors[below], errors[above]))
    if least <= ROUNDING < most:
        return Figure(value, "interpolated", least, most)
    return Figure(value, "interpolated")


def error_beyond(errors: Mapping[int, float], length: int) -> Figure:
    """The relative error at a `length` beyond the last one, if the last doublings are any guide.

    The value goes on with half of the last change per doubling, since errors level off; the band reaches from
    the strongest fall of the last lengths to their strongest rise. Raises `OutOfRange` beyond four times the
    last length, with fewer than three lengths, or where it was exact up to the last one or the one before.
    """
    known = sorted(errors.items())[-LATEST:]
    if len(known) < 3 or length > FURTHEST * known[-1][0]:
        span = f"measured up to {known[-1][0]} tokens" if known else "measured at no length"
        raise OutOfRange(f"{span}, not at {length}")
    last, error = known[-1]
    if max(value for _, value in known) <= ROUNDING:
        return Figure(error, "extrapolated", min(errors.values()), max(errors.values()))
    known = list(dropwhile(lambda one: one[1] <= ROUNDING, known))
    if len(known) < 2 or min(value for _, value in known) <= ROUNDING:
        raise OutOfRange(f"exact up to rounding at some of the last {LATEST} lengths, so that no trend is known")
    changes = [math.log(b / a) / math.log2(after / before) for (before, a), (after, b) in pairwise(known)]
    doublings = math.log2(length / last)
    low, high = min(-ERROR_DRIFT, *changes), max(ERROR_DRIFT, *changes)
    ends = [error * math.exp(change * doublings) for change in (low, changes[-1] / 2, high)]
    return Figure(ends[1], "extrapolated", ends[0], ends[2])


def _power_law(values: Mapping[int, float], length: int) -> Figure:
    below, above = neighbours(values, length)
    if below == above:
        return Figure(values[length])
    low, high = values[below], values[above]
    if below < 1 or min(low, high) <= 0:
        return Figure(_between(low, high, (length - below) / (above - below)), "interpolated")
    exponent = _between(math.log(low), math.log(high), _log_share(below, above, length))
    return Figure(math.exp(exponent), "interpolated")


def _log_share(below: int, above: int, length: int) -> float:
    start = math.log(max(below, 1))
    return (math.log(length) - start) / (math.log(above) - start)


def _between(low: float, high: float, share: float) -> float:
    return low + share * (high - low)
