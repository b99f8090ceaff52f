"""Whether the comparison keeps its promise on real measurements: minutes, so `make test-slow` runs it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from reports.comparison import Comparison, compare, readings_of_rows
from reports.records import Row

ROOT = Path(__file__).parent.parent
TRIES = 20

TRIAL = '''
"""Full attention that takes as much longer as the environment says: a planted change."""

import os
import time

from variants.full.matmul import build as right
from variants.variant import variant

EXTRA = float(os.environ["PLANTED"])


@variant("full/trial", summary="", devices=("cpu",), modes=("forward",), workspace_bytes=lambda _: 0)
def build(problem):
    run = right(problem)

    def slowed(q, k, v):
        begin = time.thread_time()
        output = run(q, k, v)
        end = begin + (1 + EXTRA) * (time.thread_time() - begin)
        while time.thread_time() < end:
            pass
        return output

    return slowed
'''

# Each side of a comparison has processes of its own, as two runs have; those with the planted change
# come from another zygote, because the environment tells it.
SWEEPS = """
import os, sys
os.environ["PLANTED"] = "0"
import msgspec
from benchmarks.provenance import Provenance
from benchmarks.sweep import Settings, Sweep, plan_cases
from benchmarks.workers import Workers
from variants import Problem

def side(workers):
    rows = []
    machine = {"key": "cpu-1", "ceilings": ceilings}
    Sweep(workers, settings, machine, Provenance("c0de", "", True)).measure(cases, rows.append)
    print(msgspec.json.encode(rows).decode(), flush=True)

problems = [Problem(tokens=tokens, heads=4) for tokens in (384, 512)]
cases = plan_cases(("full/trial", "memory_efficient/chunked"), problems, "normal")
settings = Settings(seconds=6.0, threads=1, processes=8)
ceilings = {"matmul_flops": {"float32": 1e15}, "copy_bytes_per_second": 1e15}
with Workers() as right:
    os.environ["PLANTED"] = "0.1"
    with Workers() as slowed:
        for _ in range(int(sys.argv[1])):
            for workers in (right, right, slowed):
                side(workers)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "variants", folder / "variants", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "variants" / "full" / "trial.py").write_text(TRIAL, "utf-8")
    return folder


def measured(tree: Path, tries: int) -> Iterator[list[list[Row]]]:
    """For each try the rows of two equal sides and of one with the planted change."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tree), str(ROOT)))}
    command = [sys.executable, "-c", SWEEPS, str(tries)]
    run = subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.PIPE, timeout=1700)
    sides = [msgspec.json.decode(line, type=list[Row]) for line in run.stdout.splitlines()]
    assert len(sides) == 3 * tries
    for number in range(tries):
        yield sides[3 * number : 3 * number + 3]


def compared(first: list[Row], second: list[Row]) -> Comparison:
    return compare(readings_of_rows("A", first), readings_of_rows("B", second))


@pytest.mark.slow
def test_equals_are_never_called_slow_and_a_tenth_is_found(tree: Path) -> None:
    found = false = 0
    seen = []
    for number, (first, second, slower) in enumerate(measured(tree, TRIES)):
        equal, planted = compared(first, second), compared(first, slower)
        false += bool(equal.count("SLOW") or equal.count("FAST"))
        slow = {line.case.partition(" ")[0] for line in planted.lines if line.verdict == "SLOW"}
        found += slow == {"full/trial"}
        for said in (equal, planted):
            times = [line for line in said.lines if line.quantity == "time"]
            changes = [
                (line.verdict, *(round(x or 0, 3) for x in (line.change, line.low, line.high))) for line in times
            ]
            seen.append((number, changes))
    assert false == 0, seen
    assert found >= TRIES - 1, seen
