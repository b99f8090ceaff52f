"""The measured curve of one variant on one shape, and its figures at any length inside it."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypedDict

import msgspec

from reports.interpolation import (
    LATEST,
    ROUNDING,
    Figure,
    OutOfRange,
    bytes_at,
    error_at,
    error_beyond,
    neighbours,
    time_at,
)
from reports.question import Limit
from reports.records import Row
from reports.shape import Shape

TIMED_INPUTS: Final = "normal"
"""Time and memory are measured on these inputs; they do not depend on the values."""

PREFERRED_INPUTS: Final = ("captured", "normal")
"""Whose errors count where none were asked for: real inputs before the N(0,1) control, which inverts rankings."""


ERRORS: Final = ("implementation_error", "approximation_error", "mean_of_v_error")


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a variant is out: a limit that it breaks, by which factor, or a failure."""

    kind: str
    text: str
    factor: float | None = None


class Errors(TypedDict):
    """The fields of `Figures` that speak of errors."""

    error: Figure | None
    implementation_error: Figure | None
    approximation_error: Figure | None
    mean_of_v_error: Figure | None
    error_inputs: str | None
    error_gap: str


class Unavailable(LookupError):
    """A curve has no figures at a length."""

    def __init__(self, reasons: list[Reason]) -> None:
        """Keep every reason."""
        super().__init__("; ".join(reason.text for reason in reasons))
        self.reasons = tuple(reasons)


@dataclass(frozen=True, slots=True)
class Figures:
    """What one variant takes at one length; None is not measured.

    `error` is the distance from exact attention that a budget limits: the implementation error of an
    exact variant; of an approximation both errors combined as hypot, since rounding does not follow
    the direction of the approximation. On a card `seconds` are its own, `hot_seconds` those of a replayed graph and
    `latency_seconds` what the host waits for one call. `between` holds the measured lengths that were used.
    """

    seconds: Figure
    total_bytes: Figure | None
    extra_bytes: Figure | None
    energy_joules: Figure | None
    hot_seconds: Figure | None
    latency_seconds: Figure | None
    error: Figure | None
    implementation_error: Figure | None
    approximation_error: Figure | None
    mean_of_v_error: Figure | None
    error_inputs: str | None
    error_gap: str
    memory_gap: str
    ratio: Figure | None
    baseline: str | None
    kernel: str | None
    noisy: bool
    between: tuple[int, int]

    @property
    def beats_mean(self) -> bool:
        """Whether the error is less than that of the mean of V; so too where one of them is not known."""
        if self.error is None or self.mean_of_v_error is None:
            return True
        return self.error.value < self.mean_of_v_error.value

    def limited(self) -> dict[Limit, Figure]:
        """The figures that a budget can limit, without those that are not known."""
        figures: dict[Limit, Figure | None]
        figures = {"time": self.seconds, "memory": self.total_bytes, "error": self.error}
        return {name: figure for name, figure in figures.items() if figure is not None}

    def needs(self) -> dict[Limit, float]:
        """What must be granted for the variant to fit: the upper ends of the bands."""
        return {name: figure.most for name, figure in self.limited().items()}


