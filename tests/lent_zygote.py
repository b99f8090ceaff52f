"""One zygote for the tests of a session, and one reading of each machine: to start and read them takes seconds."""

import copy
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from benchmarks import campaign
from benchmarks.workers import Workers

START, HANG_UP, READ = Workers.__enter__, Workers.__exit__, campaign.read_machine


def surroundings() -> object:
    """What a zygote takes over from the process that starts it."""
    return Path.cwd(), {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


@contextmanager
def own_zygotes() -> Iterator[None]:
    """As outside the tests: each `with Workers()` starts a zygote and ends it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workers, "__enter__", START)
        patch.setattr(Workers, "__exit__", HANG_UP)
        yield


@contextmanager
def lent() -> Iterator[None]:
    """Each `with Workers()` borrows the same zygote, unless the test has changed what it would take over."""
    first, lender = surroundings(), Workers()

    def enter(workers: Workers) -> Workers:
        if surroundings() != first:
            return START(workers)
        if not hasattr(lender, "_process") or lender._process.poll() is not None:
            START(lender)
        workers._control, workers._process, workers._lock = lender._control, lender._process, lender._lock
        return workers

    def leave(
        workers: Workers, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not hasattr(lender, "_control") or workers._control is not lender._control:
            return HANG_UP(workers, kind, error, trace)
        for pid in tuple(workers._living):
            os.kill(pid, signal.SIGKILL)
            workers.exit_status(pid)
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workers, "__enter__", enter)
        patch.setattr(Workers, "__exit__", leave)
        patch.setattr(campaign, "read_machine", read_once())
        yield
    if hasattr(lender, "_process"):
        HANG_UP(lender, None, None, None)


def read_once() -> Any:
    """`read_machine` that measures the ceilings of a device and number of threads at the first call alone."""
    known: dict[object, dict[str, Any]] = {}

    def read(
        workers: Workers, device: str, threads: int, method: str = "machine", dtypes: Sequence[str] = ()
    ) -> dict[str, Any]:
        asked = (device, threads, method, tuple(dtypes))
        if asked not in known:
            known[asked] = READ(workers, device, threads, method, dtypes)
        return copy.deepcopy(known[asked])

    return read
