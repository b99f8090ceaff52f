"""What the pictures of one shape show, as plain numbers: no drawing here."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from reports.curve import PREFERRED_INPUTS, TIMED_INPUTS, Curve, Unavailable


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """Approximation errors on one kind of input at one length, and the floor: the error of the mean of V."""

    inputs: str
    length: int
    errors: dict[str, float]
    floor: float | None


@dataclass(frozen=True, slots=True)
class Point:
    """One variant's time and its error against exact attention."""

    label: str
    seconds: float
    error: float


@dataclass(frozen=True, slots=True)
class Tradeoff:
    """Error against time at one length, on one kind of input."""

    length: int
    inputs: str
    points: tuple[Point, ...]
    floor: float | None


def common_length(lengths: Iterable[Iterable[int]]) -> int | None:
    """The largest length that is in the most of the given sets of lengths."""
    counts = Counter(length for one in lengths for length in set(one))
    return max(counts, key=lambda length: (counts[length], length), default=None)


def error_rows(curves: Sequence[Curve]) -> list[ErrorRow]:
    """The approximation errors of the approximate variants, one row per kind of input."""
    kinds = sorted(
        {inputs for curve in curves for inputs, _ in curve.points}, key=lambda kind: (kind != "normal", kind)
    )
    found = (_error_row(curves, kind) for kind in kinds)
    return [row for row in found if row is not None]


def tradeoff(curves: Sequence[Curve]) -> Tradeoff | None:
    """Error and time at the largest length that the most variants share, on the inputs that all of them know."""
    length = common_length(curve.seconds() for curve in curves)
    if length is None:
        return None
    timed = sum(length in curve.seconds() for curve in curves)
    best: list[Point] = []
    inputs = TIMED_INPUTS
    for kind in PREFERRED_INPUTS:
        points = list(_points(curves, length, kind))
        if len(points) > len(best):
            best, inputs = points, kind
        if len(points) == timed:
            break
    return Tradeoff(length, inputs, tuple(best), _floor(curves, inputs, length)) if best else None


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The points that no other one beats in time and error at once, by time."""
    front: list[Point] = []
    for point in sorted(points, key=lambda one: (one.seconds, one.error)):
        if not front or point.error < front[-1].error:
            front.append(point)
    return front


def _error_row(curves: Sequence[Curve], kind: str) -> ErrorRow | None:
    found = {curve.label: _approximation_errors(curve, kind) for curve in curves if not curve.exact}
    length = common_length(found.values())
    if length is None:
        return None
    errors = {label: known[length] for label, known in found.items() if length in known}
    return ErrorRow(kind, length, errors, _floor(curves, kind, length))


def _approximation_errors(curve: Curve, kind: str) -> dict[int, float]:
    rows = curve.rows(kind).items()
    return {length: row.approximation_error for length, row in rows if row.approximation_error is not None}


def _floor(curves: Sequence[Curve], kind: str, length: int) -> float | None:
    rows = [curve.points.get((kind, length)) for curve in curves]
    known = [row.mean_of_v_error for row in rows if row is not None and row.mean_of_v_error is not None]
    return median(known) if known else None


def _points(curves: Sequence[Curve], length: int, kind: str) -> Iterable[Point]:
    for curve in curves:
        try:
            figures = curve.figures_at(length, kind)
        except Unavailable:
            continue  # a variant without figures has its reasons in the table of statuses
        measured = figures.seconds.provenance == "measured" and figures.error is not None
        if measured and figures.error is not None and figures.error.provenance == "measured":
            yield Point(curve.label, figures.seconds.value, figures.error.value)
