"""One self-contained HTML page of everything that one machine measured."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jinja2

from reports import page_tables
from reports.curve import Curve, curves
from reports.figures import Picture, pictures, styles_for, write_png
from reports.quantities import digits
from reports.records import Results, ResultsError, Row
from reports.shape import Shape
from reports.text_table import Table

_TEMPLATE = "page.html.jinja"
_MARK = b'<meta name="generator" content="attnscape">'


@dataclass(frozen=True, slots=True)
class Section:
    """What was measured on one shape."""

    name: str
    title: str
    curves: list[Curve]
    pictures: list[Picture]
    tables: list[Table]
    statuses: Table
    reasons: Table


def write_page(path: Path, results: Results, version: str) -> None:
    """Write the page of one machine's results. Raises `OSError`, and `ResultsError` for several machines."""
    text = render(results, version)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_picture(path: Path, results: Results) -> None:
    """Write the picture of the shape with the most timed points (the causal one of two), under the machine's name.

    Raises `OSError`, and `ResultsError` for several machines or where nothing was timed.
    """
    one = results.of_machine()
    timed = Counter(row.case.shape for row in one.rows if row.seconds is not None)
    if not timed:
        raise ResultsError(f"{one.path} holds no times to draw")
    shape = max(timed, key=lambda found: (timed[found], found.causal))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, curves(one.rows, shape), f"{shape.describe()}\n{_machine_line(one.description())}")


def _machine_line(machine: dict[str, Any]) -> str:
    processor = (machine.get("gpu") or {}).get("name") or machine.get("cpu", "unknown processor")
    threads = machine.get("threads")
    return f"{processor}, {threads} threads, torch {machine.get('torch', '?')}"


def is_page(path: Path) -> bool:
    """Whether a file is a page that was written here, so that writing it anew loses nothing."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _MARK in file.read(1024)


def render(results: Results, version: str) -> str:
    """The page as text; the same results give the same text. Raises `ResultsError` for several machines."""
    one = results.of_machine()
    by_shape = {shape: curves(one.rows, shape) for shape in _shapes(one.rows)}
    styles = styles_for(curve for found in by_shape.values() for curve in found)
    sections = [
        _section(f"s{index}", shape, found, pictures(found, styles, f"s{index}"))
        for index, (shape, found) in enumerate(by_shape.items())
        if found
    ]
    return _template().render(
        sections=sections,
        facts=list(_facts(one.rows)),
        machine=one.machines[0],
        machine_table=page_tables.machine_table(one.description()),
        version=version,
    )


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(_TEMPLATE)


def _shapes(rows: Sequence[Row]) -> list[Shape]:
    """Every shape, forward and not causal first, otherwise in the order in which they were measured."""
    known = dict.fromkeys(row.case.shape for row in rows)
    return sorted(known, key=lambda shape: (shape.device, shape.mode != "forward", shape.mode, shape.causal))


def _section(name: str, shape: Shape, found: list[Curve], drawn: list[Picture]) -> Section:
    return Section(
        name=name,
        title=shape.describe(),
        curves=found,
        pictures=drawn,
        tables=[table for table in (page_tables.figures_table(found), page_tables.errors_table(found)) if table.rows],
        statuses=page_tables.status_table(found),
        reasons=page_tables.reasons_table(found),
    )


def _facts(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """The summary: what was measured, when, from which code, and how clean."""
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
