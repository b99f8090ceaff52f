"""A sweep's rounds, ratios and refusals, with workers whose times are known."""

import math
import os
import random
import signal
import time
from collections.abc import Callable, Collection
from threading import Barrier, Event
from typing import Any

import pytest

from benchmarks import sweep
from benchmarks.campaign import Request
from benchmarks.clock import Sample
from benchmarks.measurement import Case, Measurement
from benchmarks.process_memory import predicted_process_bytes
from benchmarks.provenance import Provenance
from benchmarks.reference_files import own_bytes, shared_bytes
from benchmarks.session_times import ROUNDS, Entry, add_ceiling, settled
from benchmarks.sweep import Settings, Sweep, plan_cases, traffic_bytes
from benchmarks.workers import Fault
from variants import Problem
from variants.catalogue import BASELINE

# ---- rounds and ratios, with workers whose times are known


class ScriptedWorker:
    """Stands in for a process: each sample takes `seconds`, times what slows the whole machine in that round."""

    def __init__(self, seconds: Callable[[int], float], failing: dict[int, Fault], rejected: Collection[int]) -> None:
        self.seconds, self.failing, self.rejected = seconds, failing, rejected
        self.round = -1
        self.pid = 0

    def ask(self, method: str, *_: Any) -> dict[str, Any]:
        if method == "renew":
            return {"status": "ok", "call_seconds": 0.0}
        if method == "prepare":
            figures = {"calls_per_sample": 1, "extra_bytes": 10, "implementation_error": 0.0, "kernel": "scripted"}
            return {"status": "ok", "warm_seconds": 0.0, **figures}
        self.round += 1
        if self.round in self.failing:
            raise self.failing[self.round]
        seconds = self.seconds(self.round)
        sample = Sample(seconds, seconds, 0, 0)
        return {
            "status": "ok",
            "sample": sample,
            "state": {},
            "rejected": self.round in self.rejected,
            "call_seconds": 2 * seconds,
        }

    def kill(self) -> None:
        pass

    def end(self) -> None:
        pass


class ScriptedWorkers:
    """Starts the scripted workers in their order: baseline, twin, entries."""

    def __init__(self, *scripts: ScriptedWorker) -> None:
        self.waiting = list(scripts)
        self.resting: dict[str, list[ScriptedWorker]] = {}

    def start(self) -> ScriptedWorker:
        return self.waiting.pop(0)


class NoReferences:
    """Stands in for the references, and notes what is asked of it."""

    def __init__(self, *_: Any) -> None:
        self.asked: list[str] = []

    def of(self, case: Case) -> None:
        self.asked.append(case.variant)

    def pause(self) -> None:
        self.asked.append("pause")

    def clear(self) -> None:
        self.asked.append("clear")

    def close(self) -> None:
        self.asked.append("close")


