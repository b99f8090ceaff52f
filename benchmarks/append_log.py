"""A file of rows in a folder, one JSON line each: appended, flushed, and written by one runner at a time."""

import fcntl
import os
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

import msgspec

Row = TypeVar("Row", bound=msgspec.Struct)


class StoreError(ValueError):
    """A folder that cannot be written, or holds what this program must not touch."""


class AppendLog(Generic[Row]):
    """The rows of one file; a context manager that holds its lock.

    Raises `StoreError` where the folder is not writable, another runner holds the lock, or the file holds
    something else. A kind of rows says in `_repaired` how they are read.
    """

    def __init__(self, folder: Path, log: str, lock: str) -> None:
        """Nothing is touched before the context is entered."""
        self.folder, self.path = folder, folder / log
        self._lock_path = folder / lock
        self._file: FileIO | None = None
        self.rows: list[Row] = []

    def __enter__(self) -> Self:
        """Lock the folder and read what is there."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = self._lock_path.open("w")
        except OSError as error:
            raise StoreError(f"cannot write to {self.folder}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise StoreError(f"another run is writing to {self.folder}; wait for it or choose another --out") from error
        try:
            self.rows = self._repaired()
            # Unbuffered: what a full disk did not take must not come back at the next flush.
            self._file = self.path.open("ab", buffering=0)
        except StoreError:
            self._lock.close()
            raise
        except OSError as error:
            self._lock.close()
            raise StoreError(f"cannot write to {self.path}: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file and let go of the folder."""
        if self._file is not None:
            self._file.close()
        self._lock.close()

    def append(self, row: Row) -> None:
        """Write one line, flushed to the disk; raises `StoreError` where the disk does not take it."""
        self.extend([row])

    def extend(self, rows: Sequence[Row]) -> None:
        """Write several lines, all or none; raises `StoreError`."""
        assert self._file is not None
        start = self._file.tell()
        left = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        try:
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(start)
            self._file.seek(start)
            raise StoreError(
                f"cannot write to {self.path}: {error.strerror}; what was measured before is kept"
            ) from error
        self.rows += rows

    def _repaired(self) -> list[Row]:
        """What is there, once a last line that was cut short is gone: it was never complete."""
        raise NotImplementedError


def whole_bytes(content: bytes) -> int:
    """Bytes up to the end of the last line that was written in full."""
    return content.rfind(b"\n") + 1
