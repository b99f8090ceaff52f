"""The history of asv's figures: where each series stepped, and on which commit."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from reports.asv_results import Commit, Place
from reports.change_points import change_points
from reports.quantities import digits, factor_text
from reports.records import ResultsError
from reports.text_table import Table

LEAST_CHANGE: Final = 0.03
SHORTEST: Final = 10
"""Commits that a series must have to be searched: among fewer, chance puts the largest last too often."""

_FLOOR: Final = 1e-12
"""Stands in for figures that are zero, such as a count of failures, so that a step from zero has a factor."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of one series: the first commit after it and the last before it, the levels, the chance in noise."""

    machine: str
    environment: str
    series: str
    commit: str
    previous: str
    before: float
    after: float
    chance: float

    @property
    def worse(self) -> bool:
        """Whether the figure rose: of all that is tracked, lower is better."""
        return self.after > self.before


@dataclass(frozen=True, slots=True)
class History:
    """What was searched and what was found, worse steps first."""

    steps: tuple[Step, ...]
    searched: int
    too_short: int
    commits: int


def find_steps(commits: Sequence[Commit], match: str = "", least_change: float = LEAST_CHANGE) -> History:
    """Search every series whose name contains `match`. Raises `ResultsError` where there is none."""
    series: dict[Place, list[tuple[str, float]]] = defaultdict(list)
    for commit in commits:
        for place, value in commit.figures.items():
            if match in str(place):
                series[place].append((commit.commit, value))
    if not series:
        raise ResultsError(f"no series whose name contains {match!r}" if match else "no figures in asv's results")
    steps = [
        step
        for place, points in series.items()
        if len(points) >= SHORTEST
        for step in _steps(place, points, least_change)
    ]
    steps.sort(key=lambda step: (not step.worse, step.chance, -max(step.after, step.before)))
    short = sum(len(points) < SHORTEST for points in series.values())
    return History(tuple(steps), len(series) - short, short, len(commits))


def _steps(place: Place, points: list[tuple[str, float]], least_change: float) -> list[Step]:
    values = [max(value, _FLOOR) for _, value in points]
    return [
        Step(
            place.machine,
            place.environment,
            str(place),
            points[found.index][0],
            points[found.index - 1][0],
            found.before,
            found.after,
            found.chance,
        )
        for found in change_points(values, least_change=least_change)
    ]


def history_blocks(history: History) -> list[str | Table]:
    """The steps as a table, and a sentence on what was searched."""
    header = ("commit", "after", "series", "machine", "before", "now", "factor", "chance")
    lines = tuple(
        (
            step.commit[:8],
            step.previous[:8],
            step.series,
            step.machine,
            digits(step.before) if step.before > _FLOOR else "0",
            digits(step.after) if step.after > _FLOOR else "0",
            factor_text(step.after / step.before) if min(step.after, step.before) > _FLOOR else "–",
            f"{step.chance:.3f}",
        )
        for step in history.steps
    )
    worse = sum(step.worse for step in history.steps)
    said = f"{history.searched} series over {history.commits} commits: {worse} steps up, {len(lines) - worse} down."
    if history.too_short:
        said += f" {history.too_short} series have fewer than {SHORTEST} commits, too few to search."
    table = Table("Steps (of every figure lower is better; chance: of so clear a step in noise)", header, lines)
    return [*([table] if lines else []), said]
