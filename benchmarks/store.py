"""A folder of results: one JSON line for each measurement, appended and flushed, one runner at a time.

Older lines may have been folded into a Parquet file beside it; a reader reads both.
"""

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.append_log import AppendLog, StoreError, whole_bytes
from benchmarks.measurement import SCHEMA, Measurement

LOG: Final = "measurements.jsonl"
COMPACTED: Final = "measurements.parquet"
COMPACT_FROM_BYTES: Final = 16 * 2**20
"""A longer log is folded at the end of a run: from there on, reading lines takes a good part of a second."""


class _Schema(msgspec.Struct):
    """The one field that lines of every schema have."""

    schema: int


class Store(AppendLog[Measurement]):
    """The results in a folder; a context manager that holds the folder's lock.

    Raises `StoreError` where the folder is not writable, another runner holds it, or its
    file is of another schema. A last line that was cut short is dropped: it was never complete.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is touched before the context is entered."""
        super().__init__(folder, LOG, ".lock")
        self.compacted = folder / COMPACTED

    def write_machine(self, description: dict[str, Any]) -> None:
        """Keep the machine's description beside its measurements, replaced as a whole; raises `StoreError`.

        Only the ceilings of dtypes that were not measured this time stay as they were.
        """
        path = self.folder / "machines" / f"{description['key']}.json"
        draft = path.with_suffix(".part")
        description = _with_earlier_ceilings(description, path)
        try:
            path.parent.mkdir(exist_ok=True)
            draft.write_text(json.dumps(description, indent=1, sort_keys=True) + "\n", "utf-8")
            draft.replace(path)
        except OSError as error:
            with suppress(OSError):
                draft.unlink()
            raise StoreError(f"cannot write to {path}: {error.strerror}") from error

    def compact(self) -> int:
        """Fold the lines into the Parquet file and empty the log; returns how many rows that file then holds.

        The log is emptied only when the file is on the disk: a crash between leaves rows in both, which readers
        tell by their identity. Raises `StoreError` where the disk does not take it; then nothing has changed.
        """
        from benchmarks.compaction import write_parquet  # pyarrow takes its time

        assert self._file is not None
        rows, _ = _read(self.folder)
        if self._file.tell():
            write_parquet(self.compacted, rows)
            self._file.truncate(0)
            self._file.seek(0)
            os.fsync(self._file.fileno())
        return len(rows)

    def compact_if_long(self) -> None:
        """Fold a log of which reading would take long."""
        if self.path.stat().st_size >= COMPACT_FROM_BYTES:
            self.compact()

    def _repaired(self) -> list[Measurement]:
        """What is there, once what a killed run left half-written is gone."""
        rows, whole_bytes = _read(self.folder)
        if whole_bytes is not None:  # only now that the file is known to be ours
            with self.path.open("r+b") as file:
                file.truncate(whole_bytes)
        (self.folder / f".{COMPACTED}.part").unlink(missing_ok=True)
        return rows


def keys_of(rows: Iterable[Measurement], code: str) -> set[str]:
    """Keys of what this very code has measured, failures included."""
    return {row.key for row in rows if row.code == code}


def holds_results(folder: Path) -> bool:
    """Whether the folder has a file of measurements."""
    return any((folder / name).exists() for name in (LOG, COMPACTED))


def read_folder(folder: Path) -> list[Measurement]:
    """The measurements of a folder that another run may be writing to; raises `StoreError`."""
    if not holds_results(folder):
        raise StoreError(f"no {LOG} in {folder}; `attnscape run --out {folder}` writes it")
    try:
        return _read(folder)[0]
    except OSError as error:
        raise StoreError(f"cannot read {error.filename or folder}: {error.strerror}") from error


def merge_folders(folders: Sequence[Path], out: Path) -> tuple[int, int]:
    """Gather the rows and machines of several folders in one; returns how many rows came, and how many were there.

    The folders are only read. Raises `StoreError`.
    """
    sources = [read_folder(folder) for folder in folders]
    with Store(out) as store:
        there = {identity(row) for row in store.rows}
        came = {identity(row): row for rows in sources for row in rows if identity(row) not in there}
        machines = [path for folder in folders for path in sorted((folder / "machines").glob("*.json"))]
        for path in machines:  # before the rows: no row stands without its machine
            if not (out / "machines" / path.name).exists():
                store.write_machine(_description(path))
        store.extend(list(came.values()))
        store.compact_if_long()
    return len(came), sum(map(len, sources)) - len(came)


def identity(row: Measurement) -> tuple[str, str, str, str]:
    """What two copies of one row share, and no two measurements do."""
    return row.key, row.code, row.run, row.measured_at


def _with_earlier_ceilings(description: dict[str, Any], path: Path) -> dict[str, Any]:
    with suppress(OSError, msgspec.DecodeError, KeyError, TypeError):  # what cannot be read is replaced
        earlier = msgspec.json.decode(path.read_bytes())["ceilings"]["matmul_flops"]
        ceilings = description["ceilings"]
        return description | {"ceilings": ceilings | {"matmul_flops": earlier | ceilings["matmul_flops"]}}
    return description


def _description(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any]) | {"key": path.stem}
    except (OSError, msgspec.DecodeError) as error:
        raise StoreError(f"{path} is not a machine description: {error}") from error


def _read(folder: Path) -> tuple[list[Measurement], int | None]:
    """Every row once, and the whole bytes of the log where its last line was cut short.

    The log comes first: what is folded meanwhile is then read twice rather than not at all.
    """
    path, compacted = folder / LOG, folder / COMPACTED
    content = path.read_bytes() if path.exists() else b""
    whole = content[: whole_bytes(content)]
    logged = [_decode(path, line, number) for number, line in enumerate(whole.splitlines(), 1)]
    if not compacted.exists():
        return logged, None if whole == content else len(whole)
    from benchmarks.compaction import read_parquet

    rows = {identity(row): row for row in (*read_parquet(compacted), *logged)}
    return list(rows.values()), None if whole == content else len(whole)


def _decode(path: Path, line: bytes, number: int) -> Measurement:
    place = f"{path}, line {number}"
    try:
        schema = msgspec.json.decode(line, type=_Schema).schema
        if schema != SCHEMA:
            raise StoreError(f"{place}: schema {schema}, but this program writes schema {SCHEMA}; use another --out")
        return msgspec.json.decode(line, type=Measurement)
    except msgspec.DecodeError as error:
        raise StoreError(f"{place}: not a measurement of schema {SCHEMA}: {error}") from error
