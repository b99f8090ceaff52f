"""Samplers: who says which parameters are tried next, given what was found so far."""

import importlib
import math
import warnings
from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np

from benchmarks.campaign import InvalidRequest
from benchmarks.parameter_space import Space

EXTRA: Final = "pip install 'attnscape[tune]'"
NEEDS: Final = {"gp": ("optuna",), "tpe": ("optuna",), "pso": ("nevergrad",), "random": (), "exhaustive": ()}
SAMPLERS: Final = ("auto", "gp", "tpe", "pso", "random", "exhaustive")
STARTUP: Final = 10
PARTICLES: Final = 10
"""nevergrad's own forty would leave sixty evaluations a generation and a half."""
INFEASIBLE: Final = 1e6
"""What a point that breaks the limit costs a sampler that knows no constraints, before its violation."""

Place = Sequence[float]


class Sampler(Protocol):
    """Says at which place between the levels to look; the legal point nearest to it that is new is then evaluated."""

    def ask(self) -> Place:
        """The next place."""

    def tell(self, place: Place, /, cost: float, violation: float) -> None:
        """What was found at a point: the logarithm of its cost, and how far it breaks the limit (> 0) or keeps it."""


def sampler_of(name: str, space: Space, evaluations: int, seed: int) -> Sampler:
    """The sampler of that name. Raises `InvalidRequest` where a package is missing."""
    require_packages(name)
    if name == "pso":
        return ParticleSwarm(space, evaluations, seed)
    if name == "random":
        return RandomPlaces(space, seed)
    return OptunaSampler(name, space, seed)


def require_packages(name: str) -> None:
    """Raises `InvalidRequest` where a sampler is unknown, or its packages are not installed."""
    if name not in SAMPLERS:
        raise InvalidRequest(f"--sampler must be one of {', '.join(SAMPLERS)}, not {name!r}")
    for package in NEEDS.get(name, ()):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InvalidRequest(f"--sampler {name} needs {package}, which is not installed: {EXTRA}") from error


class RandomPlaces:
    """Any place, one as likely as the other."""

    def __init__(self, space: Space, seed: int) -> None:
        """Seeded."""
        self._space = space
        self._random = np.random.default_rng(seed)

    def ask(self) -> Place:
        """A legal point's place."""
        return self._space.place(self._space.points[self._random.integers(len(self._space.points))])

    def tell(self, place: Place, /, cost: float, violation: float) -> None:
        """Nothing is learnt."""


class OptunaSampler:
    """Optuna's Gaussian process (`gp`) or Parzen estimators (`tpe`), the limit on the error as a real constraint.

    Levels are integers to it, so that a step is about the same factor everywhere. A point that it did not ask for is
    added as what it is.
    """

    def __init__(self, name: str, space: Space, seed: int) -> None:
        """A study in memory; nothing is written."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._names = space.names
        self._levels: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.IntDistribution(0, len(values) - 1)
            for name, values in zip(space.names, space.levels, strict=True)
        }
        sampler: optuna.samplers.BaseSampler
        if name == "gp":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of `deterministic_objective`
                sampler = optuna.samplers.GPSampler(
                    seed=seed, n_startup_trials=STARTUP, deterministic_objective=True, warn_independent_sampling=False
                )
        else:
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=False)
        self._study = optuna.create_study(sampler=sampler)
        self._asked: optuna.trial.Trial | None = None

    def ask(self) -> Place:
        """What the study suggests."""
        self._asked = self._study.ask(self._levels)
        return [float(self._asked.params[name]) for name in self._names]

    def tell(self, place: Place, /, cost: float, violation: float) -> None:
        """Close the trial that was asked for, or put the point that was taken instead in its stead."""
        params = {name: int(level) for name, level in zip(self._names, place, strict=True)}
        assert self._asked is not None
        if params == self._asked.params:
            self._asked.set_constraint("error", violation)
            self._study.tell(self._asked, cost)
            return
        self._study.tell(self._asked, state=self._optuna.trial.TrialState.FAIL)
        self._study.add_trial(
            self._optuna.trial.create_trial(
                params=params, distributions=self._levels, value=cost, constraints={"error": violation}
            )
        )


class ParticleSwarm:
    """nevergrad's particle swarm, without constraints: what breaks the limit is worse than whatever keeps it."""

    def __init__(self, space: Space, evaluations: int, seed: int) -> None:
        """Ten particles in the box of the levels."""
        import nevergrad

        self._spans = np.array([len(values) - 1 for values in space.levels], dtype=np.float64)
        box = nevergrad.p.Array(shape=(len(space.levels),), lower=0.0, upper=1.0)
        box.random_state.seed(seed)
        self._swarm = nevergrad.optimizers.ConfPSO(popsize=PARTICLES)(box, budget=evaluations)
        self._asked: Any = None

    def ask(self) -> Place:
        """Where the next particle is."""
        self._asked = self._swarm.ask()
        return [float(share) for share in self._asked.value * self._spans]

    def tell(self, _place: Place, /, cost: float, violation: float) -> None:
        """The particle gets what the point nearest to it gave."""
        self._swarm.tell(self._asked, cost if violation <= 0 else INFEASIBLE + min(violation, INFEASIBLE))


def violation_of(error: float, limit: float) -> float:
    """How far an error is beyond the limit, in factors of e; an error that is not known is a thousandfold."""
    if not math.isfinite(error):
        return math.log(1e3)
    return math.log(max(error, 1e-6 * limit) / limit)
