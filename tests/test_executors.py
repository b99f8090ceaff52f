"""Sweeps on a cluster: what is given out comes back once, whatever ends on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import attnscape
from benchmarks import slot
from benchmarks.campaign import InvalidRequest, Outcome, Request, problems_of
from benchmarks.executor import ExecutorError, Job, Lost, executor_of, options_of
from benchmarks.executor_campaign import MOST_TIMED, Pack, packs_of, run_on_cluster
from benchmarks.executor_slurm import SlurmExecutor
from benchmarks.executor_task import Measured, Planned, Where, measure_there, plan_there
from benchmarks.foreign_processes import foreign_processes
from benchmarks.measurement import Case, Measurement
from benchmarks.slot import Occupied, slot_of
from benchmarks.store import Store, read_folder
from benchmarks.sweep import Settings, plan_cases
from variants import Problem

ROOT = Path(__file__).parents[1]
MACHINE: dict[str, Any] = {
    "key": "cpu-1",
    "host": "node-1",
    "gpu": None,
    "foreign_processes": {},
    "ceilings": {"matmul_flops": {}},
}


def cases_of(inputs: str, *lengths: int) -> list[Case]:
    return plan_cases(["full/matmul", "full/sdpa_math"], [Problem(tokens=each) for each in lengths], inputs)


def row(case: Case, machine: str = "cpu-1", code: str = "c0de") -> Measurement:
    made: dict[str, Any] = {"key": case.key(machine), "run": "r", "machine": machine, "measured_at": "", "code": code}
    made |= {"commit": "", "dirty": True, "definition": "full", "exact": True, "case": case, "status": "ok"}
    return Measurement(**made)


# ---- the sweep's side, with a cluster that is made up


class MadeUp:
    """Answers each job by what `fate` says of its pack; the plan is of all cases."""

    slots = 2

    def __init__(self, cases: tuple[list[Case], list[Case]], fate: Callable[[list[Case]], Any]) -> None:
        self.cases, self.fate = cases, fate
        self.waiting: deque[Job] = deque()
        self.packs: list[list[Case]] = []
        self.most = 0
        self.closed = False

    def submit(self, job: Job) -> None:
        self.waiting.append(job)
        self.most = max(self.most, len(self.waiting))

    def wait(self) -> tuple[Job, Any]:
        job = self.waiting.popleft()
        if job.function is plan_there:
            codes = {case.variant: "c0de" for cases in self.cases for case in cases}
            return job, Planned(MACHINE, 2, tuple(self.cases[0]), tuple(self.cases[1]), codes)
        assert job.function is measure_there
        timed, untimed, settings, _ = job.arguments
        assert 0 < settings.seconds <= 60.0 and job.limit_seconds > settings.timeout_seconds
        self.packs.append([*untimed, *timed])
        return job, self.fate(self.packs[-1])

    def close(self) -> None:
        self.closed = True


def measured(cases: list[Case]) -> Measured:
    return Measured(tuple(map(row, cases)), (), MACHINE, 1.0, 4.0)


def gathered(cluster: MadeUp, folder: Path) -> Outcome:
    request = Request(("full",), (Problem(tokens=8),))
    outcome = run_on_cluster(request, folder, Settings(20.0, 0), lambda *_: None, cluster, Where("cpu"))
    assert cluster.closed and cluster.most <= cluster.slots
    return outcome


def test_every_case_comes_back_once(tmp_path: Path) -> None:
    timed, untimed = cases_of("normal", 8, 16, 32), cases_of("peaky", 8, 16, 32)
    cluster = MadeUp((timed, untimed), measured)
    outcome = gathered(cluster, tmp_path)
    assert sorted(each.key for each in read_folder(tmp_path)) == sorted(case.key("cpu-1") for case in timed + untimed)
    assert (len(outcome.rows), outcome.left, outcome.skipped) == (12, 0, 0)
    assert outcome.measured_share == pytest.approx(0.25)
    assert json.loads((tmp_path / "machines" / "cpu-1.json").read_text("utf-8"))["host"] == "node-1"


def test_a_second_run_goes_on_whatever_the_machine(tmp_path: Path) -> None:
    timed = cases_of("normal", 8, 16)
    with Store(tmp_path) as store:
        store.extend([row(timed[0], "cpu-of-another-kind"), row(timed[1], code="0ther")])
    cluster = MadeUp((timed, []), measured)
    assert gathered(cluster, tmp_path).skipped == 1
    assert sorted(case.key("") for pack in cluster.packs for case in pack) == sorted(c.key("") for c in timed[1:])


def test_what_is_lost_once_is_measured_again(tmp_path: Path) -> None:
    timed = cases_of("normal", 8, 16)
    lost: list[list[Case]] = []

    def fate(cases: list[Case]) -> Any:
        if cases in lost:
            return measured(cases)
        lost.append(cases)
        return Lost("killed")

    outcome = gathered(MadeUp((timed, []), fate), tmp_path)
    assert [each.status for each in outcome.rows] == ["ok"] * 4
    assert len({each.key for each in read_folder(tmp_path)}) == 4


def test_what_ends_its_machine_is_recorded_and_costs_no_other(tmp_path: Path) -> None:
    untimed = cases_of("peaky", *range(8, 16))
    deadly = untimed[5]
    cluster = MadeUp(([], untimed), lambda cases: Lost("node died") if deadly in cases else measured(cases))
    outcome = gathered(cluster, tmp_path)
    found = {each.case.key(""): each for each in read_folder(tmp_path)}
    assert len(found) == len(outcome.rows) == 16
    (failed,) = (each for each in found.values() if each.status != "ok")
    assert failed.case == deadly and failed.status == "error" and failed.key == deadly.key("cpu-1")
    assert failed.reason == "the process that measured it ended each time: node died"
    assert (failed.code, failed.threads, failed.seconds) == ("c0de", 2, None)
    assert sum(deadly in pack for pack in cluster.packs) == 3  # with others twice, and alone once


def test_what_no_time_was_left_for_is_told(tmp_path: Path) -> None:
    timed = cases_of("normal", 8, 16)
    cluster = MadeUp((timed, []), lambda cases: Measured((), tuple(cases), MACHINE, 0.0, 1.0))
    assert gathered(cluster, tmp_path).left == 4
    request, settings = Request(("full",), (Problem(tokens=8),)), Settings(20.0, 0, stop_after_seconds=1e-9)
    cluster = MadeUp((timed, []), measured)
    outcome = run_on_cluster(request, tmp_path, settings, lambda *_: None, cluster, Where("cpu"))
    assert (outcome.left, cluster.packs) == (4, [])


def test_ctrl_c_keeps_what_came_back(tmp_path: Path) -> None:
    def fate(cases: list[Case]) -> Any:
        if len(cluster.packs) == 3:
            raise KeyboardInterrupt
        return measured(cases)

    cluster = MadeUp((cases_of("normal", 8, 16, 32), []), fate)
    outcome = gathered(cluster, tmp_path)
    assert outcome.interrupted and len(read_folder(tmp_path)) == len(outcome.rows) == 2


def test_a_cluster_that_cannot_plan_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for answer, error, told in (
        (Planned(refused="--device cuda: no CUDA device"), InvalidRequest, "no CUDA device"),
        (Lost("no torch"), ExecutorError, "no machine of the cluster could plan the sweep: no torch"),
    ):
        cluster = MadeUp(([], []), measured)
        monkeypatch.setattr(cluster, "wait", lambda answer=answer: (None, answer))
        with pytest.raises(error, match=told):
            gathered(cluster, tmp_path)
        assert cluster.closed


def test_packs_hold_every_case_once_and_one_problem_each() -> None:
    timed, untimed = cases_of("normal", *range(8, 30)), cases_of("peaky", *range(8, 200))
    packs = list(packs_of(timed, untimed, 1))
    assert [case for pack in packs for case in pack.timed] == timed
    assert [case for pack in packs for case in pack.untimed] == untimed
    assert all(len({case.problem() for case in pack.timed}) <= 1 for pack in packs)
    assert max(len(pack.cases) for pack in packs) > 20
    many = [timed[0]] * 100
    assert max(len(pack.cases) for pack in packs_of(many, [], 1)) == MOST_TIMED
    assert len(list(packs_of(timed[:6], [], 100))) == 6  # a machine for each
    assert [(pack.cases, pack.tries) for pack in Pack((timed[0],), (untimed[0],), 2).alone()] == [
        ((untimed[0],), 1),
        ((timed[0],), 1),
    ]


# ---- options


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("kubernetes", [], "--executor must be one of local, ray, slurm, not 'kubernetes'"),
        ("ray", ["adress=auto"], "--executor ray has the option address, not adress"),
        ("ray", ["address=here"], "address must be auto or HOST:PORT, not 'here'"),
        ("ray", ["address=127.0.0.1:1"], "no Ray cluster at 127.0.0.1:1: "),
        ("slurm", ["cluster=moon"], "cluster must be slurm or local, not 'moon'"),
        ("slurm", ["cluster=local", "jobs=0"], "jobs must be a whole number from 1, not '0'"),
        ("slurm", ["cluster=local", "slurm_partitoin=gpu"], "Unknown argument 'partitoin'"),
        ("slurm", ["cluster=local", "cpus_per_task=many"], "submitit refuses cpus_per_task"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, name: str, settings: list[str], told: str) -> None:
    with pytest.raises(ExecutorError) as caught:
        executor_of(name, options_of(settings), "cpu", tmp_path / "out")
    assert told in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "module", "extra"), [("ray", "ray", "ray"), ("slurm", "submitit", "slurm")])
def test_a_missing_extra_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    module: str,
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    words = ["run", "--variants", "full/matmul", "--tokens", "8", "--executor", name, "--out", str(tmp_path / "out")]
    assert attnscape.main(words) == 2
    assert capsys.readouterr().err.endswith(f": pip install 'attnscape[{extra}]'\n")
    assert not (tmp_path / "out").exists()


def test_slurm_without_slurm_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExecutorError, match="no sbatch on this machine"):
        executor_of("slurm", {}, "cpu", tmp_path / "out")


# ---- one measurement at a time on a card


def test_a_card_is_held_by_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot, "POLL_SECONDS", 0.01)
    with slot_of("GPU-1", str(tmp_path)):
        with pytest.raises(Occupied, match="GPU-1.lock has been held by another measurement"), held(tmp_path):
            pass
        with slot_of("GPU-2", str(tmp_path)), slot_of("", str(tmp_path)):
            pass
    with held(tmp_path):
        pass


def held(folder: Path) -> Any:
    return slot_of("GPU-1", str(folder), wait_seconds=0.05)


def test_a_card_that_a_killed_process_held_is_free(tmp_path: Path) -> None:
    script = (
        "import sys, time; from benchmarks.slot import slot_of\n"
        "with slot_of('GPU-1', sys.argv[1]): print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(Occupied), held(tmp_path):
            pass
        process.kill()
        process.wait()
    with held(tmp_path):
        pass


def test_a_lock_is_no_way_to_another_file(tmp_path: Path) -> None:
    (tmp_path / "attnscape-cpu.lock").symlink_to(tmp_path / "else")
    with pytest.raises(OSError, match="symbolic link"), slot_of("", str(tmp_path)):
        pass


class NVMLError(Exception):
    pass


def nvml_with(*readings: Any) -> ModuleType:
    left = deque(readings)

    def read(_: Any) -> Any:
        found = left.popleft()
        if isinstance(found, Exception):
            raise found
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in found.items()]

    fake = ModuleType("fake_nvml")
    for name in ("nvmlInit", "nvmlShutdown"):
        setattr(fake, name, lambda: None)
    fake.NVMLError = NVMLError  # type: ignore[attr-defined]  # a module that is made up
    fake.nvmlDeviceGetHandleByUUID = lambda uuid: uuid  # type: ignore[attr-defined]  # likewise
    fake.nvmlDeviceGetComputeRunningProcesses = read  # type: ignore[attr-defined]  # likewise
    return fake


def test_foreign_processes_are_those_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.foreign_processes.AGAIN_SECONDS", 0.0)
    assert foreign_processes("GPU-1", nvml_with({7: 2**20, 8: 5}, {7: 2**21, 9: 1})) == {7: 2**21}
    assert foreign_processes("GPU-1", nvml_with({7: None}, {7: None})) == {7: 0}
    assert foreign_processes("GPU-1", nvml_with({})) == {}
    assert foreign_processes("GPU-1", nvml_with(NVMLError())) == {}
    assert foreign_processes("") == {}
    real = pytest.importorskip("pynvml")
    assert all(hasattr(real, name) for name in vars(nvml_with()) if not name.startswith("__"))


# ---- real clusters, on this machine

KILLS_ITS_JOB = '''
"""Ends the process that measures it, the first time."""
import os, signal
from pathlib import Path
from variants.full.matmul import build as right
from variants.variant import variant

MARK = Path({mark!r})

@variant("full/deadly", summary="", devices=("cpu",), modes=("forward",), workspace_bytes=lambda _: 0)
def build(problem):
    if not MARK.exists():
        MARK.touch()
        zygote = Path(f"/proc/{{os.getppid()}}/stat").read_text().rpartition(")")[2].split()
        os.kill(int(zygote[1]), signal.SIGKILL)
    return right(problem)
'''


@pytest.fixture
def short_folder() -> Iterator[str]:
    """For locks and sockets: the name of a socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="a") as folder:
        yield folder


