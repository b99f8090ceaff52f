"""Campaigns: parts that make up the whole, budgets that hold, and runs that are killed, doubled or short of room."""

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest

import attnscape
from benchmarks import campaign, sweep
from benchmarks.campaign import Request, problems_of, run_campaign
from benchmarks.measurement import Case, Measurement
from benchmarks.provenance import read_provenance
from benchmarks.session_times import ROUNDS
from benchmarks.shard import InvalidShard, Shard
from benchmarks.store import Store
from benchmarks.sweep import Settings
from benchmarks.workers import Workers
from reports import records
from tests import results_builder
from variants import Problem

ROOT = Path(__file__).parents[1]
MACHINE: dict[str, Any] = {
    "key": "cpu-1",
    "gpu": None,
    "ceilings": {"matmul_flops": {"float32": 1e15}, "copy_bytes_per_second": 1e15},
}


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = attnscape.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


# ---- shards


def request(**fields: Any) -> Request:
    return Request(("full", "local_window"), problems_of([16, 32, 64], ["forward"]), ("normal", "peaky"), **fields)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_shards_share_nothing_and_make_up_the_whole(count: int) -> None:
    whole = Counter(case.key("") for cases in request().cases() for case in cases)
    parts = [request(shard=Shard(number, count)).cases() for number in range(1, count + 1)]
    assert sum((Counter(case.key("") for cases in part for case in cases) for part in parts), Counter()) == whole
    assert set(whole.values()) == {1}
    if count == 2:
        assert all(any(part) for part in parts)


def test_a_shard_is_the_same_on_every_machine() -> None:
    case = Case.of("full/matmul", {}, Problem(tokens=16), "normal")
    assert [Shard(number, 5).holds(case) for number in range(1, 6)] == [False, False, False, True, False]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1/0", "1", "", "a/b", "-1/2", "1/2/3", "1.0/2", "9999999/9999999"])
def test_a_shard_that_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(InvalidShard, match="1/8 to 8/8, not "):
        Shard.parse(text)


def test_a_shard_goes_into_a_folder_of_its_own(tmp_path: Path) -> None:
    assert replace(request(), shard=Shard.parse(" 2/8 ")).folder(tmp_path) == tmp_path / "shard-2-of-8"
    assert request().folder(tmp_path) == tmp_path


class Idle(nullcontext[Any]):
    """Workers of which none is asked for."""

    def __enter__(self) -> Self:
        self.resting: dict[str, Any] = {}
        return self


def test_a_shard_does_not_measure_what_was_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "read_machine", lambda *_: MACHINE)
    monkeypatch.setattr(campaign, "Workers", Idle)
    asked = Request(("full/matmul",), (Problem(tokens=16),), ("peaky",), shard=Shard(1, 1))
    (case,) = asked.cases()[1]
    with Store(tmp_path) as store:
        store.append(lost(case, code=read_provenance().code))
    outcome = run_campaign(asked, tmp_path, Settings(1.0, 1), lambda *_: None, machine_device="cpu")
    assert (outcome.skipped, outcome.rows) == (1, [])


def test_who_else_is_on_the_card_is_asked_before_this_process_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    machines = iter(
        ({"key": "c", "gpu": {"uuid": "GPU-1"}, "ceilings": {"matmul_flops": {kind: 1.0}}}) for kind in "ab"
    )
    monkeypatch.setattr(campaign, "read_machine", lambda *_: next(machines))
    monkeypatch.setattr(campaign, "foreign_processes", lambda uuid: asked.append(uuid) or {7: 2**20})
    monkeypatch.setattr(campaign, "Workers", Idle)
    empty = Request(("full/matmul",), (), ("normal",))
    found = None
    for problems in ((), (Problem(tokens=8),)):  # the second asks for a type whose ceiling is not read yet
        wanted = replace(empty, problems=problems)
        settings = Settings(0.0, 1, stop_after_seconds=1e-9)
        found = run_campaign(wanted, tmp_path, settings, lambda *_: None, machine_device="cpu", machine=found).machine
    assert asked == ["GPU-1"]
    assert found["ceilings"] == {"matmul_flops": {"b": 1.0}} and found["foreign_processes"] == {7: 2**20}


@pytest.mark.parametrize(
    ("energy", "row", "skipped"),
    [
        (False, {"status": "ok", "seconds": 0.1}, 1),
        (True, {"status": "ok", "seconds": 0.1}, 0),
        (True, {"status": "ok", "seconds": 0.1, "energy_joules": 1.0}, 1),
        (True, {"status": "ok", "seconds": 0.1, "device_state": {"energy": "no counter to be read"}}, 1),
        (True, {"status": "wrong"}, 1),
    ],
)
def test_a_row_without_energy_is_measured_again_where_energy_is_wanted(
    energy: bool, row: dict[str, Any], skipped: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "read_machine", lambda *_: MACHINE)
    monkeypatch.setattr(campaign, "Workers", Idle)
    asked = Request(("full/matmul",), (Problem(tokens=16),), ("normal",))
    (case,) = asked.cases()[0]
    with Store(tmp_path) as store:
        store.append(lost(case, code=read_provenance().code, **row))
    settings = Settings(1.0, 1, energy=energy, stop_after_seconds=1e-9)
    outcome = run_campaign(asked, tmp_path, settings, lambda *_: None, machine_device="cpu")
    assert (outcome.skipped, outcome.left) == (skipped, 1 - skipped)


