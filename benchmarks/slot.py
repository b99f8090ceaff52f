"""A card, or a machine without one, held for one measurement at a time by a file lock that every user shares."""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

POLL_SECONDS: Final = 0.2
WAIT_SECONDS: Final = 3600.0


class Occupied(RuntimeError):
    """A card that another measurement holds for longer than one can wait."""


@contextmanager
def slot_of(uuid: str, folder: str = "", wait_seconds: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold the card with that UUID, or the machine where it is empty. Raises `Occupied`.

    A scheduler's own slots are numbers; this lock is what keeps two schedulers apart.
    """
    path = Path(folder or tempfile.gettempdir()) / f"attnscape-{uuid or 'cpu'}.lock"
    handle = _open(path)
    try:
        deadline = time.monotonic() + wait_seconds
        while not _locked(handle):
            if time.monotonic() > deadline:
                raise Occupied(f"{path} has been held by another measurement for {wait_seconds:.0f} s")
            time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(handle)


def _open(path: Path) -> int:
    """For reading, which is enough for a lock, also on the file of another user in a folder of all users."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
