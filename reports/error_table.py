"""Errors of methods against exact attention, as a table: a line for each method, a column for each kind of input."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace
from typing import Any, Final

from reports.curve import labelled
from reports.quantities import digits
from reports.text_table import Table

FLOOR: Final = "mean of V"
_LOSES: Final = " *"
_KEPT: Final = ("definition", "exact", "parameters", "inputs", "tokens", "causal", "reason")


def error_blocks(found: Sequence[Any]) -> list[str | Table]:
    """A table for each length, given `benchmarks.error_table.Approximation`s, and what its marks mean."""
    blocks: list[str | Table] = [error_table([one for one in found if one.tokens == size]) for size in _lengths(found)]
    lost = any(beaten(one) for one in found)
    notes = [f"*{_LOSES[2:]} no better than the mean of the visible V"] if lost else []
    reasons = dict.fromkeys(f"{_label(one)} on {one.inputs}: {one.reason}" for one in found if one.reason)
    return [*blocks, *("\n".join(part) for part in (notes, list(reasons)) if part)]


def error_table(found: Sequence[Any]) -> Table:
    """The methods of one length; the mean of V stands first, for it is what they must beat."""
    kinds = list(dict.fromkeys(one.inputs for one in found))
    labels = list(dict.fromkeys(_label(one) for one in found))
    by_place = {(_label(one), one.inputs): one for one in found}
    floors = {one.inputs: one.mean_of_v_errors for one in reversed(found) if one.mean_of_v_errors}
    rows = [(FLOOR, *(spread_text(floors.get(kind, ())) for kind in kinds))]
    rows += [(label, *(_cell(by_place[label, kind]) for kind in kinds)) for label in labels]
    title = f"Relative error against exact attention, {found[0].tokens} tokens" if found else "No methods"
    title += ", causal" if found and found[0].causal else ""
    seeds = max((len(one.errors) for one in found), default=0)
    title += f", mean and spread of {seeds} seeds" if seeds > 1 else ""
    return Table(title, ("method", *kinds), tuple(rows), right=frozenset(range(1, len(kinds) + 1)))


def error_document(found: Sequence[Any]) -> list[dict[str, Any]]:
    """The same for a program: every error, their mean and their standard deviation."""
    return [
        {
            "definition": one.definition,
            "parameters": one.parameters,
            "exact": one.exact,
            "inputs": one.inputs,
            "tokens": one.tokens,
            "causal": one.causal,
            "errors": list(one.errors),
            "error": fmean(one.errors) if one.errors else None,
            "spread": stdev(one.errors) if len(one.errors) > 1 else None,
            "mean_of_v_errors": list(one.mean_of_v_errors),
            "mean_of_v_error": fmean(one.mean_of_v_errors) if one.mean_of_v_errors else None,
            "reason": one.reason,
        }
        for one in found
    ]


def stored_table(path: Path, fingerprint: str) -> list[Any] | None:
    """The table that a file holds, or None where it is of other sources."""
    try:
        kept = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return [SimpleNamespace(**row) for row in kept["rows"]] if kept.get("fingerprint") == fingerprint else None


def store_table(path: Path, fingerprint: str, found: Sequence[Any]) -> None:
    """Keep a table with the hash of the sources that it came from; four digits of each error."""
    rows = [
        {name: getattr(one, name) for name in _KEPT}
        | {name: [float(f"{error:.4g}") for error in getattr(one, name)] for name in ("errors", "mean_of_v_errors")}
        for one in found
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"fingerprint": fingerprint, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def error_markdown(found: Sequence[Any]) -> str:
    """The table of one length for a document."""
    table = error_table(found)
    head = "| " + " | ".join(table.header) + " |\n|---" + "|---:" * (len(table.header) - 1) + "|"
    lines = ["| " + " | ".join(cell.replace("*", "\\*") for cell in row) + " |" for row in table.rows]
    note = f"{table.title}. \\* no better than the mean of the visible V."
    return "\n".join([head, *lines]) + f"\n\n{note}"


def beaten(one: Any) -> bool:
    """Whether the mean of V is no worse."""
    return bool(one.errors) and not one.exact and fmean(one.errors) >= fmean(one.mean_of_v_errors)


def spread_text(errors: Sequence[float]) -> str:
    """The mean with two digits, and the standard deviation where there are several."""
    if not errors:
        return "–"
    mean = digits(fmean(errors), 2)
    return f"{mean} ± {digits(stdev(errors), 1)}" if len(errors) > 1 and any(errors) else mean


def _cell(one: Any) -> str:
    text = "exact" if one.exact and one.errors else spread_text(one.errors)
    return text + (_LOSES if beaten(one) else "")


def _label(one: Any) -> str:
    return labelled(one.definition, one.parameters)


def _lengths(found: Sequence[Any]) -> list[int]:
    return list(dict.fromkeys(one.tokens for one in found))
