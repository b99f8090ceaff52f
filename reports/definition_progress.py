"""What is being computed now, on stderr: one line that changes on a terminal, a line for each tenth elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def counting(verb: str) -> Iterator[Callable[[int, int, str], None]]:
    """A context that gives a callback: how many are done, how many in all, what comes next."""
    if sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status(verb) as status:
            yield lambda done, total, at: status.update(f"{verb} {done} of {total}: {at}")
        return
    shown = 0

    def show(done: int, total: int, _at: str) -> None:
        nonlocal shown
        if (tenth := 10 * done // max(1, total)) > shown:
            shown = tenth
            sys.stderr.write(f"{verb} {done} of {total}\n")
            sys.stderr.flush()

    yield show
