"""What is kept of each comparison with a peer: one JSON line, on the disk before the next one begins."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.append_log import AppendLog, StoreError, whole_bytes
from benchmarks.measurement import Case

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


class PeerStore(AppendLog[PeerRow]):
    """The comparisons in a folder; a context manager that holds the folder's lock.

    Raises `StoreError` where the folder cannot be written, another run holds it, or it holds something else. A last
    line that was cut short is dropped.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is touched before the context is entered."""
        super().__init__(folder, LOG, ".peers.lock")

    def _repaired(self) -> list[PeerRow]:
        rows = read_rows(self.folder)
        if self.path.exists():
            os.truncate(self.path, whole_bytes(self.path.read_bytes()))
        return rows


def read_rows(folder: Path) -> list[PeerRow]:
    """The comparisons in a folder, oldest first; none where there is no file. Raises `StoreError`."""
    path = folder / LOG
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    lines = content[: whole_bytes(content)].splitlines()
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