@dataclass(frozen=True)
class Curve:
    """Every point of one variant with one set of parameters on one shape, by inputs and length."""

    variant: str
    parameters: tuple[tuple[str, int], ...]
    exact: bool
    points: Mapping[tuple[str, int], Row]

    @property
    def attention(self) -> bool:
        """Whether it is attention at all, and not here for comparison only."""
        return all(row.attention for row in self.points.values())

    @property
    def label(self) -> str:
        """The variant with its parameters: `local_window/tiled (window 256)`."""
        return labelled(self.variant, dict(self.parameters))

    def rows(self, inputs: str = TIMED_INPUTS) -> dict[int, Row]:
        """The points of one kind of input, by length, without those that were left out for their foretold times."""
        return {length: row for length, row in self._all_rows(inputs).items() if not self._left_out(row)}

    def left_out(self) -> dict[int, Row]:
        """The points that were not tried since a shorter length foretold a call that is too long, by length."""
        return {length: row for length, row in self._all_rows(TIMED_INPUTS).items() if self._left_out(row)}

    def seconds(self) -> dict[int, float]:
        """Every measured time, by length."""
        return {length: row.seconds for length, row in self.rows().items() if row.seconds is not None}

    def figures_at(self, length: int, inputs: str | None = None) -> Figures:
        """The figures at `length`, with the errors on `inputs`. Raises `Unavailable` with every reason."""
        sides = self._timed_sides(length)
        seconds = _banded(sides, length, "seconds")
        if seconds is None:
            raise Unavailable([Reason("error", f"no time was measured at {_lengths_text(sides)} tokens")])
        return Figures(
            seconds=seconds,
            total_bytes=_figure(sides, length, bytes_at, "total_bytes"),
            extra_bytes=_figure(sides, length, bytes_at, "extra_bytes"),
            energy_joules=_figure(sides, length, time_at, "energy_joules"),
            hot_seconds=_figure(sides, length, time_at, "hot_seconds"),
            latency_seconds=_figure(sides, length, time_at, "latency_seconds"),
            memory_gap="",
            ratio=_banded(sides, length, "ratio"),
            baseline=_joined(row.baseline_label for row in sides.values()),
            kernel=_joined(row.kernel for row in sides.values()),
            noisy=any(row.noisy for row in sides.values()),
            between=(min(sides), max(sides)),
            **self.errors_at(length, inputs),
        )

    def errors_at(self, length: int, inputs: str | None) -> Errors:
        """The fields of `Figures` that speak of errors, between measured lengths or a little beyond them."""
        kind, sides, gap = self._error_sides(length, inputs)
        at = error_at if not sides or length <= max(sides) else error_beyond
        try:
            if at is error_beyond and not self.exact:
                _require_trend(sides)
            implementation, approximation, mean_of_v = (_figure(sides, length, at, name) for name in ERRORS)
        except OutOfRange as error:
            implementation = approximation = mean_of_v = None
            gap = f"on {kind} inputs: {error}"
        total = implementation if self.exact else _combined(implementation, approximation)
        return Errors(
            error=total,
            implementation_error=implementation,
            approximation_error=approximation,
            mean_of_v_error=mean_of_v,
            error_inputs=kind,
            error_gap=gap if total is None else "",
        )

    def _all_rows(self, inputs: str) -> dict[int, Row]:
        return {length: row for (kind, length), row in sorted(self.points.items()) if kind == inputs}

    @cached_property
    def _timed(self) -> bool:
        return any(row.seconds is not None for row in self.points.values())

    def _left_out(self, row: Row) -> bool:
        """It is no failure, but a length that was not measured, where times are known to tell it from."""
        return row.foretold_seconds is not None and self._timed

    def _timed_sides(self, length: int) -> dict[int, Row]:
        """The rows on both sides of `length`, all `ok`. Raises `Unavailable`."""
        rows = self.rows()
        try:
            found = neighbours(rows, length)
        except OutOfRange as error:
            raise Unavailable(_out_of_range(rows, length, str(error))) from error
        failed = [row for (_, at), row in sorted(self.points.items()) if at in found and _rules_out(row)]
        if failed:
            raise Unavailable(failures(failed))
        return {at: rows[at] for at in found}

    def _error_sides(self, length: int, inputs: str | None) -> tuple[str | None, dict[int, Row], str]:
        """Kind of input and rows of the first kind with errors at `length`; otherwise why there are none."""
        gaps = []
        for kind in PREFERRED_INPUTS if inputs is None else (inputs,):
            rows = self.rows(kind)
            try:
                sides = {at: rows[at] for at in self._error_lengths(rows, length)}
            except OutOfRange as error:
                gaps.append(f"on {kind} inputs: {error}")
                continue
            failed = [row for row in sides.values() if row.status != "ok"]
            if not failed:
                return kind, sides, f"none was recorded on {kind} inputs"
            gaps += [reason.text for reason in failures(failed)]
        return inputs, {}, "; ".join(gaps)

    def _error_lengths(self, rows: Mapping[int, Row], length: int) -> Iterable[int]:
        """The neighbours; where times are foretold too, the last lengths. Raises `OutOfRange`."""
        timed = self.rows()
        if rows and timed and length > max(timed) and length > max(rows) and 2 * max(rows) >= max(timed):
            return sorted(rows)[-LATEST:]
        return neighbours(rows, length)


