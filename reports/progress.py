"""How far a run has come, on stderr: a bar with the time left on a terminal, elsewhere a line for each tenth."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress_of(verb: str) -> Iterator[Callable[[int, int, Any], None]]:
    """A context that gives a callback: cases done, cases in all, the row that came last or None."""
    if not sys.stderr.isatty():
        yield _progress_lines(verb)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def show(done: int, total: int, row: Any) -> None:
            at = "" if row is None else f"{row.case.variant} {max(row.case.tokens, row.case.kv_tokens)}"
            bar.update(task, completed=done, total=total, description=f"{verb} {at}")

        yield show


def _progress_lines(verb: str) -> Callable[[int, int, Any], None]:
    shown = 0

    def show(done: int, total: int, row: Any) -> None:
        nonlocal shown
        tenth = 10 * done // max(1, total)
        if tenth > shown or row is None:
            shown = tenth
            sys.stderr.write(f"{verb} {done} of {total}\n")
            sys.stderr.flush()

    return show
