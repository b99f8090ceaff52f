"""A sweep: sessions of cases on one problem, prepared each in its own process and sampled round by round."""

import math
import random
import statistics
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from benchmarks.call_limit import CallLimit
from benchmarks.machine import available_bytes
from benchmarks.measurement import Case, Measurement
from benchmarks.process_memory import WORKER_BYTES, most_at_once, predicted_process_bytes
from benchmarks.provenance import Provenance
from benchmarks.reference_files import own_bytes, shared_bytes
from benchmarks.references import References
from benchmarks.session_times import ROUNDS, Entry, add_ceiling, add_times, settled
from benchmarks.side_by_side import lanes_of, side_by_side
from benchmarks.workers import Fault, Worker, Workers, end_all
from variants import Problem
from variants.catalogue import BASELINE, load

FEWEST_ROUNDS = 3
GRACE_SECONDS = 20.0
"""So long after the time to stop a session may still take the fewest rounds; then no answer is waited for."""
AWAKE = 8
"""So many workers of a card start ahead of the one that is prepared."""
MEMORY_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Settings:
    """How a sweep measures; `seconds` is shared out over its sessions, after `stop_after_seconds` none is begun.

    Each case is timed in as many processes, one after the other: what differs from one to the next, such as where
    its memory lies, then shows in the row, and `reports.comparison` reckons with it. What by its shorter lengths
    would take more than `longest_call_seconds` a call is not tried. On a card `proofs_at_once` variants are proven
    side by side, and with `keep_workers` its workers rest on for another sweep with the same `Workers`.
    """

    seconds: float
    threads: int
    timeout_seconds: float = 120.0
    seed: int = 0
    baseline_causal: bool | None = None
    stop_after_seconds: float = math.inf
    energy: bool = False
    processes: int = 1
    longest_call_seconds: float = math.inf
    proofs_at_once: int = 1
    keep_workers: bool = False


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
        self.resting = workers.resting
        self.limit = CallLimit(settings.longest_call_seconds)
        self.abandoned = False
        self.cut = math.inf

    def measure(
        self, cases: Sequence[Case], report: Report, seconds: float | None = None, stop: float = math.inf
    ) -> list[Case]:
        """Every case becomes one row given to `report`, failures included, in about `seconds`.

        From `stop` on (by the monotonic clock) no case is begun; returns those.
        """
        problems = _by_problem(cases)
        self._cut_at(stop)
        deadline = time.monotonic() + (self.settings.seconds if seconds is None else seconds)
        left: list[Case] = []
        try:
            for index, same in enumerate(problems):
                share = max(0.0, deadline - time.monotonic()) / (len(problems) - index)
                left += same if time.monotonic() >= stop else self._measure_problem(same, share, report, stop)
        finally:
            self._close()
        return left

    def _cut_at(self, stop: float) -> None:
        self.cut = self.references.until = stop + GRACE_SECONDS

    def _close(self) -> None:
        self.references.close()
        if not self.settings.keep_workers:
            self._dismiss()

    def measure_errors(
        self, cases: Sequence[Case], report: Report, seconds: float = math.inf, stop: float = math.inf
    ) -> list[Case]:
        """Rows with both errors and no time, one case after the other; returns those for which no time was left.

        On a card, variants go side by side where the settings say so: nothing is timed.
        """
        deadline = min(time.monotonic() + seconds, stop)
        self._cut_at(stop)
        lanes = lanes_of(cases, self.settings.proofs_at_once)
        if len(lanes) < 2:
            return self._errors_in_turn(cases, deadline, report)
        self._dismiss()
        sweeps, spent = [self._beside(stop) for _ in lanes], self.measured_seconds

        def told(row: Measurement) -> None:
            self.measured_seconds = spent + sum(sweep.measured_seconds for sweep in sweeps)
            report(row)

        def abandon() -> None:
            for sweep in sweeps:
                sweep.abandoned = True
            self.workers.kill()

        works = [partial(sweep._errors_in_turn, lane, deadline) for sweep, lane in zip(sweeps, lanes, strict=True)]
        return side_by_side(works, told, abandon)

    def _beside(self, stop: float) -> "Sweep":
        """A sweep that proves other cases at the same time: of the same run, with workers of its own."""
        other = Sweep(self.workers, replace(self.settings, keep_workers=False), self.machine, self.provenance)
        other.run, other.limit, other.resting = self.run, self.limit, {}
        other._cut_at(stop)
        return other

    def _errors_in_turn(self, cases: Sequence[Case], deadline: float, report: Report) -> list[Case]:
        """Of a variant that gave no answer on a card no more is tried: each silence costs as much as many answers."""
        left, silent = list[Case](), set[str]()
        try:
            for case in cases:
                if time.monotonic() > deadline or case.variant in silent:
                    left.append(case)
                    continue
                entry = Entry(case)
                self._dismiss({case.variant})
                if not self._refused(entry):
                    self._prepare(entry, timed=False)
                    self._let_rest([entry])
                if self.abandoned:
                    break
                if entry.silent and case.device != "cpu":
                    silent.add(case.variant)
                if entry.cut:
                    left.append(case)
                else:
                    report(self._row(entry))
        finally:
            self._close()
        return left

    def _measure_problem(self, cases: Sequence[Case], seconds: float, report: Report, stop: float) -> list[Case]:
        """The cases of one problem and input: what cannot run at all is reported, the rest goes by packs."""
        deadline = time.monotonic() + seconds
        packs = list(self._packs(self._reporting_refused(cases, report)))
        left: list[Case] = []
        for index, pack in enumerate(packs):
            share = max(0.0, deadline - time.monotonic()) / (len(packs) - index)
            left += self._measure_session(pack, share, report, stop)
        return left

    def _reporting_refused(self, cases: Sequence[Case], report: Report) -> list[Entry]:
        """The entries of those that can run."""
        ready = []
        for case in cases:
            entry = Entry(case)
            if self._refused(entry):
                report(self._row(entry))
            else:
                ready.append(entry)
        return ready

    def _packs(self, entries: list[Entry]) -> Iterator[list[Entry]]:
        """Those that fit the memory together."""
        if not entries:
            return
        limit = self._memory_limit(entries[0].case)
        pack: list[Entry] = []
        reference = Case.of(BASELINE, {}, entries[0].case.problem(), entries[0].case.inputs)
        pair = 2 * predicted_process_bytes(reference)  # the baseline and its twin live beside every pack
        # While the pack is prepared, so does the worker that makes references, whose files may lie in memory.
        beside = pair + WORKER_BYTES + shared_bytes(entries[0].case.problem()) + own_bytes(reference.problem())
        used = beside
        most = most_at_once(entries[0].case.device)
        for entry in entries:
            need = predicted_process_bytes(entry.case) + own_bytes(entry.case.problem())
            # Energy takes so long that a session of several would outlast the time.
            if pack and (used + need > limit or len(pack) >= most or self.settings.energy):
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
        if self._exceeds_limit(entry):
            return True
        need, limit = predicted_process_bytes(entry.case), self._memory_limit(entry.case)
        if need > limit:
            self.references.clear()
            self._dismiss()
            limit = self._memory_limit(entry.case)
        if need > limit:
            gib = 2**30
            entry.fail(
                "out_of_memory", f"not tried: predicted {need / gib:.1f} GiB, but {limit / gib:.1f} GiB are to be had"
            )
            return True
        return False

    def _exceeds_limit(self, entry: Entry) -> bool:
        if (exceeded := self.limit.exceeded(entry.case)) is None:
            return False
        seconds, reason = exceeded
        entry.fail("timeout", reason)
        entry.figures["foretold_seconds"] = seconds
        return True

    def _prepare(self, entry: Entry, *, timed: bool) -> None:
        try:
            files = self.references.of(entry.case)
        except Fault as fault:
            entry.fail(fault.status, fault.reason)
            entry.cut = time.monotonic() >= self.cut
            return
        entry.worker = entry.worker or self._worker_for(entry.case)
        arguments = (entry.case, self.settings.threads, timed, files)
        answer = self._ask(entry, "prepare", arguments)
        if answer is not None:
            self.measured_seconds += answer.pop("call_seconds", 0.0)
            entry.figures = answer

    def _ask(self, entry: Entry, method: str, arguments: Sequence[Any]) -> dict[str, Any] | None:
        """The answer, or None where the entry has failed, with status and reason kept in it."""
        assert entry.worker is not None
        try:
            answer = entry.worker.ask(method, arguments, self._patience())
        except Fault as fault:
            entry.worker = None
            entry.fail(fault.status, fault.reason)
            entry.silent = fault.status == "timeout"
            entry.cut = entry.silent and time.monotonic() >= self.cut
            return None
        if answer["status"] != "ok":
            entry.fail(answer["status"], answer["reason"])
            return None
        return answer

    def _patience(self) -> float:
        return max(0.0, min(self.settings.timeout_seconds, self.cut - time.monotonic()))

    def _measure_session(self, entries: list[Entry], seconds: float, report: Report, stop: float) -> list[Case]:
        begin = time.monotonic()
        if begin >= stop:
            return [entry.case for entry in entries]
        problem = entries[0].case.problem()
        if self.settings.baseline_causal is not None:
            problem = problem.with_(causal=self.settings.baseline_causal)
        reference = Case.of(BASELINE, {}, problem, entries[0].case.inputs, entries[0].case.seed)
        baseline, twin = Entry(reference), Entry(reference)
        self._dismiss({entry.case.variant for entry in (baseline, *entries)})
        try:
            begun = self._begin((baseline, twin, *entries), stop)
            self._sample_rounds(baseline, twin, begun[2:], begin + seconds, stop)
            for entry in begun:
                entry.settle_for_slow()
                if entry.samples:
                    self.limit.learn(entry.case, statistics.median(entry.walls().values()))
            for entry in begun[2:]:
                if entry.cut:
                    continue
                self._finish(entry, stop)
                report(self._row(entry, baseline, twin))
            self._let_rest(begun)
        finally:
            _end_workers((baseline, twin, *entries))
        return [entry.case for entry in begun[2:] if entry.cut] + [
            entry.case for entry in entries[max(0, len(begun) - 2) :]
        ]

    def _begin(self, entries: Sequence[Entry], stop: float) -> list[Entry]:
        """Prepare one after the other; returns those that were begun in time."""
        begun: list[Entry] = []
        for index, entry in enumerate(entries):
            if time.monotonic() >= stop:
                break
            if entry.case.device != "cpu":  # where a process takes seconds to start: so several start together
                for one in entries[index : index + AWAKE]:
                    one.worker = one.worker or self._worker_for(one.case)
            begun.append(entry)
            if not self._refused(entry):
                self._prepare(entry, timed=True)
        return begun

    def _worker_for(self, case: Case) -> Worker:
        if resting := self.resting.get(case.variant):
            return resting.pop()
        worker = self.workers.start()
        if case.device != "cpu":
            worker.begin("wake", (case.device,))
        return worker

    def _let_rest(self, entries: Sequence[Entry]) -> None:
        """End the entries' workers, but keep a card's, whose start takes seconds, for the variants' next problem."""
        for entry in entries:
            if entry.worker is None:
                continue
            if entry.case.device != "cpu" and self._rests(entry.worker):
                self.resting.setdefault(entry.case.variant, []).append(entry.worker)
            else:
                entry.worker.end()
            entry.worker = None

    def _rests(self, worker: Worker) -> bool:
        """Whether it let go of its case; that it could not is no fault of what was measured."""
        try:
            answer = worker.ask("rest", (), self._patience())
        except Fault:
            return False
        return bool(answer["status"] == "ok")

    def _dismiss(self, but: Collection[str] = ()) -> None:
        """End the resting workers of all variants but those."""
        names = [name for name in self.resting if name not in but]
        end_all(worker for name in names for worker in self.resting.pop(name))

    def lost(self, case: Case, status: str, reason: str) -> Measurement:
        """The row of a case of which nothing came back."""
        return self._row(Entry(case, status=status, reason=reason))

    def too_long(self, case: Case) -> Measurement | None:
        """The row of a case that is not tried because its call would take too long; None where it may be."""
        entry = Entry(case)
        return self._row(entry) if self._exceeds_limit(entry) else None

    def _sample_rounds(
        self, baseline: Entry, twin: Entry, entries: list[Entry], deadline: float, stop: float = math.inf
    ) -> None:
        """Rounds in random order until every ratio is settled or the time is up, shared out over the processes.

        Some time after `stop` one round must do, for a row that is marked noisy: who set it may soon end everything.
        """
        if baseline.case.device == "cpu":  # an idle process disturbs no card, and takes seconds to start there
            self.references.pause()
        begin, count, number = time.monotonic(), self.settings.processes, 0
        deadline = min(deadline, stop)
        for process in range(count):
            if process and time.monotonic() > stop + GRACE_SECONDS:
                break
            if process:
                self._renew([baseline, twin, *entries])
            for entry in (baseline, twin, *entries):
                entry.first_rounds.append(number)
            until = begin + (deadline - begin) * (process + 1) / count
            number = self._rounds_of_process(baseline, twin, entries, number, until, stop)

    def _rounds_of_process(
        self, baseline: Entry, twin: Entry, entries: list[Entry], number: int, deadline: float, stop: float
    ) -> int:
        """The number of the round after the last one."""
        fewest, enough = (number + math.ceil(rounds / self.settings.processes) for rounds in (FEWEST_ROUNDS, ROUNDS))
        while any(entry.worker is not None for entry in entries):
            order = [entry for entry in (baseline, twin, *entries) if entry.worker is not None]
            self.random.shuffle(order)
            for entry in order:
                self._sample(entry, number)
            number += 1
            now = time.monotonic()
            if (number >= fewest and now > deadline) or now > stop + GRACE_SECONDS:
                break
            if number >= enough and all(settled(entry, baseline, twin) for entry in entries if entry.worker):
                break
        return number

    def _renew(self, entries: list[Entry]) -> None:
        """A fresh process for each case that still has one; its correctness was proved by the first."""
        for entry in entries:
            if entry.worker is None:
                continue
            entry.worker.end()
            entry.worker = self.workers.start()
            arguments = (entry.case, self.settings.threads, entry.figures["calls_per_sample"])
            answer = self._ask(entry, "renew", arguments)
            if answer is not None:
                self.measured_seconds += answer["call_seconds"]

    def _sample(self, entry: Entry, number: int) -> None:
        answer = self._ask(entry, "sample", ())
        if answer is None:
            return
        entry.add(number, answer["sample"], answer["state"], answer["rejected"])
        self.measured_seconds += answer["call_seconds"]

    def _finish(self, entry: Entry, stop: float) -> None:
        """What comes after the rounds, since it would tell on them: the profiler of a card, and seconds of calls."""
        if entry.worker is None:
            return
        if not entry.samples:
            entry.fail("error", "every sample was taken under a thermal or power brake")
            return
        if self.settings.energy and time.monotonic() < stop:
            answer = self._ask_besides(entry, "energy", lambda reason: {"lacking": f"not measured: {reason}"})
            self.measured_seconds += answer.pop("spent_seconds", 0.0)
            if lacking := answer.pop("lacking", ""):
                entry.states.append({"energy": lacking})
            entry.figures |= answer
        if entry.case.device != "cpu" and entry.worker is not None and time.monotonic() < stop + GRACE_SECONDS:
            entry.figures |= self._ask_besides(entry, "card_figures", lambda reason: {"kernel": f"not seen: {reason}"})

    def _ask_besides(self, entry: Entry, method: str, without: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        """The answer of what is no reason to lose a row that is measured, or what stands for it, by the reason."""
        assert entry.worker is not None
        try:
            answer = entry.worker.ask(method, (), self._patience())
        except Fault as fault:
            entry.worker = None
            return without(fault.reason)
        return answer if answer["status"] == "ok" else without(answer["reason"])

    def _row(self, entry: Entry, baseline: Entry | None = None, twin: Entry | None = None) -> Measurement:
        case, problem = entry.case, entry.case.problem()
        variant = load(case.variant)
        chosen = variant.definition.resolve(case.parameters)
        pairs = variant.definition.visible_pairs(problem, **chosen)
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
            attention=getattr(variant.definition, "attention", True),  # under asv, a commit's may not say
            case=case,
            status=entry.status,
            reason=entry.reason,
            threads=self.settings.threads,
            input_output_bytes=problem.input_output_bytes,
            predicted_bytes=variant.predicted_bytes(problem, chosen),
            useful_flops=variant.definition.useful_flops(problem, chosen),
            executed_flops=variant.flops(problem, chosen),
            traffic_bytes=traffic_bytes(problem, pairs),
            visible_pairs=pairs,
        )
        for name, value in entry.figures.items():
            if name not in ("status", "warm_seconds"):
                setattr(row, name, value)
        if entry.samples:
            add_times(row, entry, baseline, twin)
            add_ceiling(row, self.machine["ceilings"])
        return row


def traffic_bytes(problem: Problem, pairs: int) -> int:
    """What must be moved: q, the output, and the keys and values that `pairs` visible pairs of a head can touch."""
    unseen = max(0, problem.kv_tokens - pairs)
    return problem.input_output_bytes - 2 * problem.key_bytes * unseen // max(1, problem.kv_tokens)


def _by_problem(cases: Sequence[Case]) -> list[list[Case]]:
    """In the order in which the problems come first; inputs of another kind or seed are a problem of their own."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(f"{case.problem()} {case.inputs} {case.seed}", []).append(case)
    return list(groups.values())


def _end_workers(entries: Sequence[Entry]) -> None:
    end_all(entry.worker for entry in entries if entry.worker is not None)
    for entry in entries:
        entry.worker = None


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
