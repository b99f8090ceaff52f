"""Tables and sentences for a terminal: boxed by rich where someone reads, plain and aligned where it is piped."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TextIO

from reports.quantities import printable

if TYPE_CHECKING:
    import rich.table

_FOLDS_WELL: Final = 3
"""Columns up to which a table stays readable with folded cells."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of texts under a header; the columns whose index is in `right` hold numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int] = frozenset()

    def plain(self) -> str:
        """Aligned columns, two spaces apart, without any decoration."""
        lines = [self.header, *(tuple(printable(cell) for cell in row) for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.header))]
        texts = ["  ".join(self._aligned(line, widths)).rstrip() for line in lines]
        return "\n".join([self.title, *texts] if self.title else texts)

    @property
    def width(self) -> int:
        """Characters of the widest line of the plain form."""
        return max(map(len, self.plain().splitlines()))

    def records(self) -> str:
        """One paragraph per row, each value under its name: for terminals that are too narrow for columns."""
        texts = [
            row[0]
            + "\n  "
            + ", ".join(f"{name} {cell}" for name, cell in zip(self.header[1:], row[1:], strict=True) if cell)
            for row in self.rows
        ]
        return "\n".join([self.title, *texts])

    def rich(self) -> "rich.table.Table":
        """The same as a table of rich."""
        from rich import box  # here, because only a terminal needs it
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(
            pad_edge=False,
            collapse_padding=True,
            title=self.title or None,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
        )
        for index, name in enumerate(self.header):
            table.add_column(name, justify="right" if index in self.right else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        return table

    def _aligned(self, line: Sequence[str], widths: Sequence[int]) -> list[str]:
        return [
            cell.rjust(width) if index in self.right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]


def write_blocks(blocks: Sequence[str | Table], stream: TextIO) -> None:
    """Write sentences and tables, one empty line apart."""
    if stream.isatty():
        _write_rich(blocks, stream)
    else:
        texts = [block.plain() if isinstance(block, Table) else printable_lines(block) for block in blocks]
        stream.write("\n\n".join(texts) + "\n")
    stream.flush()


def printable_lines(text: str) -> str:
    """Text of several lines without control characters but line breaks."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _write_rich(blocks: Sequence[str | Table], stream: TextIO) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    for index, block in enumerate(blocks):
        if index:
            console.print()
        if isinstance(block, Table) and (len(block.header) <= _FOLDS_WELL or block.width <= console.width):
            console.print(block.rich())
        else:
            text = block.records() if isinstance(block, Table) else block
            console.print(Text(printable_lines(text)))
