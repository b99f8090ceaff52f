"""A sweep: sessions of cases on one problem, prepared each in its own process and sampled round by round."""

import math
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from benchmarks.intervals import median_interval, paired_ratio
from benchmarks.machine import available_bytes
from benchmarks.measurement import Case, Measurement
from benchmarks.nvml import joined
from benchmarks.provenance import Provenance
from benchmarks.reference_files import own_bytes, shared_bytes
from benchmarks.references import References
from benchmarks.workers import Fault, Worker, Workers
from variants.catalogue import BASELINE, load

ROUNDS = 20
FEWEST_ROUNDS = 3
INTERVAL_WIDTH = 0.02
TWIN_WITHIN = 0.01
MEMORY_SHARE = 0.8
WORKER_BYTES = 300 * 2**20
CPU_RATIO = ("cpu_ratio", "cpu_ratio_low", "cpu_ratio_high", "twin_cpu_ratio")


@dataclass(frozen=True, slots=True)
class Settings:
    """How a sweep measures; `seconds` is shared out over its sessions, after `stop_after_seconds` none is begun."""

    seconds: float
    threads: int
    timeout_seconds: float = 120.0
    seed: int = 0
    baseline_causal: bool | None = None
    stop_after_seconds: float = math.inf
    energy: bool = False


@dataclass(slots=True)
class Entry:
    """One case in a session: its worker while it lives, its figures, its samples by round."""

    case: Case
    worker: Worker | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    status: str = "ok"
    reason: str = ""
    samples: dict[int, Any] = field(default_factory=dict)
    states: list[dict[str, float | str]] = field(default_factory=list)

    def fail(self, status: str, reason: str) -> None:
        """No figure survives a failure; the worker does not either."""
        self.status, self.reason, self.figures = status, reason, {}
        self.samples.clear()
        if self.worker is not None:
            self.worker.end()
            self.worker = None

    def walls(self) -> dict[int, float]:
        """Wall seconds by round."""
        return {number: sample.wall_seconds for number, sample in self.samples.items()}


Report = Callable[[Measurement], None]


