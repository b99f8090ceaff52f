"""The tables of a page: every figure, every error, every status with its reason, and the machine."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from reports.curve import TIMED_INPUTS, Curve
from reports.quantities import digits, error_text, interval_text, mib_text, seconds_text
from reports.records import Row
from reports.text_table import Table

_NOTHING: Final = "–"
_DEEPEST: Final = 6
CARD_TIMES: Final = ("hot", "latency")
"""Beside the time that all else reckons with."""


def figures_table(curves: Sequence[Curve]) -> Table:
    """Time, memory and both errors of every measured point, by length and then by time."""
    found = [(length, curve, row) for curve in curves for length, row in curve.rows().items() if row.status == "ok"]
    found.sort(key=lambda one: (one[0], one[2].seconds or 0.0, one[1].label))
    card = any(row.latency_seconds is not None for _, _, row in found)
    header = (
        "tokens",
        "variant",
        "time",
        "95 % interval",
        *(CARD_TIMES if card else ()),
        "ratio",
        "95 % interval",
        "MiB total",
        "MiB extra",
        "approximation error",
        "implementation error",
        "kernel",
        "flags",
    )
    rows = tuple(_figures_row(length, curve, row, card) for length, curve, row in found)
    title = f"Time, memory and both errors on {TIMED_INPUTS} inputs, ratio to {_baselines(curves)}"
    if card:
        title += (
            ". Time: the card's own, caches cold. Hot: a replayed graph. Latency: what the host waits, launches too"
        )
    return Table(title, header, rows, frozenset({0, *range(2, len(header) - 2)}))


def errors_table(curves: Sequence[Curve]) -> Table:
    """Both errors of every point on every kind of input, beside the floor that the mean of V sets."""
    header = ("inputs", "tokens", "variant", "approximation error", "implementation error", "mean of V")
    found = [
        (kind, length, curve.label, curve.exact, row)
        for curve in curves
        for (kind, length), row in curve.points.items()
        if row.implementation_error is not None or row.approximation_error is not None
    ]
    found.sort(key=lambda one: (one[0] != TIMED_INPUTS, *one[:3]))
    rows = tuple(
        (kind, str(length), label, _approximation(row, exact), *_texts(row.implementation_error, row.mean_of_v_error))
        for kind, length, label, exact, row in found
    )
    return Table("Both errors on every kind of input", header, rows, frozenset({1, 3, 4, 5}))


def status_table(curves: Sequence[Curve]) -> Table:
    """The status of every variant at every length; where inputs differ, the worst with its inputs."""
    lengths = sorted({length for curve in curves for _, length in curve.points})
    rows = tuple((curve.label, *(_status(curve, length) for length in lengths)) for curve in curves)
    return Table("Status by length in tokens", ("variant", *map(str, lengths)), rows)


def reasons_table(curves: Sequence[Curve]) -> Table:
    """Every reason why a point has no figures, with the lengths and inputs that it holds for."""
    places: dict[tuple[str, str, str], tuple[set[int], set[str]]] = defaultdict(lambda: (set(), set()))
    for curve in curves:
        for (kind, length), row in curve.points.items():
            if row.status != "ok":
                lengths, kinds = places[curve.label, row.status, row.reason]
                lengths.add(length)
                kinds.add(kind)
    rows = tuple(
        (label, status, ", ".join(map(str, sorted(lengths))), ", ".join(sorted(kinds)), reason or _NOTHING)
        for (label, status, reason), (lengths, kinds) in sorted(places.items())
    )
    return Table("Why a point has no figures", ("variant", "status", "tokens", "inputs", "reason"), rows)


def machine_table(description: dict[str, Any]) -> Table:
    """A machine description, whatever it holds, as names and values."""
    return Table("The machine", ("what", "value"), tuple(_flat(description, "", 0)))


def _figures_row(length: int, curve: Curve, row: Row, card: bool) -> tuple[str, ...]:
    return (
        str(length),
        curve.label,
        _seconds(row.seconds),
        _interval(row.seconds_low, row.seconds_high),
        *((_seconds(row.hot_seconds), _seconds(row.latency_seconds)) if card else ()),
        digits(row.ratio) if row.ratio is not None else _NOTHING,
        f"{digits(row.ratio_low)} to {digits(row.ratio_high)}" if row.ratio_low and row.ratio_high else _NOTHING,
        mib_text(row.total_bytes) if row.total_bytes is not None else _NOTHING,
        mib_text(row.extra_bytes) if row.extra_bytes is not None else _NOTHING,
        _approximation(row, curve.exact),
        *_texts(row.implementation_error),
        row.kernel or _NOTHING,
        ", ".join(_flags(row)),
    )


def _flags(row: Row) -> Iterator[str]:
    if row.noisy:
        yield "noisy"
    if row.doubtful:
        yield "faster than the machine's ceiling: doubt it"
    if row.host_bound_share:
        yield f"waits for the host in {row.host_bound_share:.0%} of its calls"
    state = row.device_state
    for share, what in (("power_capped_share", "at the card's power limit"), ("rejected_share", "braked, left out")):
        if value := state.get(share):
            yield f"{float(value):.0%} of samples {what}"
    if state.get("foreign_processes"):
        yield "others on the card"
    if "slice" in state:
        yield f"a slice of the card ({state['slice']})"
    if row.dirty:
        yield "uncommitted changes"


def _seconds(value: float | None) -> str:
    return _NOTHING if value is None else seconds_text(value)


def _interval(low: float | None, high: float | None) -> str:
    return _NOTHING if low is None or high is None else interval_text(low, high)


def _approximation(row: Row, exact: bool) -> str:
    return "exact" if exact else _texts(row.approximation_error)[0]


def _texts(*errors: float | None) -> tuple[str, ...]:
    return tuple(_NOTHING if error is None else error_text(error) for error in errors)


def _baselines(curves: Iterable[Curve]) -> str:
    known = {label for curve in curves for row in curve.rows().values() if (label := row.baseline_label)}
    return ", ".join(sorted(known)) or "no baseline"


def _status(curve: Curve, length: int) -> str:
    """One word where all kinds of input agree."""
    statuses = {kind: row.status for (kind, at), row in curve.points.items() if at == length}
    if not statuses:
        return _NOTHING
    if len(set(statuses.values())) == 1:
        return next(iter(statuses.values()))
    failed = [f"{status} on {kind}" for kind, status in sorted(statuses.items()) if status != "ok"]
    return ", ".join(failed)


def _flat(value: Any, name: str, depth: int) -> Iterator[tuple[str, str]]:
    """Nested objects as dotted names; what lies too deep is written as it is."""
    if isinstance(value, dict) and value and depth < _DEEPEST:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key), depth + 1)
    elif name:
        yield name, _value_text(name, value)


def _value_text(name: str, value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_value_text("", inner) for inner in value)
    if isinstance(value, int | float):
        return _number_text(name, value)
    return str(value)


def _number_text(name: str, value: float) -> str:
    last = name.rpartition(".")[2]
    if last.endswith("bytes_per_second"):
        return f"{digits(value / 1e9)} GB/s"
    if last.endswith("bytes"):
        return f"{mib_text(value)} MiB"
    if "flops" in name:
        return f"{digits(value / 1e9)} GFLOP/s"
    return str(value)
