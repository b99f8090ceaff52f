"""Calls that would take too long: not tried, told in their rows, tried by a run that allows them."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import campaign, sweep
from benchmarks.call_limit import CallLimit
from benchmarks.campaign import Request, problems_of, run_campaign
from benchmarks.executor_campaign import run_on_cluster
from benchmarks.executor_task import Where
from benchmarks.measurement import Case, Measurement
from benchmarks.store import Store, read_folder
from benchmarks.sweep import Settings, plan_cases
from tests.test_executors import MadeUp, measured, row
from tests.test_sweep import CEILINGS, NoReferences, scripted
from variants import Problem

QUADRATIC = "full/matmul"


def case_of(tokens: int, variant: str = QUADRATIC, **fields: Any) -> Case:
    return plan_cases([variant], [Problem(tokens=tokens, **fields)], "normal")[0]


def test_a_call_is_foretold_by_its_operations_from_the_nearest_shorter_length() -> None:
    limit = CallLimit(1.0)
    limit.learn(case_of(256), 5.0)  # an odd figure of a length further away does not count
    limit.learn(case_of(1024), 0.1)
    limit.learn(case_of(8192), 0.1)  # nor does a longer one
    assert limit.exceeded(case_of(2048)) is None  # 0.4 s
    seconds, reason = limit.exceeded(case_of(4096)) or (0.0, "")
    assert seconds == pytest.approx(1.6)
    assert reason == "not tried: from 0.1 s at 1024 tokens a call would take 1.6 s, and 1 s are allowed"


def test_a_linear_variant_is_foretold_to_grow_linearly() -> None:
    limit = CallLimit(1.0)
    limit.learn(case_of(4096, "linear_scan/chunked", causal=True), 0.1)
    assert limit.exceeded(case_of(32768, "linear_scan/chunked", causal=True)) is None
    seconds, _ = limit.exceeded(case_of(65536, "linear_scan/chunked", causal=True)) or (0.0, "")
    assert seconds == pytest.approx(1.6, rel=0.02)


@pytest.mark.parametrize(
    "other", [{"causal": True}, {"head_dim": 128}, {"dtype": "bfloat16"}, {"mode": "training"}, {"heads": 4}]
)
def test_only_the_same_curve_tells(other: dict[str, Any]) -> None:
    limit = CallLimit(1.0)
    limit.learn(case_of(1024), 10.0)
    assert limit.exceeded(case_of(2048, **other)) is None
    assert limit.exceeded(case_of(2048)) is not None


def test_without_a_limit_all_is_tried() -> None:
    limit = CallLimit()
    limit.learn(case_of(1024), 1e6)
    assert limit.exceeded(case_of(131072)) is None


class Endless:
    """Starts a worker of 0.1 s for every case that is prepared, and counts them."""

    def __init__(self) -> None:
        self.started = 0
        self.resting: dict[str, Any] = {}

    def start(self) -> Any:
        self.started += 1
        return scripted(0.1)

    def __enter__(self) -> "Endless":
        return self

    def __exit__(self, *_: object) -> None:
        return None


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Endless:
    made = Endless()
    monkeypatch.setattr(sweep, "References", NoReferences)
    monkeypatch.setattr(campaign, "Workers", lambda: made)
    monkeypatch.setattr(campaign, "read_machine", lambda *_: {"key": "cpu-1", "ceilings": CEILINGS})
    return made


def run(folder: Path, lengths: list[int], longest: float) -> tuple[int, list[Measurement]]:
    request = Request((QUADRATIC,), problems_of(lengths, ["forward"]), ("normal",))
    settings = Settings(0.0, 1, longest_call_seconds=longest)
    outcome = run_campaign(request, folder, settings, lambda *_: None, machine_device="cpu")
    return outcome.skipped, outcome.rows


def test_what_would_take_too_long_is_a_row_and_a_run_that_allows_it_tries_it(tmp_path: Path, workers: Endless) -> None:
    _, rows = run(tmp_path, [64, 128, 256], 0.5)
    assert [(each.status, each.foretold_seconds) for each in rows[:2]] == [("ok", None)] * 2
    assert (rows[2].status, rows[2].seconds) == ("ok", 0.1)  # 0.4 s were foretold
    _, rows = run(tmp_path, [1024, 2048], 0.5)  # 1.6 s by what the folder holds
    assert [each.status for each in rows] == ["timeout"] * 2
    assert [each.foretold_seconds for each in rows] == pytest.approx([1.6, 6.4])
    assert rows[0].reason.startswith("not tried: from 0.1 s at 256 tokens")
    started = workers.started
    assert run(tmp_path, [1024, 2048], 1.0) == (2, [])
    assert workers.started == started
    skipped, rows = run(tmp_path, [1024, 2048], 2.0)
    assert (skipped, [each.status for each in rows]) == (1, ["ok"])
    assert len(read_folder(tmp_path)) == 6


def test_without_a_baseline_that_would_take_too_long_a_case_is_timed(tmp_path: Path, workers: Endless) -> None:
    request = Request(("linear_scan/chunked",), problems_of([1024, 65536], ["forward"], causal=True), ("normal",))
    settings = Settings(0.0, 1, longest_call_seconds=10.0)
    rows = run_campaign(request, tmp_path, settings, lambda *_: None, machine_device="cpu").rows
    assert rows[0].ratio == pytest.approx(1.0)
    assert (rows[1].status, rows[1].seconds, rows[1].ratio, rows[1].noisy) == ("ok", 0.1, None, True)


def test_on_a_cluster_every_machine_goes_by_what_any_has_measured(tmp_path: Path) -> None:
    lengths = (64, 128, 4096)
    cases = [case_of(length) for length in lengths]
    with Store(tmp_path) as store:
        short = row(cases[0])
        short.seconds = 0.001
        store.append(short)
    cluster = MadeUp((cases, []), measured)
    request, settings = Request(("full",), (Problem(tokens=8),)), Settings(20.0, 0, longest_call_seconds=1.0)
    outcome = run_on_cluster(request, tmp_path, settings, lambda *_: None, cluster, Where("cpu"))  # type: ignore[arg-type]
    found = {each.case.tokens: each for each in read_folder(tmp_path)}
    assert [found[length].status for length in lengths] == ["ok", "ok", "timeout"]
    assert cluster.packs == [[cases[1]]] and outcome.left == 0
    assert found[4096].foretold_seconds == pytest.approx(4.096)