def curves(rows: Iterable[Row], shape: Shape) -> list[Curve]:
    """The curves of one shape, by name. Points of several seeds become one, see `_worst`."""
    grouped: dict[tuple[str, tuple[tuple[str, int], ...]], dict[tuple[str, int], list[Row]]]
    grouped = defaultdict(lambda: defaultdict(list))
    for row in rows:
        case = row.case
        if case.shape == shape and case.length > 0:
            parameters = tuple(sorted(case.parameters.items()))
            grouped[case.variant, parameters][case.inputs, case.length].append(row)
    return [
        Curve(variant, parameters, all(row.exact for same in points.values() for row in same), _points(points))
        for (variant, parameters), points in sorted(grouped.items())
    ]


def labelled(variant: str, parameters: Mapping[str, int]) -> str:
    """A variant's name with its parameters, where it has any."""
    texts = ", ".join(f"{name} {value}" for name, value in sorted(parameters.items()))
    return f"{variant} ({texts})" if texts else variant


def failures(rows: Iterable[Row]) -> list[Reason]:
    """Status and reason of rows without figures; the lengths at which they are the same are joined."""
    lengths: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in rows:
        inputs = "" if row.case.inputs == TIMED_INPUTS else f" on {row.case.inputs} inputs"
        lengths[row.status, inputs, row.reason].append(str(row.case.length))
    return [
        Reason(status, f"{status}{inputs} at {' and '.join(at)} tokens" + (f": {reason}" if reason else ""))
        for (status, inputs, reason), at in lengths.items()
    ]


def _rules_out(row: Row) -> bool:
    """A kernel that is wrong on any input is wrong; other failures count on the timed inputs only."""
    return row.status == "wrong" or (row.status != "ok" and row.case.inputs == TIMED_INPUTS)


def _points(points: Mapping[tuple[str, int], list[Row]]) -> dict[tuple[str, int], Row]:
    return {place: _worst(rows) for place, rows in points.items()}


def _worst(rows: list[Row]) -> Row:
    """One row for all seeds: a failure if there is one, else the lowest seed's with the largest errors."""
    first = min(rows, key=lambda row: (row.status == "ok", row.case.seed))
    if len(rows) == 1 or first.status != "ok":
        return first
    names = ("implementation_error", "approximation_error")
    known = {name: [value for row in rows if (value := getattr(row, name)) is not None] for name in names}
    return msgspec.structs.replace(first, **{name: max(values) for name, values in known.items() if values})


def _out_of_range(rows: Mapping[int, Row], length: int, text: str) -> list[Reason]:
    if not rows:
        return [Reason("not_measured", f"not measured on {TIMED_INPUTS} inputs")]
    nearest = rows[min(rows, key=lambda at: abs(at - length))]
    failed = [] if nearest.status == "ok" else failures([nearest])
    if all(row.status != "ok" for row in rows.values()):
        return failed
    return [Reason("not_measured", text), *failed]


def _figure(
    sides: Mapping[int, Row], length: int, at: Callable[[Mapping[int, float], int], Figure], name: str
) -> Figure | None:
    """One field at `length`; None where a side has no such figure."""
    values = {place: getattr(row, name) for place, row in sides.items()}
    if not values or any(value is None for value in values.values()):
        return None
    return at(values, length)


def _require_trend(sides: Mapping[int, Row]) -> None:
    """Raise `OutOfRange` where an approximation was exact so far: nothing tells from which length it is not."""
    last = max(sides)
    if (sides[last].approximation_error or 0.0) <= ROUNDING:
        raise OutOfRange(f"exact up to rounding at {last} tokens, which says nothing of longer ones")


def _banded(sides: Mapping[int, Row], length: int, name: str) -> Figure | None:
    """One field with the ends of its interval."""
    middle, low, high = (_figure(sides, length, time_at, field) for field in (name, f"{name}_low", f"{name}_high"))
    if middle is None or low is None or high is None:
        return middle
    return Figure(middle.value, middle.provenance, low.value, high.value)


def _combined(implementation: Figure | None, approximation: Figure | None) -> Figure | None:
    if implementation is None or approximation is None:
        return None
    value = math.hypot(implementation.value, approximation.value)
    if implementation.low is None and approximation.low is None:
        return Figure(value, implementation.provenance)
    low, high = (
        math.hypot(implementation.least, approximation.least),
        math.hypot(implementation.most, approximation.most),
    )
    return Figure(value, implementation.provenance, low, high)


def _joined(texts: Iterable[str | None]) -> str | None:
    known = dict.fromkeys(text for text in texts if text)
    return " / ".join(known) or None


def _lengths_text(sides: Mapping[int, Row]) -> str:
    return " and ".join(str(length) for length in sorted(sides))
