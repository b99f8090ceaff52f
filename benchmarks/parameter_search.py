"""The search for the cheapest parameters whose error is within a limit."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from benchmarks.parameter_samplers import sampler_of, violation_of
from benchmarks.parameter_space import Point, Space

EXHAUSTIVE_BELOW: Final = 200
EVALUATIONS: Final = 60
BEST: Final = 3

Cost = Callable[[Point], float]
Error = Callable[[Point], float | str]


@dataclass(frozen=True, slots=True)
class Trial:
    """One point that was evaluated; without an error the reason says why."""

    parameters: dict[str, int]
    cost: float
    error: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a search keeps to: the largest error, and how many evaluations and seconds it may take.

    An exhaustive search takes as many evaluations as it needs.
    """

    error: float
    evaluations: int = EVALUATIONS
    seconds: float = math.inf


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found: the cheapest points within the limit, by cost, and the trial that came nearest to it.

    `complete` where nothing cheaper can keep the limit: every cheaper point was evaluated.
    """

    sampler: str
    points: int
    trials: tuple[Trial, ...]
    best: tuple[Trial, ...]
    nearest: Trial | None
    complete: bool


def chosen_sampler(name: str, space: Space) -> str:
    """The sampler that `auto` stands for: every point where they are few, else the Gaussian process."""
    if name != "auto":
        return name
    return "exhaustive" if len(space.points) < EXHAUSTIVE_BELOW else "gp"


def search(space: Space, cost: Cost, error: Error, limits: Limits, sampler: str = "auto", seed: int = 0) -> Found:
    """The three cheapest points whose error is within the limit, as far as the sampler finds them.

    The exhaustive search goes from the cheapest point up, and stops at the third that keeps the limit.
    Raises `InvalidRequest` where the sampler's package is missing.
    """
    name = chosen_sampler(sampler, space)
    trials: dict[int, Trial] = {}
    stop = time.monotonic() + limits.seconds
    if name == "exhaustive":
        complete = _upwards(space, cost, error, limits, trials, stop)
    else:
        _sampled(space, cost, error, limits, trials, stop, name, seed)
        complete = len(trials) == len(space.points)
    within = sorted((trial for trial in trials.values() if keeps(trial, limits.error)), key=_order)
    known = [trial for trial in trials.values() if trial.error is not None]
    return Found(
        sampler=name,
        points=len(space.points),
        trials=tuple(trials.values()),
        best=tuple(within[:BEST]),
        nearest=min(known, key=lambda trial: (trial.error, trial.cost), default=None),
        complete=complete,
    )


def keeps(trial: Trial, limit: float) -> bool:
    """Whether the error is known and within the limit."""
    return trial.error is not None and trial.error <= limit


def _upwards(space: Space, cost: Cost, error: Error, limits: Limits, trials: dict[int, Trial], stop: float) -> bool:
    """Whether the search came to its end."""
    costs = [cost(point) for point in space.points]
    kept = 0
    for index in sorted(range(len(costs)), key=costs.__getitem__):
        if trials and time.monotonic() > stop:
            return False
        trials[index] = _trial(space, index, costs[index], error)
        kept += keeps(trials[index], limits.error)
        if kept == BEST:
            break
    return True


def _sampled(
    space: Space,
    cost: Cost,
    error: Error,
    limits: Limits,
    trials: dict[int, Trial],
    stop: float,
    name: str,
    seed: int,
) -> None:
    sampler = sampler_of(name, space, limits.evaluations, seed)
    taken: set[int] = set()
    while len(taken) < min(limits.evaluations, len(space.points)):
        if trials and time.monotonic() > stop:
            return
        index = space.nearest(sampler.ask(), taken)
        trial = trials[index] = _trial(space, index, cost(space.points[index]), error)
        taken.add(index)
        violation = violation_of(math.inf if trial.error is None else trial.error, limits.error)
        sampler.tell(space.place(space.points[index]), math.log(max(trial.cost, 1.0)), violation)


def _trial(space: Space, index: int, cost: float, error: Error) -> Trial:
    outcome = error(space.points[index])
    known, reason = (None, outcome) if isinstance(outcome, str) else (outcome, "")
    return Trial(space.parameters(space.points[index]), cost, known, reason)


def _order(trial: Trial) -> tuple[float, float]:
    return trial.cost, trial.error or 0.0
