"""A sweep on a cluster: cut into packs, given out to its machines, and gathered into one store."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any, Final

from benchmarks.call_limit import CallLimit
from benchmarks.campaign import InvalidRequest, Outcome, Progress, Request, merged_rows, uninterrupted
from benchmarks.executor import Executor, ExecutorError, Job, Lost, executor_of, options_of
from benchmarks.executor_task import Measured, Planned, Where, machine_name, measure_there, plan_there
from benchmarks.measurement import Case, Measurement
from benchmarks.provenance import Provenance
from benchmarks.store import Store
from benchmarks.sweep import Settings, Sweep
from benchmarks.workers import Workers

MOST_TIMED: Final = 16
MOST_UNTIMED: Final = 64
PACKS_PER_SLOT: Final = 3
"""So many at least, where the cases are enough, so that no machine waits long for the last one."""

START_SECONDS: Final = 300.0
"""For importing torch from a slow disk, and for the ceilings."""

TRIES: Final = 2


def run_on_executor(
    request: Request,
    out: Path,
    settings: Settings,
    progress: Progress,
    device: str,
    name: str,
    options: Sequence[str],
) -> Outcome:
    """`run_on_cluster` with the executor that a name and its options stand for."""
    request.check_names()  # before a cluster is started
    executor = executor_of(name, options_of(options), device, request.folder(out))
    return run_on_cluster(request, out, settings, progress, executor, Where(device))


@dataclass(slots=True)
class Pack:
    """Cases that one machine measures in one go."""

    timed: tuple[Case, ...] = ()
    untimed: tuple[Case, ...] = ()
    tries: int = 0

    @property
    def cases(self) -> tuple[Case, ...]:
        """All of them."""
        return (*self.untimed, *self.timed)

    def alone(self) -> list["Pack"]:
        """A pack for each case, to be tried once: one of them may be what ends the machine's process."""
        timed = [Pack(timed=(case,), tries=TRIES - 1) for case in self.timed]
        return [*(Pack(untimed=(case,), tries=TRIES - 1) for case in self.untimed), *timed]


def run_on_cluster(
    request: Request, out: Path, settings: Settings, progress: Progress, executor: Executor, where: Where
) -> Outcome:
    """Measure on a cluster what the folder does not hold yet; a pack's rows are on the disk when it comes back.

    What this code has measured on any machine counts as done. Threads 0 are all that a job may use there.
    Raises `StoreError`, `InvalidRequest` and `ExecutorError`; ends the executor in every case.
    """
    begin = monotonic()
    try:
        with Store(request.folder(out)) as store:
            outcome = Outcome(worked_seconds=0.0)
            try:
                _Gathering(executor, store, settings, progress, outcome, where).run(request, merged_rows(request, out))
            except KeyboardInterrupt:
                outcome.interrupted = True
            store.compact_if_long()
    finally:
        executor.close()
    outcome.seconds = monotonic() - begin
    return outcome


