"""Processes that crash, hang and are killed: each becomes a row, and none outlives its run."""

import ctypes
import json
import operator
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import torch

from benchmarks import sweep, zygote
from benchmarks.measurement import STATUSES, Case, Measurement
from benchmarks.provenance import read_provenance
from benchmarks.sweep import Settings, Sweep
from benchmarks.workers import Fault, Workers
from tests.lent_zygote import own_zygotes
from variants import Problem
from variants.catalogue import BASELINE, load

ROOT = Path(__file__).parent.parent


# ---- workers


@pytest.fixture(scope="module", autouse=True)
def as_users_have_it() -> Iterator[None]:
    with own_zygotes():
        yield


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers() as started:
        yield started


def in_worker(workers: Workers, call: Callable[[], Any], seconds: float = 60.0) -> dict[str, Any]:
    """What becomes of a call in a worker of its own."""
    started = workers.start()
    try:
        return started.ask("_bytes", (call, Problem(tokens=1)), seconds)
    finally:
        started.end()


@pytest.mark.parametrize(
    ("call", "status", "said"),
    [
        (partial(ctypes.string_at, 0), "error", "crashed with SIGSEGV"),
        (os.abort, "error", "crashed with SIGABRT"),
        (partial(signal.raise_signal, signal.SIGFPE), "error", "crashed with SIGFPE"),
        (partial(signal.raise_signal, signal.SIGKILL), "out_of_memory", "killed by SIGKILL, as the kernel does"),
        (partial(sys.exit, 3), "error", "ended with status 3 and no answer"),
        (partial(os._exit, 0), "error", "ended with status 0 and no answer"),
    ],
    ids=["segfault", "abort", "fpe", "kill", "exit", "exit-0"],
)
def test_a_worker_that_dies_is_a_fault(workers: Workers, call: Callable[[], Any], status: str, said: str) -> None:
    with pytest.raises(Fault) as caught:
        in_worker(workers, call)
    assert caught.value.status == status
    assert caught.value.reason.startswith(said)


def test_a_worker_that_hangs_is_killed(workers: Workers) -> None:
    started = workers.start()
    begin = time.monotonic()
    with pytest.raises(Fault, match="no answer within 1 s"):
        started.ask("_bytes", (partial(time.sleep, 600), Problem(tokens=1)), 1.0)
    assert time.monotonic() - begin < 30
    assert is_gone(started.pid)
    started.end()  # harmless


@pytest.mark.parametrize(
    ("call", "status", "said"),
    [
        (partial(operator.truediv, 1, 0), "error", "ZeroDivisionError: division by zero"),
        (partial(bytearray, 1 << 62), "out_of_memory", "MemoryError"),
        (partial(torch.empty, 1 << 50), "out_of_memory", "can't allocate memory"),
        (torch.ones, "error", "TypeError: ones() missing 1 required positional argument"),
    ],
    ids=["division", "memory", "tensor", "type"],
)
def test_a_worker_whose_call_raises_answers(workers: Workers, call: Callable[[], Any], status: str, said: str) -> None:
    answer = in_worker(workers, call)
    assert answer["status"] == status
    assert said in answer["reason"]


def test_a_worker_lives_on_after_an_error(workers: Workers) -> None:
    started = workers.start()
    case = Case.of("full/matmul", {}, Problem(tokens=8, heads=1), "normal")
    assert started.ask("prepare", (case, 1, "no such argument", 4), 60)["status"] == "error"
    assert started.ask("prepare", (case, 1, True), 60)["status"] == "ok"
    assert started.ask("sample", (), 60)["sample"].wall_seconds > 0
    started.end()
    assert is_gone(started.pid)


def test_the_end_of_one_worker_is_not_that_of_another(workers: Workers) -> None:
    first, second = workers.start(), workers.start()
    assert len({first.pid, second.pid, os.getpid()}) == 3
    first.end()
    assert is_gone(first.pid) and not is_gone(second.pid)
    case = Case.of("full/matmul", {}, Problem(tokens=8, heads=1), "normal")
    assert second.ask("prepare", (case, 1, False), 60)["status"] == "ok"
    second.end()


# ---- a sweep over variants that misbehave

