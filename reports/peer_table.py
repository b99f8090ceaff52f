"""Variants beside other packages' attention: tables for a terminal and for a document."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from reports.quantities import digits, error_text, printable
from reports.text_table import Table

MARK: Final = "<!-- written by `attnscape peers --markdown` -->"

SPEED_HEADER: Final = ("peer", "version", "ours", "causal", "tokens", "ours/peer", "ours/SDPA", "peer/SDPA", "remarks")
DEFECT_HEADER: Final = ("peer", "causal", "tokens", "probe", "row sums", "future", "batch", "error", "defects")
FAILURE_HEADER: Final = ("peer", "version", "tokens", "status", "reason")

WORDS: Final = {
    "row sums": "rows do not sum to one",
    "future": "later tokens move earlier outputs",
    "batch": "one item moves another's output",
    "inputs": "writes into its inputs",
    "error": "strays from our oracle",
    "not finite": "gives infinities or NaN",
}


class PeerTableError(ValueError):
    """A document that must not be replaced; the message is one line."""


def peer_blocks(rows: Sequence[Any]) -> list[str | Table]:
    """Rows as `benchmarks.peer_store.PeerRow`, by machine: times, defects, failures, notes and a summary."""
    blocks: list[str | Table] = []
    for machine in dict.fromkeys(row.machine for row in rows):
        blocks += _machine_blocks([row for row in rows if row.machine == machine])
    return blocks or ["No comparison with a peer is there."]


def _machine_blocks(rows: Sequence[Any]) -> list[str | Table]:
    timed = [row for row in rows if row.peer_ratio is not None]
    tried = [row for row in rows if row.status == "ok"]
    failed = [row for row in rows if row.peer_ratio is None]
    blocks: list[str | Table] = [machine_text(rows[0])]
    if timed:
        blocks.append(speed_table(timed))
    if tried:
        blocks.append(defect_table(tried))
    if failed:
        blocks.append(failure_table(failed))
    notes = note_lines(rows)
    if notes:
        blocks.append("Notes\n" + "\n".join(f"  {', '.join(peers)}: {text}" for text, peers in notes.items()))
    return [*blocks, summary(rows)]


def machine_text(row: Any) -> str:
    """What was measured on, in one line."""
    facts = row.machine_facts
    described = ", ".join(f"{name} {facts[name]}" for name in ("threads", "torch", "python") if name in facts)
    return f"Machine {row.machine}: {facts.get('cpu', 'processor unknown')}, {described or f'threads {row.threads}'}"


def speed_table(rows: Iterable[Any]) -> Table:
    """The three ratios with their intervals."""
    return Table(
        title="Time of ours over the peer's, and of each over exact attention without a mask (SDPA); "
        "paired by round, with 95 % intervals",
        header=SPEED_HEADER,
        rows=tuple(_speed_line(row) for row in rows),
        right=frozenset({4, 5, 6, 7}),
    )


def _speed_line(row: Any) -> tuple[str, ...]:
    remarks = ["noisy"] if row.noisy else []
    remarks += [row.variant_reason] if row.variant_reason else []
    return (
        row.peer,
        row.version,
        labelled(row.case),
        _yes(row.case.causal),
        str(row.case.tokens),
        ratio_text(row.ratio, row.ratio_low, row.ratio_high),
        ratio_text(row.variant_ratio, row.variant_ratio_low, row.variant_ratio_high),
        ratio_text(row.peer_ratio, row.peer_ratio_low, row.peer_ratio_high),
        "; ".join(remarks),
    )


def defect_table(rows: Iterable[Any]) -> Table:
    """What was found wrong with the peers, with its figures."""
    return Table(
        title="The peers' own defects, found by running them: row sums with v = 1; how far outputs move when only "
        "later tokens, or only another item, change, all at the probe's length; error against our float64 oracle",
        header=DEFECT_HEADER,
        rows=tuple(_defect_line(row) for row in rows),
        right=frozenset({2, 3}),
    )


def _defect_line(row: Any) -> tuple[str, ...]:
    return (
        row.peer,
        _yes(row.case.causal),
        str(row.case.tokens),
        str(row.probe_tokens),
        _row_sums(row) if row.row_sums else "–",
        _figure(row.future_move) if row.case.causal else "–",
        _figure(row.batch_move),
        _figure(row.error) if row.compared else "–",
        "; ".join(WORDS[name] for name in row.defects) or "none found",
    )


def failure_table(rows: Iterable[Any]) -> Table:
    """Peers without a time, each with the reason."""
    lines = tuple(
        (row.peer, row.version or "–", str(row.case.tokens), _status(row), row.reason or row.variant_reason)
        for row in rows
    )
    return Table(title="Without a time", header=FAILURE_HEADER, rows=lines, right=frozenset({2}))


def _status(row: Any) -> str:
    return "no baseline" if row.status == "ok" else str(row.status)


def note_lines(rows: Iterable[Any]) -> dict[str, list[str]]:
    """What is included, how a function differs, what its package printed; each with the peers of which it is true."""
    found: dict[str, list[str]] = {}
    for row in rows:
        parts = [] if row.agrees else ["another function"]
        parts += [row.note] if row.note else []
        parts += [f"it prints {row.said!r}"] if row.said else []
        text = "; ".join(parts)
        if text and row.peer not in found.setdefault(text, []):
            found[text].append(row.peer)
    return found


def summary(rows: Sequence[Any]) -> str:
    """How many of the comparisons ours won, by their intervals."""
    compared = [row for row in rows if row.ratio is not None]
    faster = sum(row.ratio_high < 1 for row in compared)
    slower = sum(row.ratio_low > 1 for row in compared)
    behind = sum(row.ratio > 0.8 for row in compared)
    wanting = sum(row.status == "not installed" for row in rows)
    text = (
        f"{len(compared)} comparisons: ours faster in {faster}, slower in {slower}, undecided in "
        f"{len(compared) - faster - slower}; above 0.8 of the peer's time in {behind}."
    )
    return text + (f" {wanting} peers are not installed." if wanting else "")


def labelled(case: Any) -> str:
    """The variant with its parameters, or a dash where there is none."""
    chosen = ", ".join(f"{name}={value}" for name, value in case.parameters.items())
    return (f"{case.variant} ({chosen})" if chosen else case.variant) or "–"


def ratio_text(ratio: float | None, low: float | None, high: float | None) -> str:
    """`0.42 [0.41, 0.43]`; a dash where it was not measured."""
    if ratio is None or low is None or high is None:
        return "–"
    return f"{digits(ratio)} [{digits(low)}, {digits(high)}]"


def plan_blocks(entries: Sequence[Any]) -> list[str | Table]:
    """Planned pairs as `benchmarks.peer_comparison.PlannedPair`."""
    lines = tuple(
        (
            entry.peer,
            entry.version or "–",
            labelled(entry.case),
            _yes(entry.case.causal),
            str(entry.case.tokens),
            f"{entry.predicted_bytes / 2**20:.0f}",
            entry.refusal or "measured",
        )
        for entry in entries
    )
    header = ("peer", "version", "ours", "causal", "tokens", "processes MiB", "what")
    ready = sum(not entry.refusal for entry in entries)
    return [Table("", header, lines, right=frozenset({4, 5})), f"{len(entries)} comparisons, {ready} of them run here."]


def check_markdown(path: Path | None) -> None:
    """Raises `PeerTableError` where a file is there that is no document of these, before anything is measured."""
    if path is not None and path.exists() and not path.read_text("utf-8", errors="replace").startswith(MARK):
        raise PeerTableError(f"{path} is no document of `attnscape peers`; it is not replaced")


def write_markdown(path: Path, rows: Sequence[Any]) -> None:
    """The tables as a document; raises `PeerTableError` where it must not be written."""
    check_markdown(path)
    blocks = peer_blocks(rows)
    parts = [markdown_table(block) if isinstance(block, Table) else _markdown_text(block) for block in blocks]
    path.write_text("\n\n".join([MARK, "# Beside other packages", *parts]) + "\n", "utf-8")


def markdown_table(table: Table) -> str:
    """A title as a sentence, and the rows as a table of Markdown."""
    marks = ["---:" if index in table.right else "---" for index in range(len(table.header))]
    lines = [_cells(table.header), _cells(marks), *(_cells(row) for row in table.rows)]
    return f"{table.title}:\n\n" + "\n".join(lines)


def _cells(row: Sequence[str]) -> str:
    return "| " + " | ".join(printable(cell).replace("|", "\\|") for cell in row) + " |"


def _markdown_text(text: str) -> str:
    first, *rest = text.split("\n")
    return "\n".join([printable(first), *([""] if rest else []), *(f"- {printable(line.strip())}" for line in rest)])


def _row_sums(row: Any) -> str:
    if row.row_sum_low is None or row.row_sum_high is None:
        return "not finite"
    if "row sums" not in row.defects:
        return "1"
    return f"{digits(row.row_sum_low, 5)} to {digits(row.row_sum_high, 5)}"


def _figure(value: float | None) -> str:
    return "not finite" if value is None else error_text(value)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