@dataclass(slots=True)
class _Gathering:
    """One run: what waits, what is out, and what has come back."""

    executor: Executor
    store: Store
    settings: Settings
    progress: Progress
    outcome: Outcome
    where: Where
    waiting: deque[Pack] = field(default_factory=deque)
    out: dict[Job, Pack] = field(default_factory=dict)
    total: int = 0
    share_seconds: float = 0.0
    stop: float = math.inf
    limit: CallLimit = field(init=False)

    def __post_init__(self) -> None:
        """What any machine of the cluster has measured tells how long longer calls will take."""
        self.limit = CallLimit(self.settings.longest_call_seconds)

    def run(self, request: Request, merged: Sequence[Measurement]) -> None:
        """Plan on the cluster, then give out packs until none is left."""
        planned = self._plan(request)
        self._remember(planned.machine)
        self.outcome.machine = planned.machine
        rows = [row for row in (*self.store.rows, *merged) if not self.limit.may_try(row)]
        done = {(row.code, row.case.key("")) for row in rows}
        self.limit.learn_from(rows)
        timed, untimed = (
            [case for case in cases if not _is_done(case, planned.codes, done)]
            for cases in (planned.timed, planned.untimed)
        )
        self.total = len(timed) + len(untimed)
        self.outcome.skipped = len(planned.timed) + len(planned.untimed) - self.total
        self.waiting.extend(packs_of(timed, untimed, self.executor.slots))
        self.share_seconds = self.settings.seconds * self.executor.slots / max(1, len(self.waiting))
        self.stop = monotonic() + self.settings.stop_after_seconds
        self.progress(0, self.total, None)
        while self.waiting or self.out:
            self._give_out(planned)
            if self.out:
                self._take_in(planned)

    def _plan(self, request: Request) -> Planned:
        reason = ""
        for _ in range(TRIES):
            arguments = (request, self.settings, self.where)
            self.executor.submit(Job(plan_there, arguments, START_SECONDS))
            _, answer = self.executor.wait()
            if not isinstance(answer, Lost):
                planned: Planned = answer
                if planned.refused:
                    raise InvalidRequest(planned.refused)
                return planned
            reason = answer.reason
        raise ExecutorError(f"no machine of the cluster could plan the sweep: {reason}")

    def _give_out(self, planned: Planned) -> None:
        """As many as there are slots, so that what is known of the machines goes with each."""
        while self.waiting and len(self.out) < self.executor.slots:
            pack = self._within_limit(self.waiting.popleft(), planned)
            if not pack.cases:
                continue
            left_seconds = self.stop - monotonic()
            if left_seconds <= 0:
                self.outcome.left += len(pack.cases)
                continue
            pack.tries += 1
            how = replace(self.settings, seconds=self.share_seconds, stop_after_seconds=left_seconds)
            limit = START_SECONDS + 2 * self.share_seconds + (len(pack.cases) + 2) * self.settings.timeout_seconds
            job = Job(measure_there, (pack.timed, pack.untimed, how, self.where), limit)
            self.executor.submit(job)
            self.out[job] = pack

    def _take_in(self, planned: Planned) -> None:
        job, answer = self.executor.wait()
        pack = self.out.pop(job)
        if not isinstance(answer, Lost):
            self._keep(answer)
        elif pack.tries < TRIES:
            self.waiting.append(pack)
        elif len(pack.cases) > 1:
            self.waiting.extend(pack.alone())
        else:
            self._record(pack.cases[0], answer.reason, planned)

    def _keep(self, answer: Measured) -> None:
        self._remember(answer.machine)
        self.outcome.measured_seconds += answer.measured_seconds
        self.outcome.worked_seconds = (self.outcome.worked_seconds or 0.0) + answer.seconds
        self.outcome.left += len(answer.left)
        self._store(answer.rows)

    def _record(self, case: Case, reason: str, planned: Planned) -> None:
        """A case that ended its machine's process whenever it was tried is a row like any other failure."""
        reason = f"the process that measured it ended each time: {reason}"
        self._store([self._sweep(case, planned).lost(case, "error", reason)])

    def _within_limit(self, pack: Pack, planned: Planned) -> Pack:
        """The pack without those whose call would take too long by what came back so far; these get their rows."""
        tried = []
        for case in pack.timed:
            sweep = self._sweep(case, planned)
            sweep.limit = self.limit
            if (row := sweep.too_long(case)) is None:
                tried.append(case)
            else:
                self._store([row])
        return replace(pack, timed=tuple(tried))

    def _sweep(self, case: Case, planned: Planned) -> Sweep:
        """One that measures nothing, for the rows of cases that no machine has measured."""
        how = replace(self.settings, threads=planned.threads)
        return Sweep(Workers(), how, planned.machine, Provenance(planned.codes[case.variant], "", True))

    def _store(self, rows: Sequence[Measurement]) -> None:
        with uninterrupted():
            self.store.extend(rows)
            self.outcome.rows += rows
        self.limit.learn_from(rows)
        for number, row in enumerate(rows, len(self.outcome.rows) - len(rows) + 1):
            self.progress(number, self.total, row)

    def _remember(self, machine: dict[str, Any]) -> None:
        """Write down what is new of a machine: its ceilings, or that it was shared."""
        name = machine_name(machine)
        path = self.store.folder / "machines" / f"{machine['key']}.json"
        has_news = "ceilings" in machine and name not in self.where.known
        if has_news or machine["foreign_processes"] or not path.exists():
            known = self.where.known.get(name)
            self.store.write_machine(machine if known is None else {"ceilings": known, **machine})
        if has_news:
            self.where.known[name] = machine["ceilings"]


def packs_of(timed: Sequence[Case], untimed: Sequence[Case], slots: int) -> Iterator[Pack]:
    """The cases in their order, those of one problem and input that are timed together in one pack."""
    size = max(1, min(MOST_UNTIMED, math.ceil(len(untimed) / (PACKS_PER_SLOT * slots))))
    for start in range(0, len(untimed), size):
        yield Pack(untimed=tuple(untimed[start : start + size]))
    groups: dict[str, list[Case]] = {}
    for case in timed:
        groups.setdefault(f"{case.problem()} {case.inputs} {case.seed}", []).append(case)
    size = max(1, min(MOST_TIMED, math.ceil(len(timed) / (PACKS_PER_SLOT * slots))))
    for cases in groups.values():
        for start in range(0, len(cases), size):
            yield Pack(timed=tuple(cases[start : start + size]))


def _is_done(case: Case, codes: dict[str, str], done: set[tuple[str, str]]) -> bool:
    return (codes[case.variant], case.key("")) in done
