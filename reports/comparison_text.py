"""A comparison as tables and sentences for a terminal."""

from collections import Counter
from typing import Final

from reports.comparison import FALSE_ALARMS, FEWEST_PROCESSES, Comparison, Line
from reports.quantities import digits, percent_text
from reports.text_table import Table

_ORDER: Final = ("BROKEN", "SLOW", "LARGER", "WORSE", "AMBIGUOUS", "FAST", "SMALLER", "BETTER", "FIXED", "SAME")
_QUIET: Final = frozenset({"SAME"})


def comparison_blocks(comparison: Comparison, *, every: bool) -> list[str | Table]:
    """What differs (with `every` set, all of it), then the counts and what was reckoned with."""
    shown = [line for line in comparison.lines if every or line.verdict not in _QUIET]
    shown.sort(key=lambda line: _ORDER.index(line.verdict))
    header = ("case", "quantity", "verdict", "B ÷ A", "interval")
    title = f"A: {comparison.first}   B: {comparison.second}"
    rows = tuple(_cells(line) for line in shown)
    counts = Counter(f"{line.verdict} in {line.quantity}" for line in comparison.lines)
    said = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    blocks: list[str | Table] = [Table(title, header, rows)] if rows else [title]
    blocks.append(f"{said}.")
    blocks.append(
        f"A change of time matters beyond ± {percent_text(comparison.margin)}; all cases together are called SLOW or "
        f"FAST by chance in one comparison of {1 / FALSE_ALARMS:.0f}."
    )
    if comparison.noise is not None:
        blocks.append(
            f"Of cases that were timed in fewer than {FEWEST_PROCESSES} processes, the ratios are taken to scatter by "
            f"{percent_text(comparison.noise)} from one to the next, whence their wide intervals: "
            "`attnscape run --processes 8` on both sides tells smaller changes."
        )
    for side, cases in (("A", comparison.only_first), ("B", comparison.only_second)):
        if cases:
            blocks.append(f"Only in {side}: {len(cases)} cases, such as {cases[0]}.")
    return blocks


def _cells(line: Line) -> tuple[str, ...]:
    change = "–" if line.change is None else digits(line.change)
    interval = line.reason
    if line.low is not None and line.high is not None:
        interval = f"{digits(line.low)} to {digits(line.high)}"
    return (line.case, line.quantity, line.verdict, change, interval)