class Sweep:
    """Measures cases on one machine, session by session, and hands over every row as soon as it is known."""

    def __init__(self, workers: Workers, settings: Settings, machine: dict[str, Any], provenance: Provenance) -> None:
        """`machine` is the description with its key and ceilings."""
        self.workers, self.settings, self.machine, self.provenance = workers, settings, machine, provenance
        self.run = uuid.uuid4().hex[:12]
        self.random = random.Random(settings.seed)
        self.measured_seconds = 0.0
        self.references = References(workers, settings.threads, settings.timeout_seconds)

    def measure(
        self, cases: Sequence[Case], report: Report, seconds: float | None = None, stop: float = math.inf
    ) -> list[Case]:
        """Every case becomes one row given to `report`, failures included, in about `seconds`.

        From `stop` on (by the monotonic clock) no case is begun; returns those.
        """
        sessions = list(self._sessions(cases, report))
        deadline = time.monotonic() + (self.settings.seconds if seconds is None else seconds)
        left: list[Case] = []
        try:
            for index, session in enumerate(sessions):
                share = max(0.0, deadline - time.monotonic()) / (len(sessions) - index)
                left += self._measure_session(session, share, report, stop)
        finally:
            self.references.close()
        return left

    def measure_errors(
        self, cases: Sequence[Case], report: Report, seconds: float = math.inf, stop: float = math.inf
    ) -> list[Case]:
        """Rows with both errors and no time, one case after the other; returns those for which no time was left."""
        deadline = min(time.monotonic() + seconds, stop)
        kept: Entry | None = None
        try:
            for number, case in enumerate(cases):
                if time.monotonic() > deadline:
                    return list(cases[number:])
                entry = Entry(case)
                if not self._refused(entry):
                    self._prepare(entry, timed=False, worker=_taken_over(kept, case))
                    kept = self._kept(entry)
                report(self._row(entry))
        finally:
            self.references.close()
            if kept is not None and kept.worker is not None:
                kept.worker.end()
        return []

    def _kept(self, entry: Entry) -> Entry | None:
        """The entry with its worker, where the next case may use it: on a card, whose start takes seconds."""
        if entry.worker is None or entry.case.device != "cpu":
            return entry
        entry.worker.end()
        return None

    def _sessions(self, cases: Sequence[Case], report: Report) -> Iterator[list[Entry]]:
        """Cases of one problem and input that fit the memory together; what cannot run at all is reported."""
        groups: dict[str, list[Entry]] = {}
        for case in cases:
            entry = Entry(case)
            if self._refused(entry):
                report(self._row(entry))
            else:
                problem = case.problem()
                groups.setdefault(f"{problem} {case.inputs} {case.seed}", []).append(entry)
        for entries in groups.values():
            yield from self._packs(entries)

    def _packs(self, entries: list[Entry]) -> Iterator[list[Entry]]:
        limit = self._memory_limit(entries[0].case)
        pack: list[Entry] = []
        reference = Case.of(BASELINE, {}, entries[0].case.problem(), entries[0].case.inputs)
        pair = 2 * predicted_process_bytes(reference)  # the baseline and its twin live beside every pack
        # While the pack is prepared, so does the worker that makes references, whose files may lie in memory.
        beside = pair + WORKER_BYTES + shared_bytes(entries[0].case.problem()) + own_bytes(reference.problem())
        used = beside
        for entry in entries:
            need = predicted_process_bytes(entry.case) + own_bytes(entry.case.problem())
            if pack and used + need > limit:
                yield pack
                pack, used = [], beside
            pack.append(entry)
            used += need
        yield pack

    def _memory_limit(self, case: Case) -> float:
        return MEMORY_SHARE * available_bytes(case.device)

    def _refused(self, entry: Entry) -> bool:
        """Whether the case cannot run here, by its refusals or its predicted memory."""
        problem = entry.case.problem()
        if reasons := load(entry.case.variant).refusals(problem):
            entry.fail("unsupported", "; ".join(reasons))
            return True
        need, limit = predicted_process_bytes(entry.case), self._memory_limit(entry.case)
        if need > limit:
            self.references.clear()
            limit = self._memory_limit(entry.case)
        if need > limit:
            gib = 2**30
            entry.fail(
                "out_of_memory", f"not tried: predicted {need / gib:.1f} GiB, but {limit / gib:.1f} GiB are to be had"
            )
            return True
        return False

    def _prepare(self, entry: Entry, *, timed: bool, worker: Worker | None = None) -> None:
        entry.worker = worker
        try:
            files = self.references.of(entry.case)
        except Fault as fault:
            entry.fail(fault.status, fault.reason)
            return
        entry.worker = worker or self.workers.start()
        arguments = (entry.case, self.settings.threads, timed, files)
        answer = self._ask(entry, "prepare", arguments)
        if answer is not None:
            self.measured_seconds += answer.pop("call_seconds", 0.0)
            entry.figures = answer

    def _ask(self, entry: Entry, method: str, arguments: Sequence[Any]) -> dict[str, Any] | None:
        """The answer, or None where the entry has failed, with status and reason kept in it."""
        assert entry.worker is not None
        try:
            answer = entry.worker.ask(method, arguments, self.settings.timeout_seconds)
        except Fault as fault:
            entry.worker = None
            entry.fail(fault.status, fault.reason)
            return None
        if answer["status"] != "ok":
            entry.fail(answer["status"], answer["reason"])
            return None
        return answer

    def _measure_session(self, entries: list[Entry], seconds: float, report: Report, stop: float) -> list[Case]:
        begin = time.monotonic()
        if begin >= stop:
            return [entry.case for entry in entries]
        problem = entries[0].case.problem()
        if self.settings.baseline_causal is not None:
            problem = problem.with_(causal=self.settings.baseline_causal)
        reference = Case.of(BASELINE, {}, problem, entries[0].case.inputs, entries[0].case.seed)
        baseline, twin = Entry(reference), Entry(reference)
        begun: list[Entry] = []
        try:
            for entry in (baseline, twin, *entries):
                if time.monotonic() >= stop:
                    break
                begun.append(entry)
                if not self._refused(entry):
                    self._prepare(entry, timed=True)
            self._sample_rounds(baseline, twin, begun[2:], min(begin + seconds, stop))
            for entry in begun[2:]:
                self._finish(entry, stop)
                report(self._row(entry, baseline, twin))
        finally:
            for entry in begun:
                if entry.worker is not None:
                    entry.worker.end()
        return [entry.case for entry in entries[max(0, len(begun) - 2) :]]

    def lost(self, case: Case, status: str, reason: str) -> Measurement:
        """The row of a case of which nothing came back."""
        return self._row(Entry(case, status=status, reason=reason))

    def _sample_rounds(self, baseline: Entry, twin: Entry, entries: list[Entry], deadline: float) -> None:
        """Rounds in random order until every ratio is settled or the time is up."""
        self.references.pause()
        number = 0
        while any(entry.worker is not None for entry in entries):
            order = [entry for entry in (baseline, twin, *entries) if entry.worker is not None]
            self.random.shuffle(order)
            for entry in order:
                self._sample(entry, number)
            number += 1
            if number >= FEWEST_ROUNDS and time.monotonic() > deadline:
                return
            if number >= ROUNDS and all(settled(entry, baseline, twin) for entry in entries if entry.worker):
                return

    def _sample(self, entry: Entry, number: int) -> None:
        answer = self._ask(entry, "sample", ())
        if answer is None:
            return
        if not answer["rejected"]:
            entry.samples[number] = answer["sample"]
            entry.states.append(answer["state"])
        self.measured_seconds += answer["call_seconds"]

    def _finish(self, entry: Entry, stop: float) -> None:
        """What comes after the rounds: energy, since seconds of calls without a pause heat what the others run on."""
        if entry.worker is None:
            return
        if not entry.samples:
            entry.fail("error", "every sample was taken under a thermal or power brake")
            return
        if not self.settings.energy or time.monotonic() >= stop:
            return
        answer = self._ask(entry, "energy", ())
        if answer is not None:
            self.measured_seconds += answer.pop("spent_seconds")
            entry.figures |= answer

    def _row(self, entry: Entry, baseline: Entry | None = None, twin: Entry | None = None) -> Measurement:
        case, problem = entry.case, entry.case.problem()
        variant = load(case.variant)
        chosen = variant.definition.resolve(case.parameters)
        row = Measurement(
            key=case.key(self.machine["key"]),
            run=self.run,
            machine=self.machine["key"],
            measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
            code=self.provenance.code,
            commit=self.provenance.commit,
            dirty=self.provenance.dirty,
            definition=variant.definition.name,
            exact=variant.definition.exact,
            case=case,
            status=entry.status,
            reason=entry.reason,
            threads=self.settings.threads,
            input_output_bytes=problem.input_output_bytes,
            predicted_bytes=variant.predicted_bytes(problem, chosen),
            useful_flops=variant.definition.useful_flops(problem, chosen),
            executed_flops=variant.flops(problem, chosen),
            traffic_bytes=problem.input_output_bytes,
            visible_pairs=variant.definition.visible_pairs(problem, **chosen),
        )
        for name, value in entry.figures.items():
            if name not in ("status", "warm_seconds"):
                setattr(row, name, value)
        if entry.samples:
            add_times(row, entry, baseline, twin)
            add_ceiling(row, self.machine["ceilings"])
        return row


