"""Tuning: for each variant the cheapest parameters that meet a limit on the error, the best of them measured."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.campaign import TIMED_INPUTS, InvalidRequest, Progress, Request, run_campaign
from benchmarks.inputs import inputs_refusal
from benchmarks.measurement import Case, Measurement
from benchmarks.parameter_errors import ErrorMeter
from benchmarks.parameter_samplers import require_packages
from benchmarks.parameter_search import EVALUATIONS, Found, Limits, Trial, chosen_sampler, search
from benchmarks.parameter_space import Point, Space, space_of
from benchmarks.recorded import read_recording, recorded_problems
from benchmarks.request_options import parameters_of, words_of
from benchmarks.store import read_folder
from benchmarks.sweep import Settings
from variants import Problem
from variants.catalogue import load, select
from variants.full import DEFINITION as EXACT
from variants.variant import Variant

SEARCHING: Final = 0.5
"""The share of the time that goes into searching; what it leaves over is measured in."""
DEFAULT_INPUTS: Final = ("captured", "normal")
"""As `attnscape choose` takes them: real inputs where they can be had at the length."""

Show = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be tuned: the variants with what is held of their parameters, on one problem, up to an error."""

    variants: tuple[str, ...]
    problem: Problem
    kinds: tuple[str, ...]
    max_error: float
    held: dict[str, int] = field(default_factory=dict)
    sampler: str = "auto"
    evaluations: int = EVALUATIONS
    seconds: float = math.inf
    seed: int = 0


@dataclass(frozen=True, slots=True)
class MeasuredPoint:
    """One of the best points as it was measured; `error` is of the output itself, rounding included.

    Without a time the reason says why. `work` is its FLOPs over those of exact attention.
    """

    parameters: dict[str, int]
    estimated_error: float
    work: float
    error: float | None = None
    seconds: float | None = None
    seconds_low: float | None = None
    seconds_high: float | None = None
    total_bytes: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Tuned:
    """What tuning a variant came to: `best` is the fastest measured point that keeps the limit.

    `nearest` is the evaluated point with the smallest error; `complete` where no cheaper point can keep the limit.
    Without a search the reason says why.
    """

    variant: str
    sampler: str = ""
    points: int = 0
    evaluated: int = 0
    complete: bool = False
    measured: tuple[MeasuredPoint, ...] = ()
    best: MeasuredPoint | None = None
    nearest: MeasuredPoint | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Tuning:
    """The whole of it, with the rows that are new and how many had been measured before."""

    tuned: tuple[Tuned, ...]
    problem: Problem
    kinds: tuple[str, ...]
    max_error: float
    checked_rows: int
    new_rows: tuple[Measurement, ...]
    already_there: int
    left: int
    seconds: float
    interrupted: bool


@dataclass(frozen=True, slots=True)
class PointsRequest(Request):
    """Variants at several points each, timed in one session, their errors on every kind."""

    methods: tuple[tuple[str, dict[str, int]], ...] = ()

    def cases(self) -> tuple[list[Case], list[Case]]:
        """As of a request, but at the points."""
        made = [
            Case.of(name, parameters, self.problems[0], kind, self.seed)
            for name, parameters in self.methods
            for kind in dict.fromkeys((TIMED_INPUTS, *self.inputs))
        ]
        return [case for case in made if case.inputs == TIMED_INPUTS], [
            case for case in made if case.inputs != TIMED_INPUTS
        ]


def wish_of(
    variants: Sequence[str], tokens: int | None, inputs: str | None, settings: Sequence[str], mode: str, **fields: Any
) -> tuple[tuple[str, ...], Problem, tuple[str, ...], dict[str, int]]:
    """Variants, problem, kinds of input and held parameters as the options name them.

    A file of recorded calls brings its own shape. Raises `InvalidRequest`, and what else can be wrong with a request.
    """
    held = parameters_of(settings)
    names = tuple(select(list(variants)))
    known = {parameter.name for name in names for parameter in load(name).definition.parameters}
    if unknown := sorted(held.keys() - known):
        raise InvalidRequest(f"no chosen variant has a parameter {unknown[0]!r}; there are {', '.join(sorted(known))}")
    words = words_of(inputs)
    if files := [word for word in words if word.endswith(".safetensors")]:
        if len(words) > 1:
            raise InvalidRequest(f"--inputs takes one file, or one kind: {files[0]!r} does not stand alone")
        problem, kinds = _recorded(Path(files[0]), tokens, str(fields["device"]), mode)
        return names, problem, kinds, held
    if tokens is None:
        raise InvalidRequest("--tokens is missing: only a file of recorded calls brings its own length")
    problem = Problem.of_length(tokens, mode=mode, **fields)
    kinds = tuple(words) or (next(kind for kind in DEFAULT_INPUTS if inputs_refusal(problem, kind) is None),)
    for kind in kinds:
        if (reason := inputs_refusal(problem, kind)) is not None:
            raise InvalidRequest(reason)
    return names, problem, kinds, held


