"""Jobs on a Ray cluster: one that is started here, or one that runs already."""

import logging
import os
import socket
import sys
from contextlib import ExitStack, redirect_stdout
from typing import Any, Final

from benchmarks.executor import ExecutorError, Job, Lost

SLOT: Final = "attnscape_slot"
"""The custom resource of which each machine offers one for each card, or one where it has none."""

STORE_BYTES: Final = 100 * 2**20
"""Answers are small, and what Ray reserves for objects is not there for what is measured."""


REACH_SECONDS: Final = 10.0


class RayExecutor:
    """Makes each call in a process of its own, which holds a slot; nothing is reported to anyone outside."""

    def __init__(self, options: dict[str, str], device: str) -> None:
        """Start a cluster on this machine, or join the one at option `address`. Raises `ExecutorError`."""
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ExecutorError("--executor ray needs Ray: pip install 'attnscape[ray]'") from error
        if unknown := set(options) - {"address"}:
            raise ExecutorError(f"--executor ray has the option address, not {', '.join(sorted(unknown))}")
        self._ray: Any = ray
        self._running: dict[Any, Job] = {}
        self._redirection = ExitStack()
        self._redirection.enter_context(redirect_stdout(sys.stderr))  # Ray tells of dead workers where results go
        cards = 1 if device.startswith("cuda") else 0
        try:
            _connect(self._ray, options.get("address"), cards)
            self.slots = self._slots()
        except ExecutorError:
            self.close()
            raise
        # A fresh process for each job; what is lost is given out anew by the sweep, which knows what to make of it.
        self._remote = ray.remote(max_calls=1, max_retries=0, num_gpus=cards, resources={SLOT: 1})(_call)

    def _slots(self) -> int:
        slots = int(self._ray.cluster_resources().get(SLOT, 0))
        if not slots:
            raise ExecutorError(
                f"the Ray cluster offers no {SLOT}; start each node with "
                f"--resources='{{\"{SLOT}\": N}}', N its cards, or 1 where it has none"
            )
        return slots

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._running[self._remote.remote(job.function, job.arguments)] = job

    def wait(self) -> tuple[Job, Any]:
        """Any job that has ended, with its answer or `Lost`."""
        (ready, *_), _ = self._ray.wait(list(self._running), num_returns=1)
        job = self._running.pop(ready)
        try:
            return job, self._ray.get(ready)
        except self._ray.exceptions.RayTaskError as error:
            return job, Lost(f"{type(error.cause).__name__}: {_line(error.cause)}")
        except self._ray.exceptions.RayError as error:
            return job, Lost(f"{type(error).__name__}: {_line(error)}")

    def close(self) -> None:
        """End what still runs, and leave the cluster."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._ray.shutdown()
        self._redirection.close()


def _connect(ray: Any, address: str | None, cards: int) -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    if address is None:
        # Ray counts the cards; where they are not asked for, the machine is one slot.
        slots = (_cards_here() if cards else 0) or 1
        how |= {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
            "resources": {SLOT: slots},
        }
    else:
        how["address"] = address
        _require_reachable(address)
    try:
        ray.init(**how)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise ExecutorError(f"no Ray cluster at {address or 'this machine'}: {_line(error)}") from error


def _require_reachable(address: str) -> None:
    """Ray itself would try for minutes. Raises `ExecutorError`."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not (host and port.isdecimal()):
        raise ExecutorError(f"--executor-set address must be auto or HOST:PORT, not {address!r}")
    try:
        socket.create_connection((host, int(port)), REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ExecutorError(f"no Ray cluster at {address}: {_line(error)}") from error


def _cards_here() -> int:
    import torch

    return torch.cuda.device_count()


def _call(function: Any, arguments: tuple[Any, ...]) -> Any:
    return function(*arguments)


def _line(error: BaseException) -> str:
    """The first line, without the stack that Ray appends."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
