"""A campaign: what `attnscape run` and `check` do, from a request to rows in a store."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any, Final

from benchmarks.foreign_processes import foreign_processes
from benchmarks.inputs import ALL_KINDS, KINDS, inputs_refusal
from benchmarks.measurement import Case, Measurement
from benchmarks.process_memory import predicted_process_bytes
from benchmarks.provenance import read_provenance
from benchmarks.shard import Shard
from benchmarks.store import Store, holds_results, keys_of, read_folder
from benchmarks.sweep import Settings, Sweep
from benchmarks.workers import Fault, Workers
from variants import Problem
from variants.catalogue import load, select
from variants.variant import missing_device

TIMED_INPUTS: Final = "normal"
MACHINE_SECONDS: Final = 120.0


class InvalidRequest(ValueError):
    """A request that cannot be planned; the message says what would be right."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure: variants, problems and kinds of input; times are taken on normal inputs.

    `recorded` are problems with recorded calls as their inputs, of which the errors are wanted.
    Of a shard only its own part is meant. With `by_variant` the errors of one variant follow one another;
    with `skip_compiled` variants that compile for seconds at each shape are left out.
    """

    variants: tuple[str, ...]
    problems: tuple[Problem, ...]
    inputs: tuple[str, ...] = tuple(KINDS)
    parameters: dict[str, int] = field(default_factory=dict)
    seed: int = 0
    recorded: tuple[tuple[Problem, str], ...] = ()
    shard: Shard | None = None
    by_variant: bool = False
    skip_compiled: bool = False

    def cases(self) -> tuple[list[Case], list[Case]]:
        """The cases that are timed, and those of which only the errors are wanted.

        Raises `InvalidRequest`, `UnknownVariant` or `InvalidParameter`.
        """
        names = self.check_names()
        timed: list[Case] = []
        untimed = [
            Case.of(name, self._parameters_of(name), problem, kind, self.seed)
            for problem, kind in self.recorded
            for name in names
        ]
        for problem in self.problems:
            for name in names:
                parameters = self._parameters_of(name)
                for kind in self.inputs:
                    case = Case.of(name, parameters, problem, kind, self.seed)
                    if kind == TIMED_INPUTS:
                        timed.append(case)
                    elif inputs_refusal(problem, kind) is None and not load(name).refusals(problem):
                        untimed.append(case)
        if self.by_variant:
            untimed.sort(key=lambda case: names.index(case.variant))
        if (shard := self.shard) is not None:
            timed, untimed = ([case for case in cases if shard.holds(case)] for cases in (timed, untimed))
        return timed, untimed

    def folder(self, out: Path) -> Path:
        """Where the rows go: a shard has a folder of its own, so that shards on one disk do not meet."""
        return out if self.shard is None else out / self.shard.folder

    def check_names(self) -> list[str]:
        """The variants that are meant. Raises what `cases` raises, but for what depends on a machine."""
        names = select(list(self.variants))
        self._check(names)
        return [name for name in names if not (self.skip_compiled and load(name).compiled)]

    def _check(self, names: list[str]) -> None:
        for kind in self.inputs:
            if kind not in ALL_KINDS:
                raise InvalidRequest(f"inputs must be among {', '.join(ALL_KINDS)}, or all, not {kind!r}")
        known = {parameter.name for name in names for parameter in load(name).definition.parameters}
        for name in self.parameters:
            if name not in known:
                raise InvalidRequest(
                    f"no chosen variant has a parameter {name!r}; there are {', '.join(sorted(known))}"
                )

    def _parameters_of(self, name: str) -> dict[str, int]:
        definition = load(name).definition
        own = {parameter.name for parameter in definition.parameters}
        return definition.resolve({key: value for key, value in self.parameters.items() if key in own})


@dataclass(frozen=True, slots=True)
class Planned:
    """One case as `--plan` shows it."""

    case: Case
    timed: bool
    refusals: list[str]
    predicted_bytes: int


def plan(request: Request) -> list[Planned]:
    """Every case, with the memory predicted for its process and the reasons why it would not run."""
    timed, untimed = request.cases()
    return [
        Planned(case, case in timed, load(case.variant).refusals(case.problem()), predicted_process_bytes(case))
        for case in (*timed, *untimed)
    ]


@dataclass(slots=True)
class Outcome:
    """What a campaign did."""

    rows: list[Measurement] = field(default_factory=list)
    skipped: int = 0
    left: int = 0
    seconds: float = 0.0
    measured_seconds: float = 0.0
    machine: dict[str, Any] = field(default_factory=dict)
    interrupted: bool = False
    worked_seconds: float | None = None

    @property
    def measured_share(self) -> float:
        """The share of the time, of all machines together where there are several, that measured calls took."""
        seconds = self.seconds if self.worked_seconds is None else self.worked_seconds
        return self.measured_seconds / seconds if seconds else 0.0


Progress = Callable[[int, int, Measurement | None], None]


def run_campaign(
    request: Request,
    out: Path,
    settings: Settings,
    progress: Progress,
    *,
    machine_device: str,
    executor: tuple[str, Sequence[str]] = ("local", ()),
    machine: dict[str, Any] | None = None,
    workers: Workers | None = None,
) -> Outcome:
    """Measure what the folder does not hold yet; every row is on the disk before the next case begins.

    A shard has its own folder below `out`, and does not measure what was merged into `out` already.
    Threads 0 are all that may be used. `executor` is a name and its options, `name=value` each. `machine` is what
    an earlier campaign found, whose ceilings are taken where they are of all the types that are asked for, and
    `workers` those that other campaigns share.

    Raises `StoreError`, and what `Request.cases` raises. Ctrl-C ends it early, with what is done kept.
    """
    if executor[0] != "local" or executor[1]:
        from benchmarks.executor_campaign import run_on_executor

        return run_on_executor(request, out, settings, progress, machine_device, *executor)
    timed, untimed = request.cases()
    require_device(machine_device)
    settings = replace(settings, threads=settings.threads or usable_threads())
    outcome = Outcome()
    begin = monotonic()
    with Store(request.folder(out)) as store:
        merged = merged_rows(request, out)
        with nullcontext(workers) if workers else Workers() as own:
            try:
                dtypes = tuple({case.dtype for case in (*timed, *untimed)})
                outcome.machine = machine or {}
                if machine is None or not {*dtypes} <= machine["ceilings"]["matmul_flops"].keys():
                    outcome.machine = read_machine(own, machine_device, settings.threads, "machine", dtypes)
                    if machine is not None:  # by now this very process is on the card
                        outcome.machine["foreign_processes"] = machine.get("foreign_processes", {})
                    elif outcome.machine.get("gpu"):  # its worker has ended, and no other of ours is there yet
                        outcome.machine["foreign_processes"] = foreign_processes(outcome.machine["gpu"]["uuid"])
                _measure_into(store, merged, own, timed, untimed, settings, progress, outcome)
            except KeyboardInterrupt:
                outcome.interrupted = True
        store.compact_if_long()
    outcome.seconds = monotonic() - begin
    return outcome


def merged_rows(request: Request, out: Path) -> list[Measurement]:
    """What the folder above a shard's own holds; raises `StoreError`."""
    return read_folder(out) if request.shard is not None and holds_results(out) else []