def _recorded(path: Path, tokens: int | None, device: str, mode: str) -> tuple[Problem, tuple[str, ...]]:
    """The one problem of a file's calls, of those of that length, with every call that has it."""
    found = recorded_problems(read_recording(path), device, [mode])
    problems = list(dict.fromkeys(problem for problem, _ in found if tokens in (None, problem.length)))
    lengths = ", ".join(str(length) for length in sorted({problem.length for problem, _ in found}))
    if not problems:
        raise InvalidRequest(f"{path} holds no call of {tokens} tokens, but of {lengths}")
    if len(problems) > 1:
        raise InvalidRequest(f"{path} holds calls of {len(problems)} shapes; --tokens takes one of {lengths}")
    return problems[0], tuple(kind for problem, kind in found if problem == problems[0])


def tune(wish: Wish, out: Path, settings: Settings, show: Show, progress: Progress) -> Tuning:
    """Search for each variant, then measure the best points of all of them into the folder, and read them there.

    Every search gets its part of half of the time. What the folder holds already is not measured again.
    Raises `InvalidRequest`, `UnavailableInputs` or `StoreError`.
    """
    begin = time.monotonic()
    meter, searched = search_all(wish, show)
    methods = tuple((one.variant, trial.parameters) for one in searched for trial in one.best)
    left = max(1.0, wish.seconds - (time.monotonic() - begin))
    request = PointsRequest(wish.variants, (wish.problem,), wish.kinds, seed=wish.seed, methods=methods)
    rows: Mapping[str, Measurement] = {}
    new: tuple[Measurement, ...] = ()
    known, unmeasured, interrupted, key = 0, 0, False, ""
    if methods:
        outcome = run_campaign(
            request, out, replace(settings, seconds=left), progress, machine_device=wish.problem.device
        )
        new, known, unmeasured = tuple(outcome.rows), outcome.skipped, outcome.left
        interrupted, key = outcome.interrupted, outcome.machine.get("key", "")
        rows = {row.key: row for row in read_folder(out)}
    return Tuning(
        tuned=tuple(_tuned(one, wish, rows, key) for one in searched),
        problem=wish.problem,
        kinds=wish.kinds,
        max_error=wish.max_error,
        checked_rows=len(meter.rows),
        new_rows=new,
        already_there=known,
        left=unmeasured,
        seconds=time.monotonic() - begin,
        interrupted=interrupted,
    )


@dataclass(frozen=True, slots=True)
class Searched:
    """A search of one variant, or why there was none."""

    variant: str
    found: Found | None
    reason: str = ""

    @property
    def best(self) -> tuple[Trial, ...]:
        """The points to be measured."""
        return () if self.found is None else self.found.best


def search_all(wish: Wish, show: Show) -> tuple[ErrorMeter, list[Searched]]:
    """The search for each variant, cheaper ones leaving their time to the later ones."""
    if not (math.isfinite(wish.max_error) and wish.max_error > 0):
        raise InvalidRequest(f"--max-error must be a positive finite number, not {wish.max_error:g}")
    spaces = {name: _space(load(name), wish) for name in wish.variants}
    for space in spaces.values():
        if not isinstance(space, str):
            require_packages(chosen_sampler(wish.sampler, space))
    require_packages(wish.sampler)
    if all(isinstance(space, str) for space in spaces.values()):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in spaces.items())
        raise InvalidRequest(f"nothing to tune: {reasons}")
    meter = ErrorMeter(wish.problem, wish.kinds, wish.seed)
    deadline = time.monotonic() + SEARCHING * wish.seconds
    to_do = sum(not isinstance(space, str) for space in spaces.values())
    done, found = 0, []
    for name, space in spaces.items():
        if isinstance(space, str):
            found.append(Searched(name, None, space))
            continue
        show(done, to_do, name)
        seconds = max(0.0, deadline - time.monotonic()) / (to_do - done)
        found.append(Searched(name, _search(load(name), space, meter, wish, seconds)))
        done += 1
    show(done, to_do, "done")
    return meter, found


