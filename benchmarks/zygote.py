"""The process that forks workers: it has imported torch once, computed nothing, and never touches CUDA.

Started by path (`python zygote.py SOCKET PACKAGE=FOLDER ...`), so that the packages it uses are
those that its parent uses, whatever is installed: under asv the parent's `benchmarks` is the
working tree's while `variants` is the commit's.
"""

import array
import ctypes
import importlib.util
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

FORK, WAIT = b"f", b"w"
REAP_SECONDS, REAP_POLL_SECONDS = 10.0, 0.001


def adopt_package(name: str, folder: Path) -> None:
    """Make `import name` find that folder, before anything else could be found."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def main(arguments: list[str]) -> None:
    """Serve fork and wait requests until the parent is gone, then end every worker."""
    control = socket.socket(fileno=int(arguments[0]))
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    for argument in arguments[1:]:
        name, _, folder = argument.partition("=")
        adopt_package(name, Path(folder))
    import torch._inductor  # noqa: F401  # the profiler imports it at its first start: a second for every worker

    from benchmarks.worker import serve

    find_installed()

    control.sendall(b"ready")
    alive: set[int] = set()
    own_pid = os.getpid()
    while True:
        kind, payload, handles = receive(control)
        if kind == FORK:
            pid = os.fork()
            if pid == 0:
                control.close()
                die_with_parent(own_pid)
                serve(Connection(handles[0]))
                os._exit(0)
            os.close(handles[0])
            alive.add(pid)
            control.sendall(pid.to_bytes(8, "little"))
        elif kind == WAIT:
            pid = int.from_bytes(payload, "little")
            status = exit_status(pid)
            alive.discard(pid)
            control.sendall(status.to_bytes(8, "little", signed=True))
        else:
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
            return


def exit_status(pid: int) -> int:
    """The status of a worker that ends; SIGKILL's of one that a driver does not let go, which is left to itself."""
    deadline = time.monotonic() + REAP_SECONDS
    while time.monotonic() < deadline:
        reaped, status = os.waitpid(pid, os.WNOHANG)
        if reaped:
            return os.waitstatus_to_exitcode(status)
        time.sleep(REAP_POLL_SECONDS)
    return -signal.SIGKILL


def find_installed() -> None:
    """Look for other packages of variants once and not in every worker, which tells of one that is at fault."""
    with suppress(ImportError):  # also where the variants are those of a commit that knows no other packages
        from variants.installed import installed_packages

        installed_packages()


def receive(control: socket.socket) -> tuple[bytes, bytes, list[int]]:
    """One request: its kind, eight bytes, and the file handles that came with it; empty at the end."""
    handles = array.array("i")
    data, ancillary, _, _ = control.recvmsg(9, socket.CMSG_SPACE(handles.itemsize))
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            handles.frombytes(content)
    return data[:1], data[1:], list(handles)


def die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when the zygote ends, however it ends."""
    library = ctypes.CDLL(None)
    if hasattr(library, "prctl"):
        library.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it ended before it was asked: no signal will come
            os._exit(1)


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # the parent was killed while it waited for an answer: so are the workers
        main(sys.argv[1:])