@pytest.fixture(autouse=True)
def references(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripted workers make none."""
    monkeypatch.setattr(sweep, "References", NoReferences)


def scripted(
    seconds: float | Callable[[int], float],
    failing: dict[int, Fault] | None = None,
    rejected: Collection[int] = (),
) -> ScriptedWorker:
    given = seconds if callable(seconds) else lambda _: seconds
    return ScriptedWorker(given, failing or {}, rejected)


def slowed(seconds: float) -> Callable[[int], float]:
    """The same drift of the machine for every worker."""
    generator = random.Random(5)
    drift = [generator.uniform(1, 4) for _ in range(1000)]
    return lambda number: seconds * drift[number]


NOBODY = Provenance("", "", True)
CEILINGS = {"matmul_flops": {"float32": 1e15}, "copy_bytes_per_second": 1e15}


def measured(*scripts: ScriptedWorker, seconds: float = 0.0, more: int = 0, processes: int = 1) -> list[Measurement]:
    """The rows of a sweep over as many variants as there are scripts beyond baseline and twin, and some without.

    Of several processes the scripts of the first come first.
    """
    rows: list[Measurement] = []
    settings = Settings(seconds=seconds, threads=1, processes=processes)
    machine_read = {"key": "cpu-1", "ceilings": CEILINGS}
    run = Sweep(ScriptedWorkers(*scripts), settings, machine_read, Provenance("c0de", "abc", False))  # type: ignore[arg-type]
    names = ["full/matmul", "full/sdpa_math", "memory_efficient/chunked"][: len(scripts) // processes - 2 + more]
    run.measure(plan_cases(names, [Problem(tokens=64)], "normal"), rows.append)
    return rows


def test_a_ratio_is_paired_by_round() -> None:
    fast, slow = measured(*(scripted(slowed(each)) for each in (0.02, 0.02, 0.01, 0.06)), seconds=60)
    for row, ratio in ((fast, 0.5), (slow, 3.0)):
        assert row.ratio is not None and math.isclose(row.ratio, ratio)
        assert (row.ratio_low, row.ratio_high) == pytest.approx((ratio, ratio))
        assert row.twin_ratio == pytest.approx(1.0)
        assert row.noisy is False
        assert len(row.wall_samples) == ROUNDS
        assert (row.baseline, row.baseline_causal) == (BASELINE, False)
    assert fast.seconds_high is not None and fast.seconds_low is not None
    assert fast.seconds_high > 1.3 * fast.seconds_low  # the time itself is not that sure


def test_each_process_of_a_case_has_a_ratio_of_its_own() -> None:
    chance = (1.0, 1.1, 0.9, 1.0)
    scripts = [scripted(slowed(each)) for luck in chance for each in (0.02, 0.02, 0.01 * luck)]
    (row,) = measured(*scripts, seconds=60, processes=4)
    assert row.process_ratios == pytest.approx([0.5, 0.55, 0.45, 0.5])
    assert row.process_cpu_ratios == row.process_ratios
    assert len(row.wall_samples) >= ROUNDS
    assert row.ratio == pytest.approx(0.5)
    (alone,) = measured(*scripts[:3], seconds=60)
    assert alone.process_ratios == pytest.approx([0.5])


def test_processes_share_the_fewest_rounds() -> None:
    (row,) = measured(*(scripted(0.01) for _ in range(6)), processes=2)
    assert len(row.wall_samples) == 4 and row.process_ratios == [1.0, 1.0]  # two rounds each, more than three in all


def test_what_dies_when_it_is_begun_anew_has_no_figures() -> None:
    class Dying(ScriptedWorker):
        def ask(self, method: str, *rest: Any) -> dict[str, Any]:
            if method == "renew":
                return {"status": "error", "reason": "RuntimeError: once only"}
            return super().ask(method, *rest)

    again = [scripted(0.02), scripted(0.02), Dying(lambda _: 0.01, {}, set())]
    (row,) = measured(scripted(0.02), scripted(0.02), scripted(0.01), *again, seconds=60, processes=2)
    assert (row.status, row.reason, row.seconds) == ("error", "RuntimeError: once only", None)


def test_references_are_made_before_the_first_sample_and_not_after(monkeypatch: pytest.MonkeyPatch) -> None:
    log = NoReferences()
    monkeypatch.setattr(sweep, "References", lambda *_: log)

    class Noting(ScriptedWorker):
        def ask(self, method: str, *rest: Any) -> dict[str, Any]:
            log.asked.append(method)
            return super().ask(method, *rest)

    measured(*(Noting(lambda _: 0.01, {}, set()) for _ in range(4)))
    prepared = [word for each in (BASELINE, BASELINE, "full/matmul", "full/sdpa_math") for word in (each, "prepare")]
    assert log.asked[:9] == [*prepared, "pause"]
    assert set(log.asked[9:-1]) == {"sample"} and log.asked[-1] == "close"


def test_a_reference_that_fails_is_the_row_of_its_case_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(NoReferences):
        def of(self, case: Case) -> None:
            if case.variant == "full/matmul":
                raise Fault("timeout", "its reference: no answer within 1 s")

    monkeypatch.setattr(sweep, "References", Failing)
    lost, alive = measured(scripted(0.02), scripted(0.02), scripted(0.01), more=1)
    assert (lost.status, lost.reason) == ("timeout", "its reference: no answer within 1 s")
    assert lost.seconds is None and lost.implementation_error is None
    assert (alive.status, alive.seconds) == ("ok", 0.01)


def test_a_twin_that_differs_makes_all_rows_noisy() -> None:
    (row,) = measured(scripted(0.02), scripted(0.0204), scripted(0.01), seconds=0.3)
    assert len(row.wall_samples) > ROUNDS
    assert row.noisy is True and row.twin_ratio == pytest.approx(1.02)


def test_few_rounds_are_noisy() -> None:
    (row,) = measured(scripted(0.02), scripted(0.02), scripted(0.01))
    assert len(row.wall_samples) == sweep.FEWEST_ROUNDS
    assert row.noisy is True


def test_a_scattered_ratio_is_noisy() -> None:
    generator = random.Random(2)
    (row,) = measured(scripted(0.02), scripted(0.02), scripted(lambda _: generator.uniform(0.01, 0.03)), seconds=0.5)
    assert row.noisy is True
    assert len(row.wall_samples) > ROUNDS


@pytest.mark.parametrize("dying", [0, 1])
def test_without_its_baseline_a_row_has_no_ratio(dying: int) -> None:
    scripts = [scripted(0.02), scripted(0.02), scripted(0.01)]
    scripts[dying].failing = {2: Fault("error", "crashed")}
    (row,) = measured(*scripts, seconds=60)
    assert row.status == "ok" and row.seconds == 0.01
    assert row.ratio is None and row.twin_ratio is None and row.baseline is None
    assert row.noisy is True


def test_what_dies_in_a_later_round_has_no_figures() -> None:
    dead, alive = measured(
        scripted(0.02),
        scripted(0.02),
        scripted(0.01, {5: Fault("out_of_memory", "killed")}),
        scripted(0.04),
        seconds=60,
    )
    assert (dead.status, dead.reason) == ("out_of_memory", "killed")
    times = ("seconds", "cpu_seconds", "ratio", "cpu_ratio", "twin_ratio")
    others = ("extra_bytes", "total_bytes", "implementation_error", "kernel")
    assert [getattr(dead, name) for name in (*times, *others)] == [None] * 9
    assert dead.wall_samples == dead.cpu_samples == []
    assert alive.status == "ok" and alive.ratio == pytest.approx(2.0)


def test_rejected_samples_are_left_out() -> None:
    warm = scripted(lambda number: 0.5 if number in (3, 4) else 0.01, rejected={3, 4})
    (row,) = measured(scripted(0.02), scripted(0.02), warm, seconds=60)
    assert set(row.wall_samples) == {0.01}
    assert row.status == "ok" and row.ratio == pytest.approx(0.5)


def test_a_card_that_brakes_all_the_time_gives_no_figures() -> None:
    (row,) = measured(scripted(0.02), scripted(0.02), scripted(0.01, rejected=range(10**9)), seconds=0.2)
    assert (row.status, row.seconds, row.extra_bytes) == ("error", None, None)
    assert row.reason.startswith("every sample was taken under a thermal or power brake")


def test_after_the_stop_one_round_and_nothing_more_must_do(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Sweep._sample

    def late(self: Sweep, entry: Entry, number: int) -> None:
        now = time.monotonic()
        monkeypatch.setattr(sweep.time, "monotonic", lambda: now + 1000.0)  # it came in the first round
        sample(self, entry, number)

    monkeypatch.setattr(Sweep, "_sample", late)
    monkeypatch.setattr(Sweep, "_refused", lambda *_: False)
    monkeypatch.setattr(sweep, "available_bytes", lambda _: 2**40)
    card, rows = Card(), list[Measurement]()
    told = Sweep(card, Settings(60.0, 1, energy=True, processes=3), {"key": "x", "ceilings": CEILINGS}, NOBODY)  # type: ignore[arg-type]
    cases = plan_cases(["full/matmul"], [Problem(tokens=4, heads=1, device="cuda")], "normal")
    assert told.measure(cases, rows.append, 60.0, time.monotonic() + 500.0) == []
    assert [(row.status, len(row.wall_samples), row.noisy, row.clean_share) for row in rows] == [("ok", 1, True, None)]
    assert not {"energy", "card_figures", "renew"} & set(card.asked)


def test_a_session_waits_for_no_answer_long_after_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    waited, begin = list[float](), time.monotonic()
    later = [0.0]

    class Hanging(Card):
        def start(self) -> ScriptedWorker:
            worker = super().start()

            def ask(method: str, _: Any, seconds: float) -> dict[str, Any]:
                waited.append(seconds)
                later[0] += seconds
                raise Fault("timeout", f"no answer within {seconds:.0f} s")

            worker.ask = ask  # type: ignore[method-assign,assignment]
            return worker

    monkeypatch.setattr(sweep.time, "monotonic", lambda: begin + later[0])
    monkeypatch.setattr(Sweep, "_refused", lambda *_: False)
    monkeypatch.setattr(sweep, "available_bytes", lambda _: 2**40)
    rows: list[Measurement] = []
    told = Sweep(Hanging(), Settings(60.0, 1, timeout_seconds=90.0), {"key": "x", "ceilings": CEILINGS}, NOBODY)  # type: ignore[arg-type]
    cases = plan_cases(["full/matmul"], [Problem(tokens=4, heads=1, device="cuda")], "normal")
    assert told.measure(cases, rows.append, 600.0, begin + 185.0) == cases and rows == []  # neither a row nor lost
    assert waited == [90.0, 90.0, pytest.approx(25.0)]  # the baseline, its twin, and until 20 s after the stop
    # Of proofs likewise, and the same timeout in time is the variant's own.
    later[0] = 0.0
    assert told.measure_errors(cases, rows.append, 600.0, begin + 50.0) == cases and rows == []
    later[0] = 0.0
    assert told.measure_errors(cases, rows.append, 600.0, begin + 100.0) == []
    assert [(row.status, row.reason) for row in rows] == [("timeout", "no answer within 90 s")]


def test_few_workers_of_a_card_start_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "AWAKE", 2)
    card, _ = swept_on("cuda", monkeypatch)
    assert card.asked[:6] == ["wake", "wake", "prepare", "wake", "prepare", "wake"]


def test_the_hosts_memory_bounds_a_session_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "most_at_once", lambda _: 1)
    card, rows = swept_on("cuda", monkeypatch)
    assert len(rows) == 6 and card.asked.count("prepare") == 18  # each with its own baseline and twin


def test_rejected_samples_are_counted() -> None:
    own, rest = scripted(0.01, rejected=range(5)), (scripted(0.02), scripted(0.02))
    (row,) = measured(*rest, own, seconds=0.2)
    assert row.device_state == {"rejected_share": pytest.approx(5 / (5 + len(row.wall_samples)))}
    assert measured(scripted(0.02), scripted(0.02), scripted(0.01))[0].device_state == {}


def test_a_baseline_that_shares_no_round_gives_no_ratio() -> None:
    odd, even = range(1, 10**9, 2), range(0, 10**9, 2)
    (row,) = measured(
        scripted(0.02, rejected=odd), scripted(0.02, rejected=odd), scripted(0.01, rejected=even), seconds=0.2
    )
    assert row.status == "ok" and row.ratio is None and row.noisy is True


def test_settled_needs_a_narrow_interval_and_a_twin() -> None:
    case = Case.of("full/matmul", {}, Problem(tokens=8), "normal")

    def entry(*seconds: float) -> Entry:
        return Entry(case, samples={number: Sample(each, each, 0, 0) for number, each in enumerate(seconds)})

    steady = entry(*[1.0] * 20)
    assert settled(entry(*[2.0] * 20), steady, steady)
    assert not settled(entry(*[2.0, 2.2] * 10), steady, steady)
    assert not settled(entry(*[2.0] * 20), steady, entry(*[1.02] * 20))
    assert settled(entry(*[2.0] * 20), entry(), entry())  # by its own interval
    assert not settled(entry(*[2.0, 2.2] * 10), entry(), entry())
    assert not settled(entry(), steady, steady)


def test_the_share_of_clean_samples() -> None:
    class Interrupted(ScriptedWorker):
        def ask(self, method: str, *_: Any) -> dict[str, Any]:
            answer = super().ask(method)
            if method == "sample":
                busy = 0.4 if self.round == 0 else 1.0
                answer["sample"] = Sample(0.01, 0.01 * busy, 1, 2)
            return answer

    (row,) = measured(scripted(0.02), scripted(0.02), Interrupted(lambda _: 0.01, {}, set()))
    assert row.clean_share == pytest.approx(2 / 3)
    assert row.involuntary_switches == [1, 1, 1] and row.minor_faults == [2, 2, 2]


@pytest.mark.parametrize(("name", "attention"), [("full/matmul", True), ("depthwise_convolution/shifted", False)])
def test_a_row_says_whether_it_is_attention(name: str, attention: bool) -> None:
    machine_read = {"key": "cpu-1", "ceilings": CEILINGS}
    run = Sweep(ScriptedWorkers(), Settings(1.0, 1), machine_read, Provenance("", "", True))  # type: ignore[arg-type]
    (case,) = plan_cases([name], [Problem(tokens=8)], "normal")
    assert run.lost(case, "error", "gone").attention is attention


# ---- what fits


def test_cases_that_do_not_fit_together_are_measured_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = plan_cases(["full/matmul"] * 5, [Problem(tokens=64)], "normal")
    file = own_bytes(Problem(tokens=64))
    need = predicted_process_bytes(cases[0]) + file
    pair = 2 * predicted_process_bytes(plan_cases([sweep.BASELINE], [Problem(tokens=64)], "normal")[0])
    beside = pair + sweep.WORKER_BYTES + shared_bytes(Problem(tokens=64)) + file
    monkeypatch.setattr(sweep, "available_bytes", lambda _: (beside + 2.5 * need) / sweep.MEMORY_SHARE)
    run = Sweep(ScriptedWorkers(), Settings(1.0, 1), {"key": "k"}, Provenance("", "", True))  # type: ignore[arg-type]
    assert [len(pack) for pack in run._packs([Entry(case) for case in cases])] == [2, 2, 1]


def test_a_case_that_cannot_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "available_bytes", lambda _: 2**30)
    rows: list[Measurement] = []
    run = Sweep(ScriptedWorkers(), Settings(1.0, 1), {"key": "k"}, Provenance("", "", True))  # type: ignore[arg-type]
    run.measure(plan_cases(["full/matmul"], [Problem(tokens=16384)], "normal"), rows.append)
    (row,) = rows
    assert row.status == "out_of_memory"
    assert row.reason.startswith("not tried: predicted 1") and row.reason.endswith("but 0.8 GiB are to be had")
    assert row.predicted_bytes is not None and row.predicted_bytes > 2**34


def test_problems_and_inputs_are_not_mixed_in_a_session() -> None:
    problems = [Problem(tokens=8), Problem(tokens=16), Problem(tokens=8, causal=True)]
    cases = plan_cases(["full/matmul", "full/sdpa_math"], problems, "normal")
    cases += plan_cases(["full/matmul"], problems[:1], "smooth")
    assert [len(same) for same in sweep._by_problem(cases)] == [2, 2, 2, 1]
    assert [case.tokens for case in cases[:4]] == [8, 8, 16, 16]  # lengths outermost


def test_a_case_gives_its_problem_back() -> None:
    problem = Problem.of_length(77, mode="decode", heads=4, kv_heads=2, dtype="float16", causal=True)
    assert Case.of("full/matmul", {}, problem, "sink", 3).problem() == problem


# ---- impossible figures


def timed_row(seconds: float) -> Measurement:
    problem = Problem(tokens=1024, heads=1)
    return Measurement(
        key="k", run="r", machine="m", measured_at="", code="", commit="", dirty=True, definition="full", exact=True,
        case=Case.of("full/matmul", {}, problem, "normal"), status="ok",
        seconds=seconds, seconds_low=seconds, seconds_high=seconds, cpu_seconds=seconds, latency_seconds=seconds,
        ratio=0.1, ratio_low=0.1, ratio_high=0.1, cpu_ratio=0.1, twin_ratio=1.0, extra_bytes=1,
        useful_flops=10**9, traffic_bytes=10**6,
    )  # fmt: skip


def test_keys_that_no_query_sees_are_no_traffic() -> None:
    decode = Problem.of_length(1000, mode="decode", heads=4, kv_heads=2, head_dim=8)
    once = 4 * 8 * 4  # q of four heads in float32
    assert traffic_bytes(decode, 1000) == decode.input_output_bytes == 2 * once + 2 * 1000 * once // 2
    assert traffic_bytes(decode, 250) == 2 * once + 2 * 250 * once // 2
    forward = Problem(tokens=1000)
    assert traffic_bytes(forward, 16 * 1000) == forward.input_output_bytes
    assert traffic_bytes(Problem(tokens=0), 0) == 0


def test_a_figure_beyond_the_ceiling_is_refused() -> None:
    ceilings = {"matmul_flops": {"float32": 1e11}, "copy_bytes_per_second": 1e10}  # 10 ms of arithmetic
    possible, impossible = timed_row(0.012), timed_row(0.001)
    add_ceiling(possible, ceilings)
    assert (possible.status, possible.seconds, possible.ceiling_seconds) == ("ok", 0.012, 0.01)
    assert possible.ceiling_share == pytest.approx(10 / 12)
    add_ceiling(impossible, ceilings)
    assert impossible.status == "error"
    assert impossible.reason == "a fault of the measurement: 0.001 s, but the arithmetic takes 0.01 s"
    times = ("seconds", "seconds_low", "seconds_high", "cpu_seconds", "latency_seconds")
    ratios = ("ratio", "ratio_low", "ratio_high", "cpu_ratio", "twin_ratio")
    assert [getattr(impossible, name) for name in (*times, *ratios)] == [None] * 10


def test_a_copy_may_be_the_ceiling_but_caches_may_beat_it() -> None:
    ceilings = {"matmul_flops": {"float32": 1e13}, "copy_bytes_per_second": 1e6}
    row = timed_row(0.01)
    add_ceiling(row, ceilings)
    assert (row.status, row.ceiling_seconds) == ("ok", 1.0)


def test_errors_of_one_variant_may_follow_one_another() -> None:
    problems = tuple(Problem(tokens=tokens, heads=1) for tokens in (4, 8))
    request = Request(("full/sdpa_math", "full/matmul"), problems, ("smooth",), by_variant=True)
    _, untimed = request.cases()
    assert [(case.variant, case.tokens) for case in untimed] == [
        ("full/sdpa_math", 4),
        ("full/sdpa_math", 8),
        ("full/matmul", 4),
        ("full/matmul", 8),
    ]


class Starting:
    """Counts the workers that are started and ended."""

    def __init__(self) -> None:
        self.started = self.ended = 0
        self.resting: dict[str, list[Starting]] = {}
        self.begun: list[str] = []

    def start(self) -> "Starting":
        self.started += 1
        return self

    def begin(self, method: str, _: tuple[Any, ...]) -> None:
        self.begun.append(method)

    def ask(self, method: str, arguments: tuple[Any, ...], _: float) -> dict[str, Any]:
        if method == "rest":
            return {"status": "ok"}
        case: Case = arguments[0]
        if case.tokens == 13:
            return {"status": "error", "reason": "illegal memory access"}
        return {"status": "ok", "warm_seconds": 0.0}

    def kill(self) -> None:
        pass

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize(("device", "starts"), [("cpu", 6), ("cuda", 4)])
def test_on_a_card_one_worker_proves_a_variant_until_it_fails(
    device: str, starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sweep, "_refused", lambda *_: False)
    cases = [
        Case.of(name, {}, Problem(tokens=tokens, heads=1, device=device), "smooth")
        for name, lengths in (("full/matmul", (4, 8)), ("full/sdpa_math", (4, 13, 8)), ("full/matmul", (16,)))
        for tokens in lengths
    ]
    workers, rows = Starting(), []
    machine = {"key": "x", "ceilings": {}}
    told = Sweep(workers, Settings(seconds=1, threads=1), machine, Provenance("", "", False))  # type: ignore[arg-type]
    assert told.measure_errors(cases, rows.append) == []
    assert [row.status for row in rows] == ["ok", "ok", "ok", "error", "ok", "ok"]
    assert workers.started == workers.ended == starts
    assert workers.begun == ["wake"] * (starts if device == "cuda" else 0)


class Card(ScriptedWorkers):
    """A card whose memory is empty, with workers that note what they are asked."""

    def __init__(self, seconds: float = 0.001) -> None:
        super().__init__()
        self.seconds, self.started, self.asked = seconds, 0, list[str]()

    def start(self) -> ScriptedWorker:
        self.started += 1
        worker = scripted(self.seconds)
        ask = worker.ask

        def noting(method: str, *given: Any) -> dict[str, Any]:
            self.asked.append(method)
            after = {"rest": {}, "energy": {"spent_seconds": 0.0}, "card_figures": {"kernel": "flash_fwd"}}
            return {"status": "ok"} | after[method] if method in after else ask(method, *given)

        worker.ask = noting  # type: ignore[method-assign]
        worker.end = lambda: self.asked.append("end")  # type: ignore[method-assign]
        worker.begin = lambda method, _: self.asked.append(method)  # type: ignore[attr-defined]
        return worker


def swept_on(device: str, monkeypatch: pytest.MonkeyPatch, **how: Any) -> tuple[Card, list[Measurement]]:
    monkeypatch.setattr(Sweep, "_refused", lambda *_: False)
    monkeypatch.setattr(sweep, "available_bytes", lambda _: 2**40)
    problems = [Problem(tokens=tokens, heads=1, device=device) for tokens in (4, 8, 16)]
    card, rows = Card(), list[Measurement]()
    settings = Settings(**{"seconds": 0.1, "threads": 1} | how)
    told = Sweep(card, settings, {"key": "x", "ceilings": CEILINGS}, Provenance("", "", False))  # type: ignore[arg-type]
    told.measure(plan_cases(["full/matmul", "full/sdpa_math"], problems, "normal"), rows.append)
    return card, rows


def test_a_cards_workers_stay_for_the_next_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    card, rows = swept_on("cuda", monkeypatch)
    assert [row.status for row in rows] == ["ok"] * 6
    assert {row.kernel for row in rows} == {"flash_fwd"}
    assert card.started == 4  # baseline, twin and two variants, for three problems
    assert (card.asked.count("prepare"), card.asked.count("rest"), card.asked.count("end")) == (12, 12, 4)
    assert card.asked[:5] == ["wake"] * 4 + ["prepare"]  # all of them start at once
    cpu, rows = swept_on("cpu", monkeypatch)
    assert {row.kernel for row in rows} == {"scripted"}
    assert (cpu.started, cpu.asked.count("rest"), cpu.asked.count("end")) == (12, 0, 12)


def test_energy_is_taken_of_one_case_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    card, rows = swept_on("cuda", monkeypatch, energy=True, seconds=60.0)
    assert len(rows) == 6 and card.asked.count("energy") == 6
    assert card.asked.count("prepare") == 6 * 3  # each with a baseline and a twin


def test_a_stopped_sweep_refuses_nothing_either() -> None:
    rows: list[Measurement] = []
    run = Sweep(ScriptedWorkers(), Settings(60.0, 1), {"key": "k"}, Provenance("", "", True))  # type: ignore[arg-type]
    cases = plan_cases(["memory_efficient/xformers"], [Problem(tokens=64), Problem(tokens=128)], "normal")
    assert run.measure(cases, rows.append, stop=-math.inf) == cases and rows == []
    assert run.measure(cases, rows.append) == [] and [row.status for row in rows] == ["unsupported"] * 2


@pytest.mark.parametrize("answer", [{"status": "error", "reason": "no"}, Fault("timeout", "no answer")])
def test_a_worker_that_cannot_rest_is_ended_and_its_row_stays(
    answer: dict[str, Any] | Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(self: Starting, method: str, *_: Any) -> dict[str, Any]:
        if method == "rest" and isinstance(answer, Fault):
            raise answer
        return answer if method == "rest" else {"status": "ok", "warm_seconds": 0.0}  # type: ignore[return-value]

    monkeypatch.setattr(Sweep, "_refused", lambda *_: False)
    monkeypatch.setattr(Starting, "ask", ask)
    cases = [Case.of("full/matmul", {}, Problem(tokens=tokens, device="cuda"), "smooth") for tokens in (4, 8)]
    workers, rows = Starting(), list[Measurement]()
    told = Sweep(workers, Settings(1, 1), {"key": "x", "ceilings": {}}, Provenance("", "", False))  # type: ignore[arg-type]
    assert told.measure_errors(cases, rows.append) == []
    assert [row.status for row in rows] == ["ok", "ok"] and workers.started == workers.ended == 2


def test_a_cards_workers_wait_for_another_sweep_where_they_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    card, _ = swept_on("cuda", monkeypatch, keep_workers=True)
    assert card.asked.count("end") == 0
    assert {name: len(workers) for name, workers in card.resting.items()} == {
        "memory_efficient/sdpa_flash": 2,
        "full/matmul": 1,
        "full/sdpa_math": 1,
    }


@pytest.mark.parametrize("method", ["card_figures", "energy"])
@pytest.mark.parametrize("answer", [{"status": "error", "reason": "no profiler"}, Fault("timeout", "no profiler")])
def test_what_comes_after_the_samples_cannot_lose_them(
    method: str, answer: dict[str, Any] | Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Card.start

    def failing(self: Card) -> ScriptedWorker:
        worker = start(self)
        ask = worker.ask

        def refusing(asked: str, *given: Any) -> dict[str, Any]:
            if asked != method:
                return ask(asked, *given)
            if isinstance(answer, Fault):
                raise answer
            return answer

        worker.ask = refusing  # type: ignore[method-assign]
        return worker

    monkeypatch.setattr(Card, "start", failing)
    _, rows = swept_on("cuda", monkeypatch, energy=True, seconds=60.0)
    assert [(row.status, row.seconds, row.energy_joules) for row in rows] == [("ok", 0.001, None)] * 6
    told = {"energy": "not measured: no profiler"} if method == "energy" else {}
    assert all(row.device_state == told for row in rows)
    lost = method == "card_figures" or isinstance(answer, Fault)
    assert {row.kernel for row in rows} == {
        "flash_fwd" if not lost else "not seen: no profiler" if method == "card_figures" else "scripted"
    }


def test_samples_at_a_fraction_of_the_clock_count_only_where_there_are_no_others() -> None:
    entry = Entry(plan_cases(["full/matmul"], [Problem(tokens=4)], "normal")[0])
    for number, rejected in enumerate(("clock", "brake", "", "clock")):
        entry.add(number, Sample(number + 1.0, 1.0, 0, 0), {"number": float(number)}, rejected)
    entry.settle_for_slow()
    assert (entry.walls(), entry.states, entry.slowed) == ({2: 3.0}, [{"number": 2.0}], False)
    slow = Entry(entry.case)
    for number, rejected in enumerate(("clock", "brake", "clock")):
        slow.add(number, Sample(number + 1.0, 1.0, 0, 0), {"number": float(number)}, rejected)
    slow.settle_for_slow()
    assert (slow.walls(), slow.states) == ({0: 1.0, 2: 3.0}, [{"number": 0.0}, {"number": 2.0}])
    assert slow.slowed
    slow.fail("error", "gone")
    slow.settle_for_slow()
    assert not slow.samples


# ---- proofs side by side


class Prover(Starting):
    """Each worker notes when it is at work; one variant's gives no answer, and 13 tokens raise."""

    def __init__(self, meet: Barrier | None = None, silent: str = "", stop_at: str = "") -> None:
        super().__init__()
        self.meet, self.silent, self.stop_at, self.killed = meet, silent, stop_at, Event()

    def ask(self, method: str, arguments: tuple[Any, ...], _: float) -> dict[str, Any]:
        if method == "rest":
            return {"status": "ok"}
        case: Case = arguments[0]
        if self.meet is not None:
            self.meet.wait(30)
        if case.variant == self.silent:
            raise Fault("timeout", "no answer within 1 s")
        if self.stop_at:
            assert self.killed.wait(30)
            raise Fault("out_of_memory", "killed by SIGKILL")
        return {"status": "ok", "warm_seconds": 0.0, "call_seconds": 0.25}

    def kill(self) -> None:
        self.killed.set()


def proving(workers: Prover, lanes: int, monkeypatch: pytest.MonkeyPatch, device: str = "cuda") -> Sweep:
    monkeypatch.setattr(Sweep, "_refused", lambda *_: False)
    how = Settings(seconds=1, threads=1, proofs_at_once=lanes)
    return Sweep(workers, how, {"key": "x", "ceilings": {}}, Provenance("", "", False))  # type: ignore[arg-type]


def proofs(*lengths: int, device: str = "cuda") -> list[Case]:
    names = ("full/matmul", "full/sdpa_math", "memory_efficient/sdpa_flash")
    problems = [Problem(tokens=tokens, heads=1, device=device) for tokens in lengths]
    return [Case.of(name, {}, problem, "smooth") for name in names for problem in problems]


def test_on_a_card_variants_are_proven_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    workers, rows = Prover(Barrier(3)), list[Measurement]()  # each answer waits for two others
    sweep = proving(workers, 8, monkeypatch)
    assert sweep.measure_errors(proofs(4, 8), rows.append) == []
    assert sorted(row.case.tokens for row in rows) == [4, 4, 4, 8, 8, 8]
    assert len({row.run for row in rows}) == 1 and {row.status for row in rows} == {"ok"}
    assert workers.started == workers.ended == 3 and sweep.measured_seconds == 6 * 0.25
    on_cpu = Prover()
    assert proving(on_cpu, 8, monkeypatch).measure_errors(proofs(4, device="cpu"), rows.append) == []
    assert on_cpu.started == 3 and rows[-1].case.variant == "memory_efficient/sdpa_flash"  # one after the other


@pytest.mark.parametrize("lanes", [1, 2])
def test_of_a_variant_without_an_answer_no_more_is_tried(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Measurement] = []
    left = proving(Prover(silent="full/matmul"), lanes, monkeypatch).measure_errors(proofs(4, 8, 16), rows.append)
    assert [(case.variant, case.tokens) for case in left] == [("full/matmul", 8), ("full/matmul", 16)]
    assert len(rows) == 7 and [row.case.variant for row in rows if row.status == "timeout"] == ["full/matmul"]


def test_a_reference_that_takes_too_long_is_no_fault_of_the_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(_: NoReferences, case: Case) -> None:
        if case.tokens == 4:
            raise Fault("timeout", "its reference: no answer within 1 s")

    monkeypatch.setattr(NoReferences, "of", of)
    rows: list[Measurement] = []
    assert proving(Prover(), 2, monkeypatch).measure_errors(proofs(4, 8), rows.append) == []
    assert sorted((row.case.tokens, row.status) for row in rows) == [(4, "timeout")] * 3 + [(8, "ok")] * 3


def test_no_row_comes_of_what_ctrl_c_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Measurement] = []

    class Interrupting(Prover):
        def ask(self, method: str, arguments: tuple[Any, ...], seconds: float) -> dict[str, Any]:
            if method == "prepare" and arguments[0].variant == "full/matmul":
                os.kill(os.getpid(), signal.SIGINT)  # to the main thread, as Ctrl-C goes
                assert self.killed.wait(30)
                raise Fault("out_of_memory", "killed by SIGKILL")
            return super().ask(method, arguments, seconds)

    with pytest.raises(KeyboardInterrupt):
        proving(Interrupting(stop_at="all"), 2, monkeypatch).measure_errors(proofs(4, 8), rows.append)
    assert rows == []