def _measure_into(
    store: Store,
    merged: list[Measurement],
    workers: Workers,
    timed: list[Case],
    untimed: list[Case],
    settings: Settings,
    progress: Progress,
    outcome: Outcome,
) -> None:
    from benchmarks.variant_code import variant_codes  # needs a catalogue that an old commit under asv does not have

    provenance = read_provenance()
    store.write_machine(outcome.machine)
    begin = monotonic()
    sweep = Sweep(workers, settings, outcome.machine, provenance)
    codes = variant_codes(provenance.code, (case.variant for case in (*timed, *untimed)))
    known = [
        row
        for row in (*store.rows, *merged)
        if not (sweep.limit.may_try(row) or (settings.energy and lacks_energy(row)))
    ]
    done = {code: keys_of(known, code) for code in set(codes.values())}
    sweep.limit.learn_from(row for row in known if row.machine == sweep.machine["key"])
    key, asked = sweep.machine["key"], len(timed) + len(untimed)
    timed, untimed = (
        [case for case in cases if case.key(key) not in done[codes[case.variant]]] for cases in (timed, untimed)
    )
    total = len(timed) + len(untimed)
    outcome.skipped = asked - total
    progress(0, total, None)

    shared = sweep.machine.get("foreign_processes", ()) if sweep.machine.get("gpu") else None

    def keep(row: Measurement) -> None:
        row.code = codes[row.case.variant]
        if shared is not None:
            row.device_state = {**row.device_state, "foreign_processes": float(len(shared))}
        with uninterrupted():
            store.append(row)
            outcome.rows.append(row)
        outcome.measured_seconds = sweep.measured_seconds
        progress(len(outcome.rows), total, row)

    def remaining() -> float:
        return max(0.0, settings.seconds - (monotonic() - begin))

    stop = begin + settings.stop_after_seconds
    left = sweep.measure_errors(untimed, keep, errors_seconds(remaining()) if timed else remaining(), stop)
    outcome.left = len(sweep.measure(timed, keep, remaining(), stop))
    outcome.left += len(sweep.measure_errors(left, keep, remaining(), stop))


