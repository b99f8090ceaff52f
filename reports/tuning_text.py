"""What tuning found: a line for each variant that keeps the limit, and the nearest point of the others."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from reports.curve import labelled
from reports.quantities import digits, error_text, mib_text, percent_text, seconds_text
from reports.text_table import Table


def tuning_blocks(tuning: Any, folder: str) -> list[str | Table]:
    """The tables of a `benchmarks.parameter_tuning.Tuning`, and how they were come by."""
    met = sorted((one for one in tuning.tuned if one.best), key=lambda one: one.best.seconds)
    missed = [one for one in tuning.tuned if one.sampler and not one.best]
    blocks: list[str | Table] = []
    if met:
        title = f"Cheapest parameters with an error of at most {tuning.max_error:g} on {_kinds(tuning.kinds)} inputs"
        blocks.append(_met_table(met, title))
    else:
        blocks.append(f"No variant keeps an error of {tuning.max_error:g} on {_kinds(tuning.kinds)} inputs.")
    if missed:
        blocks.append(_missed_table(missed, tuning.max_error))
    if untuned := _grouped([(one.reason, one.variant) for one in tuning.tuned if not one.sampler]):
        blocks.append(
            "\n".join(["Not tuned", *(f"  {', '.join(names)}: {reason}" for reason, names in untuned.items())])
        )
    return [*blocks, _summary(tuning, folder)]


def _met_table(met: Sequence[Any], title: str) -> Table:
    rows = tuple(
        (
            labelled(one.variant, one.best.parameters),
            error_text(one.best.error),
            seconds_text(one.best.seconds),
            "" if one.best.total_bytes is None else mib_text(one.best.total_bytes),
            _work(one.best),
            _search(one),
        )
        for one in met
    )
    header = ("variant", "error", "time", "MiB", "work of exact", "search")
    return Table(title, header, rows, right=frozenset({1, 2, 3, 4}))


def _missed_table(missed: Sequence[Any], limit: float) -> Table:
    rows = tuple((one.variant, *_nearest(one), _why(one, limit), _search(one)) for one in missed)
    return Table("Nothing found within it", ("variant", "nearest", "error", "why", "search"), rows, frozenset({2}))


def _nearest(one: Any) -> tuple[str, str]:
    """The point of the smallest error; where points were within the limit, but not when measured, the cheapest."""
    point = one.measured[0] if one.measured else one.nearest
    if point is None:
        return "", ""
    names = ", ".join(f"{name} {value}" for name, value in sorted(point.parameters.items()))
    return names, error_text(point.estimated_error)


def _why(one: Any, limit: float) -> str:
    """Why no point counts, though the search may have found some."""
    if not one.measured:
        return one.reason or ("above the limit" if one.complete else "above the limit so far")
    broken = [point for point in one.measured if point.error is not None and point.error > limit]
    if broken:
        return f"measured, the error is {error_text(broken[0].error)}"
    return str(one.measured[0].reason or "its error was not recorded")


def _search(one: Any) -> str:
    """How many points were looked at, of how many; and whether that settles it."""
    settled = ", cheapest" if one.complete and one.best else ""
    return f"{one.evaluated} of {one.points}, {one.sampler}{settled}"


def _work(point: Any) -> str:
    return percent_text(point.work) if math.isfinite(point.work) and point.work < 10 else f"{digits(point.work)} times"


def _summary(tuning: Any, folder: str) -> str:
    new, known = len(tuning.new_rows), tuning.already_there
    text = (
        f"Errors while searching are of {tuning.checked_rows} rows by float64 oracles; cost is the declared work. "
        f"The three cheapest points of each variant were measured, and the fastest that keeps the limit is shown.\n"
        f"{new} new rows, {known} known ones, in {tuning.seconds:.0f} s. Results: {folder}"
    )
    if tuning.left:
        text += f"\n{tuning.left} cases had no time left: the same command goes on with them."
    return text


def _kinds(kinds: Sequence[str]) -> str:
    return ", ".join(kinds)


def _grouped(pairs: Sequence[tuple[str, str]]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for reason, name in pairs:
        found.setdefault(reason, []).append(name)
    return found