def lost(case: Case, **fields: Any) -> Measurement:
    made: dict[str, Any] = {"key": case.key("cpu-1"), "run": "r", "machine": "cpu-1", "measured_at": "", "code": "c"}
    made |= {"commit": "", "dirty": True, "definition": "full", "exact": True, "case": case, "status": "timeout"}
    return Measurement(**made | fields)


# ---- compact and merge, as a user types them


def test_a_folded_folder_reads_as_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = results_builder.write(tmp_path, results_builder.landscape([256, 1024]))
    before = records.read(folder)
    status, out, _ = call(capsys, "compact", "--results", folder)
    assert (status, out) == (0, f"{len(before.rows)} measurements in {folder / 'measurements.parquet'}\n")
    assert records.read(folder) == before
    assert records.read(folder / "measurements.jsonl") == before
    assert records.read(folder / "measurements.parquet").rows == before.rows
    (folder / "measurements.jsonl").unlink()
    assert records.read(folder).rows == before.rows
    status, _, _ = call(capsys, "choose", "--results", folder, "--tokens", 256, "--max-ms", 1000)
    assert status == 0


def test_a_page_does_not_replace_a_folded_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = results_builder.write(tmp_path, results_builder.landscape([256]))
    assert call(capsys, "compact", "--results", folder)[0] == 0
    words = ["report", "--results", folder, "--out", folder / "measurements.parquet", "--force"]
    refused(capsys, words, "holds the results themselves")


def test_later_lines_replace_folded_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, later = (results_builder.measured("full/matmul", 256, figures={"seconds": each}) for each in (1.0, 2.0))
    folder = results_builder.write(tmp_path, [first])
    assert call(capsys, "compact", "--results", folder)[0] == 0
    (folder / "measurements.jsonl").write_text(json.dumps(later | {"run": "later"}) + "\n", "utf-8")
    (row,) = records.read(folder).rows
    assert row.seconds == 2.0


def test_a_damaged_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = results_builder.write(tmp_path, results_builder.landscape([256]))
    assert call(capsys, "compact", "--results", folder)[0] == 0
    file = folder / "measurements.parquet"
    file.write_bytes(file.read_bytes()[:-7])
    for words in (["compact", "--results", folder], ["merge", folder, "--out", tmp_path / "all"]):
        refused(capsys, words, "measurements.parquet: not a whole file of measurements")
    refused(capsys, ["choose", "--results", folder, "--tokens", 256], "is not a whole file of measurements")
    file.write_text("name,seconds\n")
    refused(capsys, ["choose", "--results", file, "--tokens", 256], "is not a whole file of measurements")
    refused(capsys, ["compact", "--results", tmp_path / "none"], "no measurements.jsonl in")
    refused(capsys, ["merge", tmp_path / "none", "--out", tmp_path / "all"], "no measurements.jsonl in")
    assert not (tmp_path / "none").exists() and not (tmp_path / "all").exists()


def refused(capsys: pytest.CaptureFixture[str], words: list[Any], told: str) -> None:
    status, out, err = call(capsys, *words)
    assert (status, out) == (2, "")
    assert told in err and err.startswith("attnscape: ") and err.count("\n") == 1


