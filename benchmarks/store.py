"""A folder of results: one JSON line for each measurement, appended and flushed, one runner at a time."""

import fcntl
import json
import os
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from benchmarks.measurement import SCHEMA, Measurement


class _Schema(msgspec.Struct):
    """The one field that lines of every schema have."""

    schema: int


class StoreError(ValueError):
    """A folder that cannot be written, or holds what this program must not touch."""


class Store:
    """The results in a folder; a context manager that holds the folder's lock.

    Raises `StoreError` where the folder is not writable, another runner holds it, or its
    file is of another schema. A last line that was cut short is dropped: it was never complete.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is touched before the context is entered."""
        self.folder = folder
        self.path = folder / "measurements.jsonl"
        self._file: FileIO | None = None

    def __enter__(self) -> Self:
        """Lock the folder and read what is there."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / ".lock").open("w")
        except OSError as error:
            raise StoreError(f"cannot write to {self.folder}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise StoreError(f"another run is writing to {self.folder}; wait for it or choose another --out") from error
        try:
            self.rows = self._read()
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

    def done(self, code: str) -> set[str]:
        """Keys of what this very code has measured, failures included."""
        return {row.key for row in self.rows if row.code == code}

    def append(self, row: Measurement) -> None:
        """Write one line, flushed to the disk; raises `StoreError` where the disk does not take it."""
        assert self._file is not None
        start = self._file.tell()
        left = msgspec.json.encode(row) + b"\n"
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
        self.rows.append(row)

    def write_machine(self, description: dict[str, Any]) -> None:
        """Keep the machine's description beside its measurements, replaced as a whole; raises `StoreError`."""
        path = self.folder / "machines" / f"{description['key']}.json"
        draft = path.with_suffix(".part")
        try:
            path.parent.mkdir(exist_ok=True)
            draft.write_text(json.dumps(description, indent=1, sort_keys=True) + "\n", "utf-8")
            draft.replace(path)
        except OSError as error:
            with suppress(OSError):
                draft.unlink()
            raise StoreError(f"cannot write to {path}: {error.strerror}") from error

    def _read(self) -> list[Measurement]:
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        rows = [self._decode(line, number) for number, line in enumerate(whole.splitlines(), 1)]
        if len(whole) < len(content):  # only now that the file is known to be ours
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        return rows

    def _decode(self, line: bytes, number: int) -> Measurement:
        place = f"{self.path}, line {number}"
        try:
            schema = msgspec.json.decode(line, type=_Schema).schema
            if schema != SCHEMA:
                raise StoreError(
                    f"{place}: schema {schema}, but this program writes schema {SCHEMA}; use another --out"
                )
            return msgspec.json.decode(line, type=Measurement)
        except msgspec.DecodeError as error:
            raise StoreError(f"{place}: not a measurement of schema {SCHEMA}: {error}") from error
