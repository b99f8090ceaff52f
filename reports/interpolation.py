"""Figures at a length between measured lengths; never beyond them.

Time and memory follow the straight line between their two neighbours on log-log axes. A sum of
powers of the length, which both are, is convex on such axes: the line is exact for a pure power and
otherwise lies above the curve, so that a figure is rather too large than too small. Where one
neighbour is zero the line is drawn on linear axes. Errors are linear in the logarithm of the length.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Provenance = Literal["measured", "interpolated"]


class OutOfRange(ValueError):
    """A length beyond the measured ones; the message names their range."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A value and where it comes from."""

    value: float
    provenance: Provenance = "measured"


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
    return Figure(_between(errors[below], errors[above], _log_share(below, above, length)), "interpolated")


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