def _taken_over(kept: Entry | None, case: Case) -> Worker | None:
    """The worker of the case before, for another case of the same variant; else it is ended."""
    if kept is None or kept.worker is None:
        return None
    if kept.case.variant == case.variant:
        return kept.worker
    kept.worker.end()
    return None


def predicted_process_bytes(case: Case) -> int:
    """What the worker of a case will need: the process, the case, and the float64 oracle's pieces."""
    from benchmarks.accuracy import PIECE_ROWS

    problem = case.problem()
    score_bytes = 8 * problem.batch * problem.heads * min(PIECE_ROWS, max(1, problem.tokens)) * problem.kv_tokens
    inputs = 8 * (problem.query_bytes + 2 * problem.key_bytes * problem.group) // problem.element_bytes
    check_bytes = 4 * score_bytes + 2 * inputs * (2 if problem.mode == "training" else 1)
    own = load(case.variant).predicted_bytes(problem, case.parameters)
    if problem.device_type == "cuda":
        return own + check_bytes + 2 * WORKER_BYTES
    return max(own, problem.input_output_bytes + check_bytes) + WORKER_BYTES


def settled(entry: Entry, baseline: Entry, twin: Entry) -> bool:
    """Whether the interval of the paired ratio is narrow and the A/A twin agrees."""
    if not entry.samples:
        return False
    if not comparable(entry, baseline, twin):
        middle, low, high = median_interval(list(entry.walls().values()))
        return (high - low) / middle < INTERVAL_WIDTH
    ratio, low, high = paired(entry, baseline)
    twin_ratio, _, _ = paired(twin, baseline)
    return (high - low) / ratio < INTERVAL_WIDTH and abs(twin_ratio - 1) <= TWIN_WITHIN


