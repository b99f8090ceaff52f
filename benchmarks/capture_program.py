"""Run somebody's program in a process of its own, and keep what it gave to attention in a file."""

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.recorded import InvalidCapture, Recording, read_recording

WITH_VALUE: Final = ("-W", "-X")
USAGE: Final = "capture runs `python script.py ...` or `python -m module ...`"


class InvalidProgram(ValueError):
    """A command that cannot be run with its calls recorded; the message says what would be right."""


@dataclass(frozen=True, slots=True)
class Captured:
    """The program's exit status as a shell gives it, and what was recorded; None where nothing was."""

    status: int
    recording: Recording | None


def capture_program(command: Sequence[str], out: Path, max_mib: float, calls: int) -> Captured:
    """Run the command; raises `InvalidProgram`, `InvalidCapture`, and OSError where the file cannot be written."""
    interpreter, program = python_of(command)
    _require_replaceable(out)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        draft = Path(folder) / out.name
        child = Path(__file__).with_name("capture_child.py")
        status = _run([*interpreter, str(child), str(draft), str(max_mib), str(calls), *program])
        if not draft.exists():
            return Captured(status, None)
        draft.replace(out)
    return Captured(status, read_recording(out))


def python_of(command: Sequence[str]) -> tuple[list[str], list[str]]:
    """The interpreter with its options, and the script or module with its arguments. Raises `InvalidProgram`."""
    if not command:
        raise InvalidProgram(f"no program; {USAGE}")
    words = [sys.executable, *command] if command[0].endswith(".py") else list(command)
    found = shutil.which(words[0])
    if found is None:
        raise InvalidProgram(f"no program {words[0]!r}")
    if "python" not in Path(words[0]).name:
        raise InvalidProgram(f"{USAGE}, not {words[0]!r}")
    options = 1
    while options < len(words) and words[options].startswith("-") and words[options] not in ("-m", "-c", "-"):
        options += 2 if words[options] in WITH_VALUE else 1
    program = words[options:]
    if not program or program[0] in ("-c", "-") or program == ["-m"]:
        raise InvalidProgram(USAGE)
    if program[0] != "-m" and not Path(program[0]).is_file():
        raise InvalidProgram(f"no script {program[0]!r}; {USAGE}")
    return [found, *words[1:options]], program


def _require_replaceable(out: Path) -> None:
    """A file that is no recording is not replaced."""
    if out.exists():
        try:
            read_recording(out)
        except InvalidCapture as error:
            raise InvalidProgram(f"{out} exists and is no recording of attnscape; choose another --out") from error


def _run(command: list[str]) -> int:
    with subprocess.Popen(command) as process, _interrupts_for_the_child():
        status = process.wait()
    return 128 - status if status < 0 else status


@contextmanager
def _interrupts_for_the_child() -> Iterator[None]:
    """Ctrl-C reaches both processes; the program decides what it means, and what it recorded is kept."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
