"""Time and memory against length, as lines: whole where measured, dashed where foretold."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from reports.axis_scale import length_scale, log_scale
from reports.curve import Curve
from reports.figure_style import THEMED, Style, Theme, styles_of
from reports.interpolation import Figure as Quantity
from reports.quantities import BYTES_PER_MIB, digits, seconds_text

Styles = Mapping[str, Style]
Foretell = Callable[[str, str], Mapping[int, Quantity]]
"""Foretold figures beyond the last measured length, by length: of a label, and a field of `reports.curve.Figures`."""


def styles_for(curves: Iterable[Curve], theme: Theme = THEMED) -> dict[str, Style]:
    """One style per variant, for every picture in which it appears."""
    return styles_of(((curve.label, curve.variant.partition("/")[0], curve.exact) for curve in curves), theme)


def nothing_foretold(_label: str, _name: str) -> Mapping[int, Quantity]:
    """Only what was measured is drawn."""
    return {}


def draw_times(axes: Axes, curves: Sequence[Curve], styles: Styles, foretell: Foretell = nothing_foretold) -> None:
    """Time by length, one line per variant, broken where a length failed."""
    known: list[float] = []
    ahead: set[int] = set()
    for curve in curves:
        rows = curve.rows()
        lengths = list(rows)
        seconds = [row.seconds or math.nan for row in rows.values()]
        low = [row.seconds_low or row.seconds or math.nan for row in rows.values()]
        high = [row.seconds_high or row.seconds or math.nan for row in rows.values()]
        style = styles[curve.label]
        axes.fill_between(lengths, low, high, color=style.colour, alpha=0.25, linewidth=0)
        axes.plot(lengths, seconds, label=curve.label, **marker_of(style))
        known += seconds
        found = foretell(curve.label, "seconds")
        known += _draw_foretold(axes, curve.seconds(), found, style.colour)
        ahead |= _doublings(found, curve.seconds())
    length_scale(axes, [*ahead, *(length for curve in curves for length in curve.seconds())])
    log_scale(axes, "y", known, seconds_text)
    axes.set_ylabel("time per call")


def draw_memory(axes: Axes, curves: Sequence[Curve], styles: Styles, foretell: Foretell = nothing_foretold) -> None:
    """Extra memory by length, one line per variant."""
    known: list[float] = []
    lengths: list[int] = []
    for curve in curves:
        rows = curve.rows()
        sizes = [row.extra_bytes / BYTES_PER_MIB if row.extra_bytes else math.nan for row in rows.values()]
        axes.plot(list(rows), sizes, label=curve.label, **marker_of(styles[curve.label]))
        known += sizes
        lengths += [length for length, row in rows.items() if row.extra_bytes]
        found = {at: one for at, one in foretell(curve.label, "extra_bytes").items() if one.least > 0}
        measured = {at: float(row.extra_bytes) for at, row in rows.items() if row.extra_bytes}
        known += _draw_foretold(axes, measured, found, styles[curve.label].colour, BYTES_PER_MIB)
        lengths += _doublings(found, measured)
    length_scale(axes, lengths)
    log_scale(axes, "y", known, digits)
    axes.set_ylabel("extra memory (MiB)")


def _draw_foretold(
    axes: Axes, measured: Mapping[int, float], found: Mapping[int, Quantity], colour: str, unit: float = 1.0
) -> list[float]:
    """A dashed line without marks from the last measured point on, with its band; what it reaches."""
    if not found or not measured:
        return []
    last = max(measured)
    lengths = [last, *found]
    low = [measured[last] / unit, *(one.least / unit for one in found.values())]
    high = [measured[last] / unit, *(one.most / unit for one in found.values())]
    middle = [measured[last] / unit, *(one.value / unit for one in found.values())]
    axes.fill_between(lengths, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.plot(lengths, middle, color=colour, linestyle=(0, (3, 2)), linewidth=1.0)
    return [*low, *high]


def _doublings(found: Iterable[int], measured: Iterable[int]) -> set[int]:
    """Foretold lengths that deserve a tick: whole multiples of the last measured one."""
    last = max(measured, default=1)
    return {length for length in found if length % last == 0}


def marker_of(style: Style) -> dict[str, Any]:
    """How a variant's points are drawn."""
    return {
        "color": style.colour,
        "marker": style.marker,
        "markeredgecolor": style.colour,
        "markerfacecolor": style.fill,
    }
