"""References of a session's cases: each made once, in a worker that runs no variant, and handed over as files."""

import fcntl
import math
import os
import shutil
import tempfile
import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.machine import available_bytes
from benchmarks.measurement import Case
from benchmarks.reference_files import Files, own_bytes, shared_bytes
from benchmarks.workers import Fault, Worker, Workers
from variants.catalogue import load
from variants.definition import Definition

MEMORY_FOLDER: Final = Path("/dev/shm")
PREFIX: Final = "attnscape-references-"
LIMIT_BYTES: Final = 2**30
MEMORY_PART: Final = 8
"""The files take no more than this part of the memory or of the disk that is free, and never more than the limit."""

FORSAKEN_SECONDS: Final = 60.0

Key = tuple[Any, ...]


class References:
    """Makes and keeps references, least lately used ones given up; close it to delete the files.

    A failure is kept as well: what crashed or hung once is not tried again for the next variant.
    """

    def __init__(self, workers: Workers, threads: int, timeout_seconds: float) -> None:
        """Nothing is started or written before the first case."""
        self._workers, self._threads, self._timeout_seconds = workers, threads, timeout_seconds
        self.until = math.inf
        """No answer is waited for any longer, by the monotonic clock; what then lacks may be asked for again."""
        self._worker: Worker | None = None
        self._folder: Path | None = None
        self._lock = -1
        self._limit = 0
        self._count = 0
        self._kept: OrderedDict[Key, tuple[Path, int]] = OrderedDict()
        self._failed: dict[Key, Fault] = {}

    def of(self, case: Case) -> Files | None:
        """The files of a case, made where they are not there; None where they would be too large to be kept.

        Raises `Fault` where they cannot be made.
        """
        problem, definition = case.problem(), load(case.variant).definition
        if shared_bytes(problem) + own_bytes(problem) > self._begun():
            return None
        shared = self._file(shared_key(case), "refer_shared", case, (), shared_bytes(problem))
        own = self._file(own_key(case, definition), "refer_own", case, (shared,), own_bytes(problem))
        return Files(shared, own)

    def pause(self) -> None:
        """End the worker, which must not be there while times are taken."""
        if self._worker is not None:
            self._worker.end()
            self._worker = None

    def clear(self) -> None:
        """Delete the files, which may lie in memory."""
        for path, _ in self._kept.values():
            path.unlink(missing_ok=True)
        self._kept.clear()

    def close(self) -> None:
        """End the worker and delete everything; it may be used again."""
        self.pause()
        self.clear()
        self._failed.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            os.close(self._lock)
            self._folder = None

    def _begun(self) -> int:
        """The bytes that the files may take in all, once there is a folder for them."""
        if self._folder is None:
            parent, self._limit = _place()
            _delete_forsaken(parent)
            self._folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            self._lock = os.open(self._folder / "lock", os.O_RDONLY | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self._limit

    def _file(self, key: Key, method: str, case: Case, needed: tuple[Path, ...], size: int) -> Path:
        if key in self._failed:
            raise self._failed[key]
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][0]
        assert self._folder is not None
        self._make_room(size, set(needed))
        self._count += 1
        path = self._folder / f"{method}-{self._count}.safetensors"
        try:
            self._ask(method, (case, self._threads, *needed, path))
        except Fault as fault:
            path.with_suffix(".part").unlink(missing_ok=True)
            if time.monotonic() < self.until:
                self._failed[key] = fault
            raise
        self._kept[key] = path, size
        return path

    def _make_room(self, size: int, needed: set[Path]) -> None:
        for key in [key for key, (path, _) in self._kept.items() if path not in needed]:
            if size + sum(kept for _, kept in self._kept.values()) <= self._limit:
                return
            self._kept.pop(key)[0].unlink(missing_ok=True)

    def _ask(self, method: str, arguments: tuple[Any, ...]) -> None:
        self._worker = self._worker or self._workers.start()
        try:
            answer = self._worker.ask(method, arguments, min(self._timeout_seconds, self.until - time.monotonic()))
        except Fault as fault:
            self._worker = None
            raise Fault(fault.status, f"its reference: {fault.reason}") from fault
        if answer["status"] == "ok":
            return
        self.pause()  # what failed may have left anything behind
        told = answer["reason"] if answer["status"] == "unsupported" else f"its reference: {answer['reason']}"
        raise Fault(answer["status"], told)


def shared_key(case: Case) -> Key:
    """What cases on the same inputs share."""
    return tuple(value for name, value in msgspec.structs.asdict(case).items() if name not in ("variant", "parameters"))


def own_key(case: Case, definition: Definition) -> Key:
    """What variants of one definition share besides."""
    return definition, tuple(sorted(definition.resolve(case.parameters).items())), *shared_key(case)


def _place() -> tuple[Path, int]:
    """Where the files go, and how many bytes they may take: in memory where there is room, else on the disk."""
    limit = min(LIMIT_BYTES, available_bytes("cpu") // MEMORY_PART)
    if MEMORY_FOLDER.is_dir() and os.access(MEMORY_FOLDER, os.W_OK) and _free(MEMORY_FOLDER) >= 2 * limit:
        return MEMORY_FOLDER, limit
    parent = Path(tempfile.gettempdir())
    return parent, min(limit, _free(parent) // MEMORY_PART)


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _delete_forsaken(parent: Path) -> None:
    """Delete the folders of runs that were killed: nobody holds their lock, and nobody has just begun them."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime < FORSAKEN_SECONDS:
                continue
            handle = os.open(folder / "lock", os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where it is held
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)