def comparable(entry: Entry, baseline: Entry, twin: Entry) -> bool:
    """Whether both share a round with the baseline: a brake may have cost either any of its samples."""
    return all(one.samples.keys() & baseline.samples.keys() for one in (entry, twin))


def paired(entry: Entry, baseline: Entry) -> tuple[float, float, float]:
    """The ratio of wall times over the rounds that both have."""
    return _paired(entry.walls(), baseline.walls())


def _paired(own: dict[int, float], other: dict[int, float]) -> tuple[float, float, float]:
    common = sorted(own.keys() & other.keys())
    return paired_ratio([own[number] for number in common], [other[number] for number in common])


def add_times(row: Measurement, entry: Entry, baseline: Entry | None, twin: Entry | None) -> None:
    """Medians, intervals, paired ratios and the samples themselves."""
    samples = [entry.samples[number] for number in sorted(entry.samples)]
    row.wall_samples = [sample.wall_seconds for sample in samples]
    row.cpu_samples = [sample.cpu_seconds for sample in samples]
    row.involuntary_switches = [sample.involuntary_switches for sample in samples]
    row.minor_faults = [sample.minor_faults for sample in samples]
    row.seconds, row.seconds_low, row.seconds_high = median_interval(row.wall_samples)
    row.cpu_seconds = median_interval(row.cpu_samples)[0]
    latencies = [sample.latency_seconds for sample in samples if sample.latency_seconds is not None]
    row.latency_seconds = median_interval(latencies)[0] if latencies else None
    row.device_state = joined(entry.states)
    busy = [sample.cpu_seconds / (sample.wall_seconds * (row.threads or 1)) for sample in samples]
    row.clean_share = sum(share >= 0.95 for share in busy) / len(busy)
    row.noisy = True
    if baseline is not None and twin is not None and comparable(entry, baseline, twin):
        row.baseline, row.baseline_causal = baseline.case.variant, baseline.case.causal
        row.ratio, row.ratio_low, row.ratio_high = paired(entry, baseline)
        own, other, again = ({n: s.cpu_seconds for n, s in e.samples.items()} for e in (entry, baseline, twin))
        row.cpu_ratio, row.cpu_ratio_low, row.cpu_ratio_high = _paired(own, other)
        row.twin_ratio, row.twin_cpu_ratio = paired(twin, baseline)[0], _paired(again, other)[0]
        row.noisy = len(samples) < ROUNDS or not settled(entry, baseline, twin)


def add_ceiling(row: Measurement, ceilings: dict[str, Any]) -> None:
    """The least time that the machine's measured ceilings allow, and the refusal of what is faster.

    Short problems live in the cache, so only arithmetic can refuse a figure.
    """
    assert row.useful_flops is not None and row.traffic_bytes is not None and row.seconds is not None
    arithmetic = row.useful_flops / ceilings["matmul_flops"][row.case.dtype]
    row.ceiling_seconds = max(arithmetic, row.traffic_bytes / ceilings["copy_bytes_per_second"])
    row.ceiling_share = row.ceiling_seconds / row.seconds
    if row.seconds < arithmetic / 1.5:
        row.status = "error"
        row.reason = f"a fault of the measurement: {row.seconds:.3g} s, but the arithmetic takes {arithmetic:.3g} s"
        times = ("seconds", "seconds_low", "seconds_high", "cpu_seconds", "latency_seconds")
        for name in (*times, "ratio", "ratio_low", "ratio_high", *CPU_RATIO, "twin_ratio"):
            setattr(row, name, None)


def plan_cases(
    names: Iterable[str], problems: Iterable[Any], inputs: str, parameters: dict[str, dict[str, int]] | None = None
) -> list[Case]:
    """The cross product, lengths outermost, so that a sweep that is cut short has whole lengths."""
    chosen = parameters or {}
    return [
        Case.of(name, load(name).definition.resolve(chosen.get(name)), problem, inputs)
        for problem in problems
        for name in names
    ]
