"""What is kept of each comparison with a peer: one JSON line, on the disk before the next one begins."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from benchmarks.measurement import Case
from benchmarks.store import StoreError

SCHEMA: Final = 1
LOG: Final = "peers.jsonl"
MACHINE_FACTS: Final = ("cpu", "cores", "threads", "kernel", "python", "torch", "allocator")


class PeerRow(msgspec.Struct, kw_only=True):
    """A peer beside our variant and the baseline, measured in turns; `case.variant` is empty where there is no variant.

    `status` and `reason` are the peer's, `variant_status` (empty: not tried) and `variant_reason` ours. Ratios are of
    wall time, paired by round: `ratio` ours over the peer's, `variant_ratio` and `peer_ratio` over the baseline's,
    which is not causal.
    Moves and errors are relative; None beside a defect that names it is a figure that is not finite.
    """

    schema: int = SCHEMA
    key: str
    machine: str
    machine_facts: dict[str, str] = {}
    measured_at: str
    code: str
    commit: str
    dirty: bool
    peer: str
    package: str
    version: str
    note: str
    agrees: bool
    case: Case
    threads: int

    status: str = "ok"
    reason: str = ""
    variant_status: str = ""
    variant_reason: str = ""

    rounds: int = 0
    noisy: bool | None = None
    seconds: float | None = None
    variant_seconds: float | None = None
    baseline_seconds: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    cpu_ratio: float | None = None
    cpu_ratio_low: float | None = None
    cpu_ratio_high: float | None = None
    variant_ratio: float | None = None
    variant_ratio_low: float | None = None
    variant_ratio_high: float | None = None
    peer_ratio: float | None = None
    peer_ratio_low: float | None = None
    peer_ratio_high: float | None = None
    twin_ratio: float | None = None
    wall_samples: dict[str, list[float]] = {}
    cpu_samples: dict[str, list[float]] = {}

    probe_tokens: int | None = None
    row_sums: bool = False
    row_sum_low: float | None = None
    row_sum_high: float | None = None
    future_move: float | None = None
    batch_move: float | None = None
    inputs_changed: bool | None = None
    finite: bool | None = None
    compared: bool = False
    error: float | None = None
    error_row_max: float | None = None
    defects: list[str] = []
    said: str = ""


def key_of(case: Case, peer: str, version: str, machine: str) -> str:
    """The same key is the same comparison, of the same version of the package."""
    content = json.dumps([SCHEMA, machine, peer, version, msgspec.to_builtins(case)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:20]


class PeerStore:
    """The comparisons in a folder; a context manager that holds the folder's lock.

    Raises `StoreError` where the folder cannot be written, another run holds it, or it holds something else. A last
    line that was cut short is dropped.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is touched before the context is entered."""
        self.folder, self.path = folder, folder / LOG
        self._file: FileIO | None = None

    def __enter__(self) -> Self:
        """Lock the folder and read what is there."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / ".peers.lock").open("w")
        except OSError as error:
            raise StoreError(f"cannot write to {self.folder}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.rows = read_rows(self.folder)
            self._file = self.path.open("ab", buffering=0)
            self._file.truncate(_whole_bytes(self.path.read_bytes()))
            self._file.seek(0, os.SEEK_END)
        except BlockingIOError as error:
            self._lock.close()
            raise StoreError(f"another run is writing to {self.folder}; wait for it or choose another --out") from error
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

    def append(self, row: PeerRow) -> None:
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


def read_rows(folder: Path) -> list[PeerRow]:
    """The comparisons in a folder, oldest first; none where there is no file. Raises `StoreError`."""
    path = folder / LOG
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    lines = content[: _whole_bytes(content)].splitlines()
    return [_decode(path, line, number) for number, line in enumerate(lines, 1)]


def latest(rows: Iterable[PeerRow]) -> list[PeerRow]:
    """The last row of each peer on each problem and machine, whatever the version: an older one is superseded."""
    kept: dict[tuple[str, str, str], PeerRow] = {}
    for row in rows:
        place = (row.machine, row.peer, json.dumps(msgspec.to_builtins(row.case), sort_keys=True))
        kept.pop(place, None)
        kept[place] = row
    return list(kept.values())


def facts_of(machine: dict[str, Any]) -> dict[str, str]:
    """What of a machine's description a reader of the figures wants to know."""
    return {name: str(machine[name]) for name in MACHINE_FACTS if machine.get(name) is not None}


def _whole_bytes(content: bytes) -> int:
    return content.rfind(b"\n") + 1


def _decode(path: Path, line: bytes, number: int) -> PeerRow:
    try:
        row = msgspec.json.decode(line, type=PeerRow)
    except msgspec.DecodeError as error:
        raise StoreError(f"{path}, line {number}: not a comparison with a peer: {error}") from error
    if row.schema != SCHEMA:
        raise StoreError(
            f"{path}, line {number}: schema {row.schema}, but this program writes schema {SCHEMA}; use another --out"
        )
    return row
