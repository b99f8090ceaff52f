"""Rows of a results file as tables for a terminal: what a run measured, and what a check found."""

from collections.abc import Iterable, Sequence

from reports.curve import labelled
from reports.quantities import digits, error_text, mib_text, seconds_text
from reports.records import Row
from reports.text_table import Table


def run_table(rows: Sequence[Row]) -> Table:
    """One line for each timed row."""
    header = ("variant", "causal", "tokens", "time", "ratio", "extra MiB", "implementation", "approximation", "notes")
    return Table(
        title="What was measured (ratio: to the baseline, paired; errors: relative, on normal inputs)",
        header=header,
        rows=tuple(_run_line(row) for row in rows),
        right=frozenset({2, 3, 4, 5, 6, 7}),
    )


def _run_line(row: Row) -> tuple[str, ...]:
    return (
        labelled(row.case.variant, row.case.parameters),
        "yes" if row.case.causal else "no",
        str(row.case.length),
        "–" if row.seconds is None else seconds_text(row.seconds),
        "–" if row.ratio is None else digits(row.ratio),
        "–" if row.extra_bytes is None else mib_text(row.extra_bytes),
        _error(row.implementation_error),
        "exact" if row.exact else _error(row.approximation_error),
        row.reason or ("noisy" if row.noisy else ""),
    )


def check_table(rows: Iterable[Row]) -> Table:
    """One line for each variant, problem and kind of input that was checked."""
    header = ("variant", "causal", "inputs", "status", "implementation", "approximation", "mean of V", "reason")
    return Table(
        title="Errors: of the implementation against its own definition, of that definition against exact attention",
        header=header,
        rows=tuple(
            (
                labelled(row.case.variant, row.case.parameters),
                "yes" if row.case.causal else "no",
                row.case.inputs,
                row.status,
                _error(row.implementation_error),
                "exact" if row.exact else _error(row.approximation_error),
                _error(row.mean_of_v_error),
                row.reason,
            )
            for row in rows
        ),
        right=frozenset({4, 5, 6}),
    )


def failures_table(rows: Iterable[Row]) -> Table | None:
    """Reasons of the rows without figures, each with the variants and lengths it met; None where there are none."""
    met: dict[tuple[str, str, str], list[int]] = {}
    for row in rows:
        if row.status != "ok":
            met.setdefault((row.case.variant, row.status, row.reason), []).append(row.case.length)
    if not met:
        return None
    lines = tuple((*key, ", ".join(map(str, sorted(set(lengths))))) for key, lengths in met.items())
    return Table(title="Without figures", header=("variant", "status", "reason", "tokens"), rows=lines)


def _error(error: float | None) -> str:
    return "–" if error is None else error_text(error)
