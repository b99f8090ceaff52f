"""Rows of a results file as tables for a terminal: what a run measured, what a check found, and what was left out."""

from collections.abc import Collection, Iterable, Sequence

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
        _mask(row),
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
    figures = ("implementation", "approximation", "mean of V")
    header = ("variant", "causal", "heads", "tokens", "inputs", "status", *figures, "reason")
    return Table(
        title="Errors: of the implementation against its own definition, of that definition against exact attention",
        header=header,
        rows=tuple(
            (
                labelled(row.case.variant, row.case.parameters),
                _mask(row),
                _of_both(row.case.heads, row.case.kv_heads),
                _of_both(row.case.tokens, row.case.kv_tokens),
                row.case.inputs,
                row.status,
                _error(row.implementation_error),
                "exact" if row.exact else _error(row.approximation_error),
                _error(row.mean_of_v_error),
                row.reason,
            )
            for row in rows
        ),
        right=frozenset({6, 7, 8}),
    )


def failures_table(rows: Iterable[Row]) -> Table | None:
    """Reasons of the rows without figures, each with the variants and problems it met; None where there are none."""
    met: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.status != "ok":
            met.setdefault((row.case.variant, row.status, row.reason), []).append(row)
    if not met:
        return None
    lines = tuple(
        (
            *key,
            _joined(_mask(row) for row in same),
            _joined(row.case.inputs for row in same),
            ", ".join(map(str, sorted({row.case.length for row in same}))),
        )
        for key, same in met.items()
    )
    return Table("Without figures", ("variant", "status", "reason", "causal", "inputs", "tokens"), lines)


def left_out(rows: Iterable[Row], elsewhere: Collection[str]) -> list[str | Table]:
    """The problems that variants were left out of, with the reasons; of those that run `elsewhere` only, the names."""
    refused = [row for row in rows if row.status == "unsupported"]
    met: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in refused:
        if row.case.variant not in elsewhere:
            heads, tokens = _of_both(row.case.heads, row.case.kv_heads), _of_both(row.case.tokens, row.case.kv_tokens)
            met.setdefault((row.case.variant, row.reason, heads, tokens), []).append(row)
    lines = tuple(
        (variant, _joined(_mask(row) for row in same), heads, tokens, _joined(row.case.inputs for row in same), reason)
        for (variant, reason, heads, tokens), same in met.items()
    )
    found: list[str | Table] = []
    if lines:
        found.append(Table("Left out", ("variant", "causal", "heads", "tokens", "inputs", "reason"), lines))
    if never := sorted({row.case.variant for row in refused} & {*elsewhere}):
        found.append(f"Not on this machine (`attnscape list` says why): {', '.join(never)}.")
    return found


def _mask(row: Row) -> str:
    return "yes" if row.case.causal else "no"


def _of_both(queries: int, keys: int) -> str:
    """A count of queries, and of keys where that is another."""
    return str(queries) if queries == keys else f"{queries} over {keys}"


def _joined(words: Iterable[str]) -> str:
    return ", ".join(sorted(set(words)))


def _error(error: float | None) -> str:
    return "–" if error is None else error_text(error)
