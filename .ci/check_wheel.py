"""Build the wheel, install it alone in a fresh environment, and import everything from it outside the checkout."""

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
ROOMS = ("variants", "benchmarks", "reports")
MODULES = (*ROOMS, "attnscape")

IMPORT_ROOMS = f"""
import importlib, sysconfig
for name in {ROOMS}:
    origin = importlib.import_module(name).__file__
    assert origin.startswith(sysconfig.get_path("purelib")), f"{{name}} comes from {{origin}}"
"""
IMPORT_ALL = f"""
import importlib, pkgutil, sysconfig
names = list({MODULES})
for room in {ROOMS}:
    names += [m.name for m in pkgutil.walk_packages(importlib.import_module(room).__path__, room + ".")]
for name in names:
    origin = importlib.import_module(name).__file__
    assert origin.startswith(sysconfig.get_path("purelib")), f"{{name}} comes from {{origin}}"
print(f"wheel: {{len(names)}} modules imported from {{sysconfig.get_path('purelib')}}")
"""


def main() -> None:
    """Fails with what is wrong: a file left out, an import that fails, or one that comes from elsewhere."""
    with tempfile.TemporaryDirectory(prefix="attnscape-wheel-") as folder:
        wheel = build(Path(folder))
        if missing := left_out(wheel):
            sys.exit(f"the wheel lacks {', '.join(missing)}")
        python = install(wheel, Path(folder) / "fresh")
        run([python, "-c", IMPORT_ROOMS], folder)  # the rooms' own doors open without any dependency
        run([python, "-c", IMPORT_ALL], folder, lend_dependencies=True)
        run([python.with_name("attnscape"), "--help"], folder, lend_dependencies=True, quiet=True)


def build(folder: Path) -> Path:
    """The wheel, made by the pinned build backend of this environment."""
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        folder,
        CHECKOUT,
    ]
    run(command, CHECKOUT, quiet=True)
    return next(folder.glob("*.whl"))


def left_out(wheel: Path) -> list[str]:
    """The rooms' tracked files that the wheel does not hold."""
    command = ["git", "ls-files", "--", *ROOMS, "attnscape.py"]
    tracked = subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout.split("\n")
    return sorted({name for name in tracked if name} - set(zipfile.ZipFile(wheel).namelist()))


def install(wheel: Path, folder: Path) -> Path:
    """A fresh environment's Python, with the wheel and nothing else."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], folder)
    return python


def run(
    command: Sequence[str | Path], folder: str | Path, lend_dependencies: bool = False, quiet: bool = False
) -> None:
    """Run it there; lent dependencies come by PYTHONPATH, which does not read this environment's editable install."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if lend_dependencies:
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(map(sysconfig.get_path, ("purelib", "platlib"))))
    output = subprocess.PIPE if quiet else None
    done = subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.exit((done.stdout or b"").decode() + f"failed: {command[0]} {command[1]} … in {folder}")


if __name__ == "__main__":
    main()
