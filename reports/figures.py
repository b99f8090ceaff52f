"""Pictures of what was measured: time, memory and error, for a page and for a README."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.axis_scale import error_scale, length_scale, log_scale
from reports.canvas import add_legend, canvas, clipped, entries, short_names
from reports.curve import Curve
from reports.figure_style import PRINTED, THEMED, Style, Theme, drawing, styles_of, svg_of
from reports.landscape import error_rows, pareto_front, tradeoff
from reports.quantities import BYTES_PER_MIB, digits, error_text, seconds_text

Styles = Mapping[str, Style]

_FLOOR: Final = "mean of V (floor)"


@dataclass(frozen=True, slots=True)
class Picture:
    """An SVG element with the text that says what it shows."""

    title: str
    svg: str
    caption: str


def styles_for(curves: Iterable[Curve], theme: Theme = THEMED) -> dict[str, Style]:
    """One style per variant, for every picture in which it appears."""
    return styles_of(((curve.label, curve.variant.partition("/")[0], curve.exact) for curve in curves), theme)


def pictures(curves: Sequence[Curve], styles: Styles, name: str) -> list[Picture]:
    """The pictures of one shape, those that have data; `name` keeps their ids apart on a page."""
    with drawing(THEMED):
        made = [
            time_picture(curves, styles, f"{name}-time"),
            memory_picture(curves, styles, f"{name}-memory"),
            error_picture(curves, styles, f"{name}-error"),
            tradeoff_picture(curves, styles, f"{name}-tradeoff"),
        ]
    return [picture for picture in made if picture is not None]


def time_picture(curves: Sequence[Curve], styles: Styles, name: str) -> Picture | None:
    """Time against length with its 95 % intervals."""
    timed = [curve for curve in curves if curve.seconds()]
    if not timed:
        return None
    figure, axes = canvas(len(timed), short_names(timed))
    draw_times(axes, timed, styles)
    add_legend(figure, axes, short_names(timed))
    title = "Time against length"
    caption = "Median wall time per call; the band is its 95 % interval. Lines only join measured points."
    return Picture(title, svg_of(figure, name, f"{title} of {_spoken(timed)}"), caption)


def memory_picture(curves: Sequence[Curve], styles: Styles, name: str) -> Picture | None:
    """Extra memory against length."""
    known = [curve for curve in curves if any(row.extra_bytes for row in curve.rows().values())]
    if not known:
        return None
    figure, axes = canvas(len(known), short_names(known))
    draw_memory(axes, known, styles)
    add_legend(figure, axes, short_names(known))
    title = "Extra memory against length"
    zeros = sum(row.extra_bytes == 0 for curve in curves for row in curve.rows().values())
    caption = "Peak memory beyond q, k, v and the output. Lines only join measured points."
    caption += f" {zeros} points without extra memory have no place on this axis." if zeros else ""
    return Picture(title, svg_of(figure, name, f"{title} of {_spoken(known)}"), caption)


def error_picture(curves: Sequence[Curve], styles: Styles, name: str) -> Picture | None:
    """Approximation error by variant and kind of input, with the floor that the mean of V sets."""
    rows = error_rows(curves)
    labels = {label for row in rows for label in row.errors}
    shown = [curve for curve in curves if curve.label in labels]
    if not shown:
        return None
    figure, axes = canvas(len(shown) + 1, short_names(shown), height=1.0 + 0.36 * len(rows))
    for place, row in enumerate(reversed(rows)):
        for label, error in row.errors.items():
            axes.plot([error], [place], label=label, linestyle="none", **_marker(styles[label]))
        if row.floor is not None:
            axes.plot([row.floor], [place], label="mean of V", **_floor_marker())
    error_scale(axes, [error for row in rows for error in (*row.errors.values(), row.floor or 0.0)])
    axes.set_yticks(range(len(rows)), [f"{clipped(row.inputs, 16)}\n{row.length} tokens" for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("approximation error (relative to exact attention)")
    add_legend(figure, axes, {**short_names(shown), "mean of V": _FLOOR})
    title = "Approximation error by inputs"
    caption = "Left is better. Right of the floor a variant is worse than the plain mean of all values."
    return Picture(title, svg_of(figure, name, f"{title} of {_spoken(shown)}"), caption)


def tradeoff_picture(curves: Sequence[Curve], styles: Styles, name: str) -> Picture | None:
    """Error against time at the largest common length, with the Pareto front."""
    found = tradeoff(curves)
    points = [point for point in found.points if point.error > 0] if found else []
    if found is None or len(points) < 2:
        return None
    shown = [curve for curve in curves if curve.label in {point.label for point in points}]
    figure, axes = canvas(len(shown) + 2, short_names(shown))
    front = pareto_front(points)
    if found.floor:
        ink = mpl.rcParams["text.color"]
        axes.axhline(found.floor, color=ink, linewidth=1.0, linestyle=(0, (1, 2)), label="mean of V")
    axes.step(
        [point.seconds for point in front],
        [point.error for point in front],
        where="post",
        color=mpl.rcParams["text.color"],
        alpha=0.45,
        linewidth=1.0,
        label="Pareto front",
    )
    for point in points:
        axes.plot([point.seconds], [point.error], label=point.label, linestyle="none", **_marker(styles[point.label]))
    log_scale(axes, "x", [point.seconds for point in points], seconds_text)
    log_scale(axes, "y", [*(point.error for point in points), *([found.floor] if found.floor else [])], error_text)
    axes.set_xlabel(f"time per call at {found.length} tokens")
    axes.set_ylabel(f"error on {clipped(found.inputs, 16)} inputs")
    add_legend(figure, axes, {**short_names(shown), "Pareto front": "Pareto front", "mean of V": _FLOOR})
    title = "Error against time"
    caption = "Both kinds of error together. No other variant is faster and closer than one on the front."
    return Picture(title, svg_of(figure, name, f"{title} at {found.length} tokens of {_spoken(shown)}"), caption)


def draw_times(axes: Axes, curves: Sequence[Curve], styles: Styles) -> None:
    """Time by length, one line per variant, broken where a length failed."""
    known: list[float] = []
    for curve in curves:
        rows = curve.rows()
        lengths = list(rows)
        seconds = [row.seconds or math.nan for row in rows.values()]
        low = [row.seconds_low or row.seconds or math.nan for row in rows.values()]
        high = [row.seconds_high or row.seconds or math.nan for row in rows.values()]
        style = styles[curve.label]
        axes.fill_between(lengths, low, high, color=style.colour, alpha=0.25, linewidth=0)
        axes.plot(lengths, seconds, label=curve.label, **_marker(style))
        known += seconds
    length_scale(axes, [length for curve in curves for length in curve.seconds()])
    log_scale(axes, "y", known, seconds_text)
    axes.set_ylabel("time per call")


def draw_memory(axes: Axes, curves: Sequence[Curve], styles: Styles) -> None:
    """Extra memory by length, one line per variant."""
    known: list[float] = []
    lengths: list[int] = []
    for curve in curves:
        rows = curve.rows()
        sizes = [row.extra_bytes / BYTES_PER_MIB if row.extra_bytes else math.nan for row in rows.values()]
        axes.plot(list(rows), sizes, label=curve.label, **_marker(styles[curve.label]))
        known += sizes
        lengths += [length for length, row in rows.items() if row.extra_bytes]
    length_scale(axes, lengths)
    log_scale(axes, "y", known, digits)
    axes.set_ylabel("extra memory (MiB)")


def write_png(path: Path, curves: Sequence[Curve], machine: str) -> None:
    """Write a picture of one shape for a README: time and extra memory, side by side under the machine.

    Raises `OSError` where the file cannot be written.
    """
    shown = [curve for curve in curves if curve.seconds()]
    styles = styles_for(shown, PRINTED)
    with drawing(PRINTED, size=10.0):
        figure = Figure(figsize=(10.0, 5.0), dpi=150, layout="constrained", facecolor=PRINTED.paper)
        times, memory = figure.subplots(1, 2)
        draw_times(times, shown, styles)
        draw_memory(memory, shown, styles)
        names = short_names(shown)
        figure.legend(*entries(times, names), loc="outside lower center", ncols=3, frameon=False)
        figure.suptitle(machine, fontsize=9.0)
        figure.savefig(path, format="png", metadata={"Software": None})


def _spoken(curves: Sequence[Curve]) -> str:
    return ", ".join(curve.label for curve in curves)


def _marker(style: Style) -> dict[str, Any]:
    return {
        "color": style.colour,
        "marker": style.marker,
        "markeredgecolor": style.colour,
        "markerfacecolor": style.fill,
    }


def _floor_marker() -> dict[str, Any]:
    ink = mpl.rcParams["text.color"]
    return {"color": ink, "marker": "|", "markersize": 15.0, "markeredgewidth": 1.8, "linestyle": "none"}
