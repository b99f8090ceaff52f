"""What a page says first: what was measured, when, from which code, and how clean."""

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median

from reports.quantities import digits
from reports.records import Row


def facts_of(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Names and texts of the summary."""
    statuses = Counter(row.status for row in rows)
    counted = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
    yield "points", f"{len(rows)}: {counted}"
    yield "variants", str(len({row.case.variant for row in rows}))
    lengths = sorted({row.case.length for row in rows})
    yield "lengths", f"{lengths[0]} to {lengths[-1]} tokens ({len(lengths)} lengths)"
    yield "inputs", ", ".join(sorted({row.case.inputs for row in rows}))
    times = sorted(row.measured_at for row in rows if row.measured_at)
    if times:
        yield "measured", f"{times[0]} to {times[-1]}"
    yield "code", ", ".join(_commits(rows))
    timed = [row for row in rows if row.seconds is not None]
    yield "noisy", f"{sum(bool(row.noisy) for row in timed)} of {len(timed)} times"
    twins = [abs(row.twin_ratio - 1) for row in timed if row.twin_ratio is not None]
    if twins:
        yield (
            "A/A twin",
            f"off by {digits(100 * median(twins), 2)} % (median), {digits(100 * max(twins), 2)} % at worst",
        )


def _commits(rows: Sequence[Row]) -> Iterator[str]:
    for commit, dirty in sorted({(row.commit, row.dirty) for row in rows}):
        yield (commit[:12] or "unknown commit") + (" with uncommitted changes" if dirty else "")
