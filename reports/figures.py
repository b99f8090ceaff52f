"""Pictures of what was measured: time, memory and error, for a page and for a README."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from reports.axis_scale import error_scale, length_scale, log_scale
from reports.canvas import add_legend, canvas, clipped, entries, short_names
from reports.curve import Curve
from reports.figure_style import PRINTED, THEMED, drawing, svg_of
from reports.landscape import error_rows, pareto_front, tradeoff
from reports.length_figures import Foretell, Styles, draw_memory, draw_times, marker_of, nothing_foretold, styles_for
from reports.quantities import error_text, joules_text, seconds_text

_FLOOR: Final = "mean of V (floor)"
_MOST_LINES: Final = 8
"""Of a picture for a README: there are as many colours."""

_LINES: Final = "Whole lines join measured points; dashed ones without marks are foretold, within a 90 % band."


@dataclass(frozen=True, slots=True)
class Picture:
    """An SVG element with the text that says what it shows."""

    title: str
    svg: str
    caption: str


def pictures(
    curves: Sequence[Curve], styles: Styles, name: str, foretell: Foretell = nothing_foretold
) -> list[Picture]:
    """The pictures of one shape, those that have data; `name` keeps their ids apart on a page."""
    with drawing(THEMED):
        made = [
            time_picture(curves, styles, f"{name}-time", foretell),
            memory_picture(curves, styles, f"{name}-memory", foretell),
            energy_picture(curves, styles, f"{name}-energy"),
            error_picture(curves, styles, f"{name}-error"),
            tradeoff_picture(curves, styles, f"{name}-tradeoff"),
        ]
    return [picture for picture in made if picture is not None]


def time_picture(
    curves: Sequence[Curve], styles: Styles, name: str, foretell: Foretell = nothing_foretold
) -> Picture | None:
    """Time against length with its 95 % intervals."""
    timed = [curve for curve in curves if curve.seconds()]
    if not timed:
        return None
    figure, axes = canvas(len(timed), short_names(timed))
    draw_times(axes, timed, styles, foretell)
    add_legend(figure, axes, short_names(timed))
    title = "Time against length"
    caption = f"Median wall time per call; the band is its 95 % interval. {_LINES}"
    return Picture(title, svg_of(figure, name, f"{title} of {spoken(timed)}"), caption)


def memory_picture(
    curves: Sequence[Curve], styles: Styles, name: str, foretell: Foretell = nothing_foretold
) -> Picture | None:
    """Extra memory against length."""
    known = [curve for curve in curves if any(row.extra_bytes for row in curve.rows().values())]
    if not known:
        return None
    figure, axes = canvas(len(known), short_names(known))
    draw_memory(axes, known, styles, foretell)
    add_legend(figure, axes, short_names(known))
    title = "Extra memory against length"
    zeros = sum(row.extra_bytes == 0 for curve in curves for row in curve.rows().values())
    caption = f"Peak memory beyond q, k, v and the output. {_LINES}"
    caption += f" {zeros} points without extra memory have no place on this axis." if zeros else ""
    return Picture(title, svg_of(figure, name, f"{title} of {spoken(known)}"), caption)


def energy_picture(curves: Sequence[Curve], styles: Styles, name: str) -> Picture | None:
    """Energy per call against length, where it was measured."""
    known = [curve for curve in curves if any(row.energy_joules for row in curve.rows().values())]
    if not known:
        return None
    figure, axes = canvas(len(known), short_names(known))
    drawn: list[float] = []
    for curve in known:
        rows = curve.rows()
        joules = [row.energy_joules or math.nan for row in rows.values()]
        axes.plot(list(rows), joules, label=curve.label, **marker_of(styles[curve.label]))
        drawn += joules
    length_scale(axes, [length for curve in known for length, row in curve.rows().items() if row.energy_joules])
    log_scale(axes, "y", drawn, joules_text)
    axes.set_ylabel("energy per call")
    add_legend(figure, axes, short_names(known))
    title = "Energy against length"
    return Picture(title, svg_of(figure, name, f"{title} of {spoken(known)}"), "Energy of the whole device per call.")


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
            axes.plot([error], [place], label=label, linestyle="none", **marker_of(styles[label]))
        if row.floor is not None:
            axes.plot([row.floor], [place], label="mean of V", **_floor_marker())
    error_scale(axes, [error for row in rows for error in (*row.errors.values(), row.floor or 0.0)])
    axes.set_yticks(range(len(rows)), [f"{clipped(row.inputs, 16)}\n{row.length} tokens" for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("approximation error (relative to exact attention)")
    add_legend(figure, axes, {**short_names(shown), "mean of V": _FLOOR})
    title = "Approximation error by inputs"
    caption = "Left is better. Right of the floor a variant is worse than the plain mean of all values."
    return Picture(title, svg_of(figure, name, f"{title} of {spoken(shown)}"), caption)


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
        axes.plot([point.seconds], [point.error], label=point.label, linestyle="none", **marker_of(styles[point.label]))
    log_scale(axes, "x", [point.seconds for point in points], seconds_text)
    log_scale(axes, "y", [*(point.error for point in points), *([found.floor] if found.floor else [])], error_text)
    axes.set_xlabel(f"time per call at {found.length} tokens")
    axes.set_ylabel(f"error on {clipped(found.inputs, 16)} inputs")
    add_legend(figure, axes, {**short_names(shown), "Pareto front": "Pareto front", "mean of V": _FLOOR})
    title = "Error against time"
    caption = "Both kinds of error together. No other variant is faster and closer than one on the front."
    return Picture(title, svg_of(figure, name, f"{title} at {found.length} tokens of {spoken(shown)}"), caption)


def write_png(path: Path, curves: Sequence[Curve], machine: str) -> None:
    """Write a picture of one shape for a README: time and extra memory, side by side under the machine.

    Of many variants it shows some, see `some_of`, and says so. Raises `OSError` where the file cannot be written.
    """
    timed = [curve for curve in curves if curve.seconds()]
    shown = some_of(timed)
    if len(shown) < len(timed):
        machine += f"; {len(shown)} of {len(timed)} variants"
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


def some_of(curves: Sequence[Curve]) -> list[Curve]:
    """As many as a reader can tell apart: of each definition the variant that goes furthest, the faster of two there.

    The exact ones, which all are held against, and of the approximations some from the fastest to the slowest.
    """
    if len(curves) <= _MOST_LINES:
        return list(curves)

    def worth(curve: Curve) -> tuple[bool, int, float]:
        furthest, seconds = max(curve.seconds().items())
        return not curve.exact, -furthest, seconds

    best: dict[str, Curve] = {}
    for curve in sorted(curves, key=worth):
        if curve.attention:
            best.setdefault(curve.variant.partition("/")[0], curve)
    ranked = list(best.values())
    exact = [curve for curve in ranked if curve.exact][: _MOST_LINES // 2]
    others = [curve for curve in ranked if not curve.exact]
    count = min(len(others), _MOST_LINES - len(exact))
    chosen = [*exact, *(others[place * len(others) // count] for place in range(count))]
    return [curve for curve in curves if curve in chosen]


def spoken(curves: Sequence[Curve]) -> str:
    """The names of curves, for those who hear a picture."""
    return ", ".join(curve.label for curve in curves)


def _floor_marker() -> dict[str, Any]:
    ink = mpl.rcParams["text.color"]
    return {"color": ink, "marker": "|", "markersize": 15.0, "markeredgewidth": 1.8, "linestyle": "none"}