VARIANT = """
import ctypes, os, signal, sys, time
import torch
from variants.full.matmul import build as right
from variants.variant import variant

calls = 0

@variant(
    "full/{name}", summary="", devices=("cpu",), modes=("forward", "training"), workspace_bytes=lambda _: {workspace}
)
def build(problem):
    run = right(problem)

    def wrong(q, k, v):
        global calls
        calls += 1
        {body}

    return wrong
"""
MISBEHAVING = {
    "crash": "ctypes.string_at(0)",
    "abort": "os.abort()",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "hang": "time.sleep(600)",
    "leave": "sys.exit(7)",
    "raises": "raise KeyError('no kernel')",
    "hungry": "raise MemoryError",
    "mean": "return v.mean(2, keepdim=True).expand_as(q)",
    "nan": "return run(q, k, v) * float('nan')",
    "late": "return run(q, k, v) if calls < 8 else ctypes.string_at(0)",
    "slope": "return 2 * run(q, k, v) - run(q, k, v).detach()",
    "huge": "raise AssertionError('was tried')",
}
FATES = {
    "full/matmul": ("ok", ""),
    "memory_efficient/sdpa_flash": ("ok", ""),
    "memory_efficient/xformers": ("unsupported", "needs CUDA"),
    "full/crash": ("error", "crashed with SIGSEGV"),
    "full/abort": ("error", "crashed with SIGABRT"),
    "full/killed": ("out_of_memory", "killed by SIGKILL, as the kernel does where memory runs out"),
    "full/hang": ("timeout", "no answer within 6 s"),
    "full/leave": ("error", "ended with status 7 and no answer"),
    "full/raises": ("error", "KeyError: 'no kernel'"),
    "full/hungry": ("out_of_memory", "MemoryError"),
    "full/mean": ("wrong", "implementation error "),
    "full/nan": ("wrong", "the output holds infinities or NaN"),
    "full/late": ("error", "crashed with SIGSEGV"),
    "full/huge": ("out_of_memory", "not tried: predicted "),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with a copy of variants/ to which variants that misbehave are added."""
    shutil.copytree(ROOT / "variants", tmp_path / "variants", ignore=shutil.ignore_patterns("__pycache__"))
    for name, body in MISBEHAVING.items():
        source = VARIANT.format(name=name, body=body, workspace=1 << 60 if name == "huge" else 0)
        (tmp_path / "variants" / "full" / f"{name}.py").write_text(source, "utf-8")
    return tmp_path


@contextmanager
def running(tree: Path, source: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A script that finds the variants of that folder, and the project's instrument; killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(tree), str(ROOT)))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as script:
        try:
            yield script
        finally:
            script.kill()


SWEEP = """
import sys
import msgspec
from benchmarks.provenance import Provenance
from benchmarks.sweep import Settings, Sweep, plan_cases
from benchmarks.workers import Workers
from variants import Problem

def show(row):
    print(msgspec.json.encode(row).decode(), flush=True)

settings = Settings(seconds=1.0, threads=1, timeout_seconds=6.0)
ceilings = {"matmul_flops": {"float32": 1e15}, "copy_bytes_per_second": 1e15}
with Workers() as workers:
    sweep = Sweep(workers, settings, {"key": "cpu-1", "ceilings": ceilings}, Provenance("c0de", "", True))
    sweep.measure(plan_cases(sys.argv[1:], [Problem(tokens=64, heads=2)], "normal"), show)
    training = Problem(tokens=64, heads=2, mode="training")
    sweep.measure_errors(plan_cases(["full/slope", "full/matmul"], [training], "normal"), show)
"""


def test_a_sweep_outlives_what_misbehaves(tree: Path) -> None:
    with running(tree, SWEEP, *FATES) as script:
        out, complaints = script.communicate(timeout=110)
    assert script.returncode == 0, complaints
    rows = [json.loads(line) for line in out.splitlines()]
    forward = {row["case"]["variant"]: row for row in rows if row["case"]["mode"] == "forward"}
    fates = {name: (row["status"], row["reason"][: len(FATES[name][1])]) for name, row in forward.items()}
    assert fates == FATES
    assert {status for status, _ in fates.values()} == set(STATUSES)
    for name, row in forward.items():
        if FATES[name][0] == "ok":
            assert len(row["wall_samples"]) >= 3
            assert row["seconds_low"] <= row["seconds"] <= row["seconds_high"]
            assert row["ratio"] > 0 and row["twin_ratio"] > 0 and row["baseline"] == BASELINE
            assert row["implementation_error"] < 2e-5
        else:
            assert_no_figures(row)
    assert "flash_attention" in forward["memory_efficient/sdpa_flash"]["kernel"]
    assert "bmm" in forward["full/matmul"]["kernel"]
    slope, right = (row for row in rows if row["case"]["mode"] == "training")
    assert (slope["status"], slope["reason"][:14]) == ("wrong", "gradient error")
    assert right["status"] == "ok"
    assert right["seconds"] is None and right["gradient_error"] < 5e-5


def assert_no_figures(row: dict[str, Any]) -> None:
    """A failure is a status and a reason, never a number."""
    measured = ("seconds", "cpu_seconds", "ratio", "cpu_ratio", "twin_ratio", "extra_bytes", "total_bytes")
    errors = ("implementation_error", "approximation_error", "gradient_error", "mean_of_v_error")
    assert [row[name] for name in (*measured, *errors)] == [None] * 11
    assert row["wall_samples"] == row["cpu_samples"] == []


# ---- the end of a run


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has reaped yet has ended too."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


LEAVE_BEHIND = """
import time
from functools import partial
from benchmarks.workers import Workers
from variants import Problem
with Workers() as workers:
    busy, idle = workers.start(), workers.start()
    busy._connection.send(("_bytes", (partial(time.sleep, 600), Problem(tokens=1))))
    print(workers._process.pid, busy.pid, idle.pid, flush=True)
    time.sleep(600)
"""


def pids_of(script: subprocess.Popen[str]) -> list[int]:
    """The zygote and two workers, one of them busy, as the script tells them."""
    assert script.stdout is not None
    pids = [int(word) for word in script.stdout.readline().split()]
    assert len(pids) == 3 and not any(is_gone(pid) for pid in pids)
    return pids


def test_a_killed_parent_leaves_no_process_behind() -> None:
    with running(ROOT, LEAVE_BEHIND) as script:
        pids = pids_of(script)
        script.kill()
        wait_until(lambda: all(is_gone(pid) for pid in pids))


def test_a_killed_zygote_leaves_no_worker_behind() -> None:
    with running(ROOT, LEAVE_BEHIND) as script:
        zygote, *started = pids_of(script)
        os.kill(zygote, signal.SIGKILL)
        wait_until(lambda: all(is_gone(pid) for pid in started))


CAMPAIGN = """
import sys
from pathlib import Path
from benchmarks.campaign import Request, run_campaign
from benchmarks.sweep import Settings
from variants import Problem
request = Request(("full/matmul", "full/hang"), (Problem(tokens=64, heads=2),), ("smooth", "peaky"))
settings = Settings(seconds=5.0, threads=1, timeout_seconds=600.0)
outcome = run_campaign(request, Path(sys.argv[1]), settings, lambda *_: None, machine_device="cpu")
print(outcome.interrupted, [row.status for row in outcome.rows])
"""


def test_ctrl_c_keeps_what_is_done(tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    file = folder / "measurements.jsonl"
    with running(tree, CAMPAIGN, str(folder)) as script:
        wait_until(lambda: script.poll() is not None or (file.exists() and len(file.read_bytes().splitlines()) == 2))
        script.send_signal(signal.SIGINT)
        out, complaints = script.communicate(timeout=60)
    assert script.returncode == 0, complaints
    assert out == "True ['ok', 'ok']\n"
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert [(line["case"]["variant"], line["case"]["inputs"]) for line in lines] == [
        ("full/matmul", "smooth"),
        ("full/matmul", "peaky"),
    ]
    (described,) = (folder / "machines").iterdir()
    assert described.stem == lines[0]["machine"]


def test_what_is_begun_is_done_before_the_next_answer(workers: Workers) -> None:
    started = workers.start()
    started.begin("wake", ("cpu",))
    started.begin("no such method", ())
    try:
        assert started.ask("rest", (), 60.0) == {"status": "ok"}
        assert started.ask("describe", ("cpu", 1), 60.0)["machine"]["threads"] == 1
    finally:
        started.end()
    lost = workers.start()
    os.kill(lost.pid, signal.SIGKILL)
    for _ in range(3):
        lost.begin("wake", ("cpu",))
    with pytest.raises(Fault, match="SIGKILL"):
        lost.ask("rest", (), 60.0)


def test_all_workers_can_be_ended_at_once() -> None:
    with Workers() as crew:
        first, second = crew.start(), crew.start()
        second.end()
        waiting = Timer(0.5, crew.kill)
        waiting.start()
        with pytest.raises(Fault, match="SIGKILL"):
            first.ask("_bytes", (partial(time.sleep, 60), Problem(tokens=1)), 30.0)
        with pytest.raises(Fault, match="the run was stopped"):
            crew.start()


def test_a_worker_that_a_driver_holds_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zygote, "REAP_SECONDS", 0.05)
    monkeypatch.setattr(zygote.os, "waitpid", lambda *_: (0, 0))
    begin = time.monotonic()
    assert zygote.exit_status(1) == -signal.SIGKILL
    assert 0.05 <= time.monotonic() - begin < 5


def test_proofs_side_by_side_are_those_of_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "lanes_of", lambda cases, _: [cases[::2], cases[1::2]])  # a CPU has none
    names = ("full/matmul", "local_window/tiled", "linear_scan/chunked", "memory_efficient/xformers")
    problem = Problem(tokens=40, heads=2, causal=True, mode="training")
    cases = [Case.of(name, load(name).definition.resolve(None), problem, "smooth") for name in names]
    rows: list[Measurement] = []
    with Workers() as crew:
        run = Sweep(crew, Settings(60.0, 1, proofs_at_once=2), {"key": "k", "ceilings": {}}, read_provenance())
        assert run.measure_errors(cases, rows.append) == []
    found = {row.case.variant: row for row in rows}
    assert [found[name].status for name in names] == ["ok", "ok", "ok", "unsupported"]
    assert all(found[name].gradient_error is not None for name in names[:3]) and run.measured_seconds > 0


def test_a_start_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.workers.START_SECONDS", 0.01)  # the imports take longer
    with pytest.raises(RuntimeError, match="not ready within 0 s"), Workers():
        pass
