"""Run a program with its attention calls recorded: `python capture_child.py FILE MIB CALLS (SCRIPT | -m MODULE) ...`.

Started by path, so that the interpreter and its packages are those of the program, which need not
be those of this project.
"""

import runpy
import sys
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Leave the file, or none where nothing was recorded; the program's exit status is the process's own.

    Where the interpreter lacks what recording needs, the program runs all the same.
    """
    path, mib, calls, *program = arguments
    try:
        import safetensors.torch  # noqa: F401  # the program's own, before this project's folder is on the path
        import torch  # noqa: F401
    except ImportError as error:
        sys.stderr.write(f"attnscape: {sys.executable} cannot record: {error}\n")
        return run_program(program)
    sys.path[0] = str(Path(__file__).parents[1])
    from benchmarks.capture import CaptureError, NothingRecorded, recording

    try:
        with recording(path, max_mib=float(mib), calls=int(calls)):
            run_program(program)
    except NothingRecorded as nothing:
        sys.stderr.write(f"attnscape: {nothing}\n")
    except CaptureError as error:
        sys.exit(f"attnscape: {error}")


def run_program(program: list[str]) -> None:
    """As the interpreter itself would."""
    if program[0] == "-m":
        sys.path[0] = str(Path.cwd())
        sys.argv = program[1:]
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(program[0]).resolve().parent)
        sys.argv = program
        runpy.run_path(program[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
