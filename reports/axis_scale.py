"""Axes whose ticks are read as quantities: lengths, times, sizes and errors."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from reports.quantities import error_text

_MOST_LENGTHS: Final = 7
_LINEAR_BELOW: Final = 1e-3
_FEW_DECADES: Final = 2.0


def length_scale(axes: Axes, lengths: Iterable[int]) -> None:
    """A logarithmic axis of token counts, with a tick at every measured length, or every other one."""
    known = sorted(set(lengths))
    step = math.ceil(len(known) / _MOST_LENGTHS)
    axes.set_xscale("log")
    _set_ticks(axes.xaxis, known[:: -step or 1][::-1], lambda value: f"{value:.0f}")
    axes.set_xlabel("tokens")


def log_scale(axes: Axes, side: Literal["x", "y"], values: Iterable[float], text: Callable[[float], str]) -> None:
    """A logarithmic axis with at least two ticks, written as quantities."""
    known = [value for value in values if value > 0]
    decades = math.log10(max(known) / min(known))
    subs = (1.0,) if decades > _FEW_DECADES else (1.0, 2.0, 5.0)
    axis = axes.xaxis if side == "x" else axes.yaxis
    axes.set(**{f"{side}scale": "log"})
    axis.set_major_locator(LogLocator(subs=subs, numticks=9))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_text(text(value))))
    axis.set_minor_locator(NullLocator())


def error_scale(axes: Axes, errors: Sequence[float]) -> None:
    """An axis of errors from zero on: linear below 1e-3, logarithmic above."""
    largest = max(*errors, 1.0)
    axes.set_xscale("symlog", linthresh=_LINEAR_BELOW, linscale=0.4)
    axes.set_xlim(-_LINEAR_BELOW / 5, largest * 1.6)
    decades = range(-3, math.ceil(math.log10(largest)) + 1)
    _set_ticks(axes.xaxis, [0.0, *(10.0**decade for decade in decades)], error_text)


def _set_ticks(axis: Axis, places: Sequence[float], text: Callable[[float], str]) -> None:
    axis.set_major_locator(FixedLocator(places))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_text(text(value))))
    axis.set_minor_locator(NullLocator())


def short_text(text: str) -> str:
    """`1.00 ms` as `1 ms`, `1.0e-4` as `1e-4`: a tick is exact."""
    number, _, unit = text.replace(".0e", "e").partition(" ")
    if "." in number and "e" not in number:
        number = number.rstrip("0").rstrip(".")
    return f"{number} {unit}".strip()