def lacks_energy(row: Measurement) -> bool:
    """Whether a timed row was finished without asking for its energy, which a counter or its lack would tell."""
    return row.seconds is not None and row.energy_joules is None and "energy" not in row.device_state


def errors_seconds(seconds: float) -> float:
    """What cases of errors alone may take of the time while others wait to be timed: a sixth, or half of a short one.

    Their oracles take most of it, and the time is there for measured calls.
    """
    return max(seconds / 6, min(seconds / 2, 10.0))


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back for a moment, so that what is written and what is told of it agree."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def check_variants(
    request: Request, settings: Settings, progress: Progress, *, machine_device: str, further: Sequence[Case] = ()
) -> list[Measurement]:
    """Every case of the request and those further ones against their oracles, without times and without a store."""
    timed, untimed = request.cases()
    require_device(machine_device)
    cases = [*timed, *untimed, *further]
    rows: list[Measurement] = []
    with Workers() as workers:
        machine = {"key": machine_device, "ceilings": {}}
        sweep = Sweep(workers, settings, machine, read_provenance())
        progress(0, len(cases), None)

        def keep(row: Measurement) -> None:
            rows.append(row)
            progress(len(rows), len(cases), row)

        sweep.measure_errors(cases, keep)
    return rows


def require_device(device: str) -> None:
    """Raises `InvalidRequest` where this machine has no such device."""
    if (reason := missing_device(device)) is not None:
        raise InvalidRequest(f"--device {device}: {reason}")


def read_machine(
    workers: Workers, device: str, threads: int, method: str = "machine", dtypes: Sequence[str] = ()
) -> dict[str, Any]:
    """The machine's description and ceilings, read in a worker of its own; by method `describe` without ceilings.

    With `dtypes`, the ceilings of those only.

    Raises `InvalidRequest` where the instrument does not work on this machine.
    """
    worker = workers.start()
    try:
        answer = worker.ask(method, (device, threads, *((dtypes,) if dtypes else ())), MACHINE_SECONDS)
    except Fault as fault:
        raise InvalidRequest(f"the machine cannot be described: {fault.reason}") from fault
    finally:
        worker.end()
    if answer["status"] != "ok":
        raise InvalidRequest(f"the instrument does not work here: {answer['reason']}")
    machine: dict[str, Any] = answer["machine"]
    return machine


def usable_threads() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def problems_of(lengths: Sequence[int], modes: Sequence[str], **fields: Any) -> tuple[Problem, ...]:
    """One problem for each length and mode, lengths outermost."""
    return tuple(Problem.of_length(length, mode=mode, **fields) for length in lengths for mode in modes)