def _space(variant: Variant, wish: Wish) -> Space | str:
    """The points of a variant, or why there is nothing to tune."""
    definition, problem = variant.definition, wish.problem
    if definition.exact:
        return "exact attention, which has no error to trade"
    if not definition.parameters:
        return "it has no parameters"
    if reasons := variant.refusals(problem):
        return "; ".join(reasons)
    own = {p.name for p in definition.parameters}
    space = space_of(definition, problem.length, problem.heads, {k: v for k, v in wish.held.items() if k in own})
    if not space.points:
        return "none of its parameters is left to tune" if not space.names else "no legal point at this length"
    ends = (space.points[0], space.points[-1], space.points[len(space.points) // 2])
    if len({variant.flops(problem, space.parameters(point)) for point in ends}) == 1 < len(space.points):
        return f"its work does not depend on {', '.join(space.names)} at this length"
    return space


def _search(variant: Variant, space: Space, meter: ErrorMeter, wish: Wish, seconds: float) -> Found:
    def cost(point: Point) -> float:
        return float(variant.flops(wish.problem, space.parameters(point)))

    def error(point: Point) -> float | str:
        return meter.error(variant.definition, space.parameters(point))

    limits = Limits(wish.max_error, wish.evaluations, seconds)
    return search(space, cost, error, limits, wish.sampler, wish.seed)


def _tuned(searched: Searched, wish: Wish, rows: Mapping[str, Measurement], machine: str) -> Tuned:
    found = searched.found
    if found is None:
        return Tuned(searched.variant, reason=searched.reason)
    measured = tuple(_measured(searched.variant, trial, wish, rows, machine) for trial in found.best)
    kept = [
        one for one in measured if one.seconds is not None and one.error is not None and one.error <= wish.max_error
    ]
    return Tuned(
        variant=searched.variant,
        sampler=found.sampler,
        points=found.points,
        evaluated=len(found.trials),
        complete=found.complete,
        measured=measured,
        best=min(kept, key=lambda one: one.seconds or 0.0, default=None),
        nearest=None if found.nearest is None else _estimated(found.nearest, wish),
        reason="" if found.nearest or not found.trials else found.trials[-1].reason,
    )


def _estimated(trial: Trial, wish: Wish) -> MeasuredPoint:
    work = trial.cost / max(1, EXACT.useful_flops(wish.problem))
    return MeasuredPoint(trial.parameters, math.nan if trial.error is None else trial.error, work)


def _measured(variant: str, trial: Trial, wish: Wish, rows: Mapping[str, Measurement], machine: str) -> MeasuredPoint:
    """A point with the figures of its rows; with several kinds the largest error counts."""
    point = _estimated(trial, wish)
    kinds = tuple(dict.fromkeys((TIMED_INPUTS, *wish.kinds)))
    cases = {kind: Case.of(variant, trial.parameters, wish.problem, kind, wish.seed) for kind in kinds}
    own = {kind: row for kind, case in cases.items() if (row := rows.get(case.key(machine))) is not None}
    if len(own) < len(kinds):
        return replace(point, reason="no time was left to measure it")
    if failed := [row for row in own.values() if row.status != "ok"]:
        return replace(point, reason=f"{failed[0].status}: {failed[0].reason}")
    timed = own[TIMED_INPUTS]
    errors = [_whole_error(own[kind]) for kind in wish.kinds]
    return replace(
        point,
        error=None if None in errors else max(error for error in errors if error is not None),
        seconds=timed.seconds,
        seconds_low=timed.seconds_low,
        seconds_high=timed.seconds_high,
        total_bytes=timed.total_bytes,
    )


def _whole_error(row: Measurement) -> float | None:
    """Approximation and rounding together, as `attnscape choose` counts them."""
    if row.approximation_error is None or row.implementation_error is None:
        return None
    return math.hypot(row.approximation_error, row.implementation_error)
