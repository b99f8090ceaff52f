"""Two machines side by side: times of the same variants on the same shapes, never joined."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from reports.curve import Curve, curves
from reports.figures import Picture
from reports.length_figures import Styles
from reports.page_pictures import machines_picture
from reports.quantities import digits, mib_text, seconds_text
from reports.records import Results, ResultsError, Row
from reports.shape import Shape
from reports.text_table import Table


@dataclass(frozen=True, slots=True)
class Beside:
    """One shape on both machines."""

    title: str
    summary: str
    picture: Picture | None
    table: Table


@dataclass(frozen=True, slots=True)
class Comparison:
    """Another machine beside that of the page; `notes` say what differs besides the hardware."""

    machine: str
    description: dict[str, Any]
    notes: tuple[str, ...]
    shapes: tuple[Beside, ...]


def chosen(results: Results, machine: str | None, other: str | None) -> tuple[Results, Results | None]:
    """The rows of the page's machine, and those of the one beside it, each named by the start of its key.

    Of two machines the one that is not beside need not be named. Raises `ResultsError`.
    """
    if other is None:
        return results.of_machine(machine), None
    there = results.of_machine(other)
    left = [key for key in results.machines if key not in there.machines]
    here = results.of_machine(left[0] if machine is None and len(left) == 1 else machine)
    if here.machines == there.machines:
        raise ResultsError(f"{here.machines[0]} cannot stand beside itself: name another machine to compare with")
    return here, there


def comparison(here: Results, there: Results, by_shape: Mapping[Shape, list[Curve]], styles: Styles) -> Comparison:
    """The times of another machine beside those of the page. Raises `ResultsError` where nothing is common."""
    made = []
    for index, (shape, found) in enumerate(by_shape.items()):
        pairs = list(_pairs(found, curves(there.rows, shape)))
        if pairs:
            made.append(_beside(shape, found, pairs, styles, f"m{index}"))
    (machine,) = there.machines
    if not made:
        raise ResultsError(f"{machine} and {here.machines[0]} timed no variant at the same length of the same shape")
    return Comparison(machine, there.description(), tuple(_notes(here.rows, there.rows)), tuple(made))


_Pair = tuple[Curve, int, Row, Row]


def _pairs(here: Sequence[Curve], there: Sequence[Curve]) -> Iterator[_Pair]:
    others = {curve.label: curve.rows() for curve in there}
    for curve in here:
        for length, row in curve.rows().items():
            other = others.get(curve.label, {}).get(length)
            if other is not None and row.seconds is not None and other.seconds is not None:
                yield curve, length, row, other


def _beside(shape: Shape, found: Sequence[Curve], pairs: Sequence[_Pair], styles: Styles, name: str) -> Beside:
    ratios: dict[str, dict[int, float]] = {}
    for curve, length, row, other in pairs:
        ratios.setdefault(curve.label, {})[length] = (other.seconds or 0.0) / (row.seconds or 1.0)
    known = [ratio for each in ratios.values() for ratio in each.values()]
    low, high = min(known), max(known)
    summary = (
        f"{len(known)} points of {len(ratios)} variants on both: there a call takes {digits(median(known))} times "
    )
    summary += f"as long in the median, from {digits(low)} to {digits(high)}."
    title = shape.describe()
    header = ("tokens", "variant", "time here", "time there", "there / here", "95 % bounds", "MiB here", "MiB there")
    rows = tuple(_row(*pair) for pair in sorted(pairs, key=lambda pair: (pair[1], pair[2].seconds or 0.0)))
    table = Table(f"Times on both machines: {title}", header, rows, frozenset({0, *range(2, 8)}))
    return Beside(title, summary, machines_picture(ratios, found, styles, name), table)


def _row(curve: Curve, length: int, row: Row, other: Row) -> tuple[str, ...]:
    here, there = row.seconds or 0.0, other.seconds or 0.0
    bounds = "–"
    if row.seconds_low and row.seconds_high and other.seconds_low and other.seconds_high:
        bounds = f"{digits(other.seconds_low / row.seconds_high)} to {digits(other.seconds_high / row.seconds_low)}"
    sizes = (mib_text(one.total_bytes) if one.total_bytes is not None else "–" for one in (row, other))
    return str(length), curve.label, seconds_text(here), seconds_text(there), digits(there / here), bounds, *sizes


def _notes(here: Sequence[Row], there: Sequence[Row]) -> Iterator[str]:
    commits = ({row.commit for row in here}, {row.commit for row in there})
    if commits[0] != commits[1]:
        yield "The two machines measured different commits: what differs may be the code."
    if any(row.noisy for row in (*here, *there)):
        yield "Some of the times are noisy; their bounds say how much."
