"""One self-contained HTML page of everything that one machine measured."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import jinja2

from reports import page_scripts, page_tables
from reports.attention_pictures import attention_pictures
from reports.curve import Curve, curves
from reports.declared_costs import Declare, declare_nothing
from reports.figures import Picture, pictures, write_png
from reports.length_figures import Styles, nothing_foretold, styles_for
from reports.page_answers import Explored, explored, steps_for
from reports.page_data import cell_count, page_data
from reports.page_facts import facts_of
from reports.page_links import asv_links
from reports.page_machines import comparison
from reports.page_pictures import explored_pictures
from reports.processor import machine_name
from reports.records import Results, ResultsError, Row
from reports.shape import Shape
from reports.text_table import Table

_TEMPLATE = "page.html.jinja"

MOST_CELLS: Final = 6000
"""Figures of one variant at one length that a page holds for its scripts, about 250 bytes each."""

CHARTS: Final = (
    (
        "map-error",
        "The winner by length and error",
        "Who comes first where only the error is limited; a click asks for it above.",
    ),
    ("map-memory", "The winner by length and total memory", "Who comes first where only the memory is limited."),
    ("time", "Time against length", "Dashed lines are foretold, within a 90 % band."),
    ("memory", "Extra memory against length", "Beyond q, k, v and the output; dashed lines are foretold."),
    ("energy", "Energy against length", "Of the whole device per call."),
    (
        "pareto",
        "Error against time",
        "No other variant is faster and closer than one on the line. Bars are bands of time.",
    ),
    ("roofline", "Roofline", "Measured points under the ceilings; caches may lift points above the slope."),
)
"""The charts of the explorer: id, title and caption."""

MOST_BYTES: Final = 2_200_000
"""Of the pictures and tables of all shapes together."""

MOST_PAGE_BYTES: Final = 4_800_000
"""Of the whole page; pictures of attention take what the rest of it leaves."""

_CELL_BYTES: Final = 11

_DOUBLINGS: Final = 2
"""Foretold lengths reach four times the last one."""


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
    left_out: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """About how many bytes its pictures and tables take."""
        tables = (*self.tables, self.statuses, self.reasons)
        cells = sum(len(cell) + _CELL_BYTES for table in tables for row in table.rows for cell in row)
        return sum(len(picture.svg) for picture in self.pictures) + cells

    def within(self, room: int) -> "Section":
        """Without its pictures, and then without the errors on every kind of input, where there is no room for them."""
        if self.size <= room:
            return self
        less = replace(self, pictures=[], left_out=("the pictures",))
        if less.size <= room:
            return less
        return replace(less, tables=self.tables[:1], left_out=("the pictures", "the errors on every kind of input"))


@dataclass(frozen=True, slots=True)
class Extras:
    """What a page holds besides one machine's results: another machine's, asv's pages, declared costs."""

    beside: Results | None = None
    asv: str | None = None
    declare: Declare = declare_nothing


def write_page(path: Path, results: Results, version: str, extras: Extras | None = None) -> None:
    """Write the page of one machine's results.

    Raises `OSError`, and `ResultsError` for several machines, or where nothing can be compared or linked.
    """
    text = render(results, version, extras)
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
    return f"{machine_name(machine)}, torch {machine.get('torch', '?')}"


def render(results: Results, version: str, extras: Extras | None = None) -> str:
    """The page as text; the same results give the same text. Raises `ResultsError` for several machines."""
    more = extras or Extras()
    one = results.of_machine()
    by_shape = {shape: found for shape in _shapes(one.rows) if (found := curves(one.rows, shape))}
    styles = styles_for(curve for found in by_shape.values() for curve in found)
    names = {shape: f"s{index}" for index, shape in enumerate(by_shape)}
    known = _explored(one, by_shape, more.declare)
    sections, room = [], MOST_BYTES
    for shape, found in by_shape.items():
        sections.append(_section(names[shape], shape, found, styles, known.get(shape)).within(room))
        room -= sections[-1].size
    scripts = page_scripts.scripts()
    data = page_scripts.embedded(page_data([(names[shape], found) for shape, found in known.items()], styles))
    taken = len(data) + sum(map(len, scripts)) + sum(section.size for section in sections)
    families = {curve.variant.partition("/")[0] for found in by_shape.values() for curve in found}
    return _template().render(
        sections=sections,
        facts=list(facts_of(one.rows)),
        machine=one.machines[0],
        machine_table=page_tables.machine_table(one.description()),
        beside=comparison(one, more.beside, by_shape, styles) if more.beside is not None else None,
        machine_table_of=page_tables.machine_table,
        attention=attention_pictures(families, MOST_PAGE_BYTES - taken),
        links=asv_links(more.asv) if more.asv is not None else [],
        data=data,
        explorable=len(known),
        charts=CHARTS,
        style=page_scripts.style(),
        scripts=scripts,
        policy=page_scripts.policy(scripts),
        version=version,
    )


def _explored(one: Results, by_shape: Mapping[Shape, list[Curve]], declare: Declare) -> dict[Shape, Explored]:
    """What can be explored of each shape, as long as the page has room for it."""
    description = one.description()
    lengths = {row.case.length for row in one.rows}
    doublings = max(1, (max(lengths) // max(1, min(lengths))).bit_length() - 1) + _DOUBLINGS
    steps = steps_for(sum(map(len, by_shape.values())), doublings, MOST_CELLS)
    made: dict[Shape, Explored] = {}
    room = MOST_CELLS
    for shape, found in by_shape.items():
        answer = explored(one.rows, found, shape, steps, description, declare)
        if answer is not None and cell_count(answer) <= room:
            made[shape] = answer
            room -= cell_count(answer)
    return made


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


def _section(name: str, shape: Shape, found: list[Curve], styles: Styles, answer: Explored | None) -> Section:
    maps = explored_pictures(answer, styles, name) if answer else []
    drawn = pictures(found, styles, name, answer.foretold if answer else nothing_foretold)
    return Section(
        name=name,
        title=shape.describe(),
        curves=found,
        pictures=[*maps, *drawn],
        tables=[table for table in (page_tables.figures_table(found), page_tables.errors_table(found)) if table.rows],
        statuses=page_tables.status_table(found),
        reasons=page_tables.reasons_table(found),
    )
