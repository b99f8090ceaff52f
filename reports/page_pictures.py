"""The pictures that only a page has: who wins where, the roofline, energy, and two machines side by side."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Final

import matplotlib as mpl
from matplotlib.patches import Patch, Rectangle

from reports.axis_scale import length_scale, log_scale, short_text
from reports.canvas import add_legend, canvas, clipped, short_names
from reports.curve import Curve
from reports.figure_style import COLOURS, THEMED, drawing, svg_of
from reports.figures import Picture, spoken
from reports.length_figures import Styles, marker_of
from reports.page_answers import Explored
from reports.quantities import digits, error_text, size_text
from reports.roofline import Roofline, roofline_of
from reports.winner_map import WinnerMap, winner_map

_HATCHES: Final = ("", "///", "...", "xxx")
_MOST_TICKS: Final = 8


def explored_pictures(found: Explored, styles: Styles, name: str) -> list[Picture]:
    """The winner maps, and the roofline where it is known."""
    maps = [(by, winner_map(found, by)) for by in ("error", "memory")]
    roofline = roofline_of(found.curves, found.card, found.shape.dtype)
    with drawing(THEMED):
        made = [winner_picture(one, found, f"{name}-map-{by}") for by, one in maps if one is not None]
        if roofline is not None:
            made.append(roofline_picture(roofline, found.curves, styles, f"{name}-roofline"))
    return made


def winner_picture(one: WinnerMap, found: Explored, name: str) -> Picture:
    """Length by limit, coloured and numbered by winner."""
    order = one.order
    names = short_names(found.curves)
    labels = {label: f"{index} {names[label]}" for index, label in enumerate(order, start=1)}
    figure, axes = canvas(
        len(order) + 1, {**labels, "none": "nothing fits"} if order else {"none": "nothing fits"}, 3.2
    )
    for column, length in enumerate(one.lengths):
        cells = [(one.winners[length, limit], row) for row, limit in enumerate(one.limits)]
        for winner, run in groupby(cells, key=lambda cell: cell[0]):
            rows = [row for _, row in run]
            if winner is not None:
                face, hatch = _fill(order.index(winner))
                box = (column - 0.5, rows[0] - 0.5)
                patch = Rectangle(box, 1, len(rows), facecolor=face, hatch=hatch, edgecolor=THEMED.paper, linewidth=0.5)
                axes.add_patch(patch)
                if len(rows) > 1:
                    place = (column, rows[0] + (len(rows) - 1) / 2)
                    text = str(order.index(winner) + 1)
                    axes.text(*place, text, ha="center", va="center", size=7.5, color=_INK_ON[face])
    _map_axes(axes, one, found)
    handles = [
        Patch(facecolor=_fill(index)[0], hatch=_fill(index)[1], edgecolor=THEMED.paper, label=clipped(labels[label]))
        for index, label in enumerate(order)
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=1, frameon=False, handlelength=1.6, labelspacing=0.3)
    what = _WHAT[one.by]
    title = f"The winner by length and {what}"
    caption = f"Who comes first under each limit of {what} alone, by the rule below; where it is empty, nothing fits."
    if max(one.lengths) > found.last:
        caption += " Right of the dotted line figures are foretold."
    return Picture(title, svg_of(figure, name, f"{title}: {', '.join(order)}"), caption)


_WHAT: Final = {"error": "error", "memory": "total memory"}
_DARK: Final = "#101010"
_INK_ON: Final = {colour: "#ffffff" if colour in ("#0072b2", "#767676") else _DARK for colour in (*COLOURS, "#767676")}


def _fill(index: int) -> tuple[str, str]:
    palette = (*COLOURS, "#767676")
    return palette[index % len(palette)], _HATCHES[index // len(palette) % len(_HATCHES)]


def _map_axes(axes: "mpl.axes.Axes", one: WinnerMap, found: Explored) -> None:
    axes.set(xlim=(-0.5, len(one.lengths) - 0.5), ylim=(-0.5, len(one.limits) - 0.5))
    axes.grid(visible=False)
    shown = [place for place, length in enumerate(one.lengths) if length in found.measured or length % found.last == 0]
    shown = _thinned(shown)
    axes.set_xticks(shown, [str(one.lengths[place]) for place in shown])
    base = 10 if one.by == "error" else 2
    whole = [row for row, limit in enumerate(one.limits) if math.isclose(math.log(limit, base) % 1, 0, abs_tol=1e-9)]
    rows = _thinned(whole or list(range(len(one.limits))))
    text = error_text if one.by == "error" else size_text
    axes.set_yticks(rows, [short_text(text(one.limits[row])) for row in rows])
    axes.set_xlabel("tokens")
    axes.set_ylabel(f"largest {'error' if one.by == 'error' else 'total memory'} allowed")
    beyond = [place for place, length in enumerate(one.lengths) if length > found.last]
    if beyond:
        axes.axvline(beyond[0] - 0.5, color=THEMED.ink, linestyle=(0, (1, 1.5)), linewidth=1.2)


def _thinned(places: list[int]) -> list[int]:
    """Every so many of them, the last included, so that their labels have room."""
    step = -(-len(places) // _MOST_TICKS)
    return places[::-1][:: step or 1][::-1]


def roofline_picture(one: Roofline, curves: Sequence[Curve], styles: Styles, name: str) -> Picture:
    """Useful FLOPs a second against useful FLOPs for each byte, under the machine's ceilings."""
    labels = {point.label for point in one.points}
    shown = [curve for curve in curves if curve.label in labels]
    figure, axes = canvas(len(shown) + 1, short_names(shown))
    ridge = one.flop_per_second / one.bytes_per_second
    at = sorted([*(point.intensity for point in one.points), ridge])
    ends = [at[0] / 1.5, ridge, at[-1] * 1.5]
    axes.plot(ends, [one.ceiling(x) for x in ends], color=THEMED.ink, linewidth=1.2, label="ceiling")
    for curve in shown:
        own = [point for point in one.points if point.label == curve.label]
        xs, ys = [point.intensity for point in own], [point.flop_per_second for point in own]
        axes.plot(xs, ys, label=curve.label, linewidth=0.5, **marker_of(styles[curve.label]))
    speeds = [point.flop_per_second for point in one.points]
    log_scale(axes, "x", ends, digits)
    log_scale(axes, "y", [*speeds, one.flop_per_second, one.ceiling(ends[0])], _flops_text)
    axes.set_xlabel("useful FLOP per byte moved")
    axes.set_ylabel("useful FLOP/s")
    add_legend(figure, axes, {"ceiling": "ceiling", **short_names(shown)})
    title = "Roofline"
    caption = f"The line is the most that {one.source} allow: {_flops_text(one.flop_per_second)} FLOP/s and "
    caption += f"{digits(one.bytes_per_second / 1e9)} GB/s. Bytes are those that the formula must move; what caches "
    caption += "keep need not be moved, so that points may lie above the slope."
    return Picture(title, svg_of(figure, name, f"{title} of {spoken(shown)}"), caption)


def machines_picture(
    ratios: dict[str, dict[int, float]], curves: Sequence[Curve], styles: Styles, name: str
) -> Picture | None:
    """The other machine's time over this one's, by length."""
    shown = [curve for curve in curves if curve.label in ratios]
    if not shown:
        return None
    with drawing(THEMED):
        figure, axes = canvas(len(shown), short_names(shown))
        axes.axhline(1.0, color=THEMED.ink, linewidth=1.0, linestyle=(0, (1, 2)))
        for curve in shown:
            known = ratios[curve.label]
            axes.plot([*known], [*known.values()], label=curve.label, **marker_of(styles[curve.label]))
        length_scale(axes, [length for known in ratios.values() for length in known])
        log_scale(axes, "y", [0.8, 1.25, *(ratio for known in ratios.values() for ratio in known.values())], digits)
        axes.set_ylabel("time there / time here")
        add_legend(figure, axes, short_names(shown))
        svg = svg_of(figure, name, f"Time there over time here of {spoken(shown)}")
    return Picture("The other machine's time over this one's", svg, "Above the dotted line this machine is faster.")


def _flops_text(value: float) -> str:
    for scale, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= scale:
            return f"{digits(value / scale)} {unit}"
    return digits(value)