@pytest.mark.parametrize("words", [["ray"], ["slurm", "--executor-set", "cluster=local"]], ids=["ray", "submitit"])
def test_a_job_killed_in_mid_case_is_measured_again(tmp_path: Path, short_folder: str, words: list[str]) -> None:
    shutil.copytree(ROOT / "variants", tmp_path / "variants", ignore=shutil.ignore_patterns("__pycache__"))
    source = KILLS_ITS_JOB.format(mark=str(tmp_path / "mark"))
    (tmp_path / "variants" / "full" / "deadly.py").write_text(source, "utf-8")
    command = [sys.executable, "-m", "attnscape", "run", "--variants", "full/deadly", "--tokens", "32", "--causal"]
    command += ["--threads", "1", "--inputs", "peaky", "--json", "--out", str(tmp_path / "out"), "--executor", *words]
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path, "TMPDIR": short_folder},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mark").exists()
    summary = json.loads(done.stdout)
    (found,) = read_folder(tmp_path / "out")
    assert (found.case.variant, found.status, summary["measured"]) == ("full/deadly", "ok", 1)
    assert found.device_state["host"] == os.uname().nodename
    assert [path.stem for path in (tmp_path / "out" / "machines").iterdir()] == [found.machine]


def test_a_job_that_is_killed_or_raises_is_lost(tmp_path: Path) -> None:
    executor = SlurmExecutor({"cluster": "local", "jobs": "3"}, "cpu", tmp_path / "slurm")
    jobs = [
        Job(signal.raise_signal, (signal.SIGKILL,), 60.0),
        Job(json.loads, ("no JSON",), 60.0),
        Job(json.loads, ("[1]",), 60.0),
    ]
    for job in jobs:
        executor.submit(job)
    answers = dict(executor.wait() for _ in jobs)
    killed, raised, well = (answers[job] for job in jobs)
    assert isinstance(killed, Lost) and "ended without an answer" in killed.reason
    assert isinstance(raised, Lost) and "JSONDecodeError" in raised.reason
    assert well == [1]
    executor.close()


def test_problems_are_planned_where_they_run() -> None:
    from benchmarks.executor_task import machine_name

    planned = plan_there(Request(("full/matmul",), problems_of([8], ["forward"])), Settings(1.0, 1), Where("cuda:77"))
    assert planned.refused.startswith("--device cuda:77: no ")
    assert plan_there(Request(("full/matmull",), ()), Settings(1.0, 1), Where("cpu")).refused.startswith("unknown")
    card = MACHINE | {"gpu": {"uuid": "GPU-1"}}
    assert machine_name(card) == "cpu-1 node-1 GPU-1" != machine_name(MACHINE)