def test_folders_are_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, tokens in (("a", 256), ("b", 512)):
        results_builder.write(tmp_path / name, [results_builder.measured("full/matmul", tokens)])
    words = ["merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "all"]
    assert call(capsys, *words)[:2] == (0, f"2 measurements came to {tmp_path / 'all'}\n")
    assert call(capsys, *words)[1].endswith(", 2 were there already\n")
    assert len(records.read(tmp_path / "all").rows) == 2
    assert records.read(tmp_path / "all").description()["cpu"] == results_builder.DESCRIPTION["cpu"]


# ---- two runners, and one that is killed


def test_a_second_runner_says_so_and_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store(tmp_path):
        words = ["run", "--variants", "full/matmul", "--tokens", 16, "--out", tmp_path]
        refused(capsys, words, f"another run is writing to {tmp_path}; wait for it or choose another --out")
        refused(capsys, ["merge", results_builder.write(tmp_path / "a", []), "--out", tmp_path], "another run is")
    assert not (tmp_path / "measurements.jsonl").read_bytes()


KILLED = """
import sys
from pathlib import Path
from benchmarks import campaign
from benchmarks.provenance import Provenance
from benchmarks.sweep import Settings
from tests.test_campaign import MACHINE, many

campaign.read_machine = lambda *_: MACHINE
campaign.read_provenance = lambda: Provenance("c0de", "", True)  # whatever is edited meanwhile
show = lambda done, total, row: print(done, flush=True)
outcome = campaign.run_campaign(many(), Path(sys.argv[1]), Settings(60.0, 1), show, machine_device="cpu")
"""


def many() -> Request:
    return Request(("full/matmul",), problems_of(range(8, 20), ["forward"], heads=1), ("smooth", "peaky", "sink"))


def test_a_run_killed_at_any_point_goes_on_where_it_was(tmp_path: Path) -> None:
    generator = random.Random()
    kept: list[bytes] = []
    for killed in (True, False):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as script:
            assert script.stdout is not None
            script.stdout.readline(), script.stdout.readline()  # how many there are to be, and the first of them
            if killed:
                time.sleep(generator.uniform(0.0, 0.4))
                script.kill()
            told = len(kept) + max(map(int, script.stdout.read().split()), default=1)
        assert script.returncode == (-signal.SIGKILL if killed else 0)
        content = (tmp_path / "measurements.jsonl").read_bytes()
        lines = content[: content.rfind(b"\n") + 1].splitlines()
        assert lines[: len(kept)] == kept and len(lines) >= told  # nothing that was finished is lost
        kept = lines
    rows = [msgspec.json.decode(line, type=Measurement) for line in kept]
    assert [row.status for row in rows] == ["ok"] * 36
    assert len({row.key for row in rows}) == 36  # nor measured twice
    assert len({row.run for row in rows}) == 2


# ---- budgets


def test_nothing_is_begun_after_the_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "read_machine", lambda *_: MACHINE)
    asked = Request(("full/matmul",), problems_of([8, 16], ["forward"], heads=1), ("normal", "peaky"))
    settings = Settings(20.0, 1, stop_after_seconds=1e-9)
    monkeypatch.setattr(campaign, "Workers", Idle)
    outcome = run_campaign(asked, tmp_path, settings, lambda *_: None, machine_device="cpu")
    assert (outcome.left, outcome.rows) == (4, [])


@pytest.mark.parametrize(("seconds", "errors"), [(0.0, 0.0), (8.0, 4.0), (40.0, 10.0), (120.0, 20.0)])
def test_errors_alone_have_a_small_part_of_the_time(seconds: float, errors: float) -> None:
    assert campaign.errors_seconds(seconds) == errors


def test_the_share_counts_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.test_sweep import CEILINGS, NoReferences, ScriptedWorkers, scripted

    monkeypatch.setattr(sweep, "References", NoReferences)
    workers: Any = ScriptedWorkers(*(scripted(0.01) for _ in range(3)))
    run = sweep.Sweep(workers, Settings(60.0, 1), {"key": "cpu-1", "ceilings": CEILINGS}, read_provenance())
    run.measure(sweep.plan_cases(["full/matmul"], [Problem(tokens=64)], "normal"), lambda _: None)
    assert run.measured_seconds == pytest.approx(3 * ROUNDS * 0.02)  # what the workers tell, not the samples


def test_a_session_that_runs_out_of_time_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.test_sweep import CEILINGS, NoReferences, ScriptedWorkers, scripted

    monkeypatch.setattr(sweep, "References", NoReferences)
    clock = iter(range(1000))
    monkeypatch.setattr(sweep.time, "monotonic", lambda: float(next(clock)))
    rows: list[Measurement] = []
    workers: Any = ScriptedWorkers(*(scripted(0.01) for _ in range(5)))
    machine = {"key": "cpu-1", "ceilings": CEILINGS}
    run = sweep.Sweep(workers, Settings(60.0, 1), machine, read_provenance())
    names = ["full/matmul", "full/sdpa_math", "memory_efficient/chunked"]
    cases = sweep.plan_cases(names, [Problem(tokens=64), Problem(tokens=128)], "normal")
    left = run.measure(cases, rows.append, stop=14.0)
    assert [row.case for row in rows] == cases[:2] and left == cases[2:]
    assert all(row.seconds and len(row.wall_samples) == sweep.FEWEST_ROUNDS for row in rows)


def test_a_lost_case_is_a_row_without_figures() -> None:
    case = Case.of("full/matmul", {}, Problem(tokens=64), "normal")
    row = sweep.Sweep(Workers(), Settings(1.0, 1), MACHINE, read_provenance()).lost(case, "error", "gone")
    assert (row.status, row.reason, row.key, row.seconds) == ("error", "gone", case.key("cpu-1"), None)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--shard", "3/2"], "1/8 to 8/8, not '3/2'"),
        (["--stop-after", "0"], "--stop-after must be positive"),
        (["--stop-after", "nan"], "--stop-after must be positive"),
        (["--longest-call", "-1"], "--longest-call must be positive, not -1"),
        (["--executor", "kubernetes"], "--executor must be one of local, ray, slurm, not 'kubernetes'"),
        (["--executor-set", "a=b"], "--executor local has no options"),
        (["--executor", "ray", "--executor-set", "address"], "--executor-set takes name=value"),
    ],
)
def test_bad_options_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], told: str
) -> None:
    refused(capsys, ["run", "--tokens", 16, "--variants", "full/matmul", *words, "--out", tmp_path / "out"], told)
    assert not (tmp_path / "out").exists()
