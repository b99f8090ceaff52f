"""The asking side of the instrument: worker processes that may crash, hang or be killed."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from threading import Lock
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self

import benchmarks
import variants
from benchmarks.zygote import FORK, WAIT

START_SECONDS: Final = 90.0
"""The imports, from a cold disk too."""


class Fault(Exception):
    """A worker that gave no answer: a status and a reason."""

    def __init__(self, status: str, reason: str) -> None:
        """Both as they go into the row."""
        super().__init__(status, reason)
        self.status, self.reason = status, reason


class Workers:
    """A zygote process, from which workers are forked in milliseconds; a context manager.

    Leaving the context ends every worker. The zygote has its own session, so that Ctrl-C
    reaches the caller only. Threads may share it.
    """

    def __init__(self) -> None:
        """Nothing is started yet."""
        self.resting: dict[str, list[Worker]] = {}
        """Workers of a card that wait for their variants' next problem."""
        self._lock = Lock()
        self._living: set[int] = set()
        self._killed = False

    def __enter__(self) -> Self:
        """Start the zygote; raises RuntimeError where it does not come up."""
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            packages = [f"{package.__name__}={package.__path__[0]}" for package in (variants, benchmarks)]
            script = Path(__file__).with_name("zygote.py")
            self._process = subprocess.Popen(
                [sys.executable, str(script), str(theirs.fileno()), *packages],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._control.settimeout(START_SECONDS)
        try:
            ready = self._control.recv(5) == b"ready"
        except TimeoutError as error:
            self._process.kill()
            self._process.wait()
            self._control.close()
            raise RuntimeError(f"the measuring process was not ready within {START_SECONDS:.0f} s") from error
        if not ready:
            raise RuntimeError(f"the measuring process ended with status {self._process.wait()} before it was ready")
        self._control.settimeout(None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hang up, upon which the zygote kills its workers and ends."""
        self._control.close()
        self._process.wait()

    def start(self) -> "Worker":
        """Fork a worker; raises `Fault` where all were ended."""
        ours, theirs = Pipe()
        with self._lock:
            if self._killed:
                raise Fault("error", "the run was stopped")
            socket.send_fds(self._control, [FORK + bytes(8)], [theirs.fileno()])
            theirs.close()
            pid = self._answer()
            self._living.add(pid)
        return Worker(ours, pid, self)

    def exit_status(self, pid: int) -> int:
        """The status of a worker that has ended; negative is the signal that ended it."""
        with self._lock:
            self._living.discard(pid)
            self._control.sendall(WAIT + pid.to_bytes(8, "little"))
            return self._answer()

    def kill(self) -> None:
        """End every worker for good: threads that wait for an answer, or ask for another worker, get a `Fault`."""
        with self._lock:
            self._killed = True
            for pid in self._living:
                os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is still its own

    def _answer(self) -> int:
        data = self._control.recv(8, socket.MSG_WAITALL)
        if len(data) != 8:
            raise RuntimeError("the process that forks the workers has ended")
        return int.from_bytes(data, "little", signed=True)


class Worker:
    """One forked process that answers requests in turn."""

    def __init__(self, connection: Any, pid: int, workers: Workers) -> None:
        """Made by `Workers.start`."""
        self._connection, self.pid, self._workers = connection, pid, workers
        self._ended = False
        self._unread = 0

    def begin(self, method: str, arguments: Sequence[Any]) -> None:
        """Ask for what makes a later request faster, without waiting; that it failed is no matter."""
        with suppress(ConnectionError):
            self._connection.send((method, tuple(arguments)))
            self._unread += 1

    def ask(self, method: str, arguments: Sequence[Any], timeout_seconds: float) -> dict[str, Any]:
        """The answer to one request. Raises `Fault` on a timeout, a crash or a kill; the worker is then gone."""
        deadline = monotonic() + timeout_seconds
        try:
            self._connection.send((method, tuple(arguments)))
            for _ in range(self._unread + 1):
                if not self._connection.poll(max(0.0, deadline - monotonic())):
                    self.end()
                    raise Fault("timeout", f"no answer within {timeout_seconds:.0f} s")
                answer: dict[str, Any] = self._connection.recv()
            self._unread = 0
        except (EOFError, ConnectionError) as error:
            raise self._fault() from error
        return answer

    def end(self) -> None:
        """Kill the process and reap it; harmless on one that has ended."""
        if self._ended:
            return
        self.kill()
        self._ended = True
        self._connection.close()
        self._workers.exit_status(self.pid)

    def kill(self) -> None:
        """Kill the process and leave it to `end` to reap it."""
        if not self._ended:
            os.kill(self.pid, signal.SIGKILL)

    def _fault(self) -> Fault:
        self._ended = True
        self._connection.close()
        status = self._workers.exit_status(self.pid)
        if status == -signal.SIGKILL:
            return Fault("out_of_memory", "killed by SIGKILL, as the kernel does where memory runs out")
        if status < 0:
            return Fault("error", f"crashed with {signal.Signals(-status).name}")
        return Fault("error", f"ended with status {status} and no answer")


def end_all(workers: Iterable[Worker]) -> None:
    """Kill them, then reap them: a card takes its time to let go of a process, of several at once."""
    ending = list(workers)
    for worker in ending:
        worker.kill()
    for worker in ending:
        worker.end()
