"""Who wins under which limit at which length: the rule of `reports.verdict`, over a grid of limits."""

import math
from dataclasses import dataclass
from typing import Final, Literal

from reports.page_answers import Explored
from reports.question import Budget
from reports.verdict import judged, ranked

By = Literal["error", "memory"]

_ERRORS_PER_DECADE: Final = 3
_SIZES_PER_DOUBLING: Final = 2
_MOST_LIMITS: Final = 28


@dataclass(frozen=True, slots=True)
class WinnerMap:
    """The winner by length and limit, None where nothing fits; the limits are relative errors, or bytes."""

    by: By
    lengths: tuple[int, ...]
    limits: tuple[float, ...]
    winners: dict[tuple[int, float], str | None]

    @property
    def order(self) -> list[str]:
        """The winners, those of the most cells first."""
        known = [winner for winner in self.winners.values() if winner is not None]
        return sorted(set(known), key=lambda winner: (-known.count(winner), winner))


def winner_map(found: Explored, by: By) -> WinnerMap | None:
    """The map of one shape; None where no such figure is known."""
    limits = limits_of(found, by)
    if not limits:
        return None
    winners = {(length, limit): _winner(found, length, by, limit) for length in found.answers for limit in limits}
    return WinnerMap(by, tuple(found.answers), tuple(limits), winners)


def limits_of(found: Explored, by: By) -> list[float]:
    """Limits from below the smallest figure to above the largest one, evenly on a logarithmic scale."""
    name = "error" if by == "error" else "total_bytes"
    figures = (getattr(one.figures, name) for answer in found.answers.values() for one in answer.fitting)
    values = [figure.value for figure in figures if figure is not None and figure.value > 0]
    if not values:
        return []
    base = 10 ** (1 / _ERRORS_PER_DECADE) if by == "error" else 2 ** (1 / _SIZES_PER_DOUBLING)
    low, high = math.floor(math.log(min(values), base)), math.ceil(math.log(max(values), base)) + 1
    step = math.ceil((high - low + 1) / _MOST_LIMITS)
    exact = [base**power for power in range(low, high + step, step)]
    return [float(f"{limit:.3g}") if by == "error" else float(round(limit)) for limit in exact]


def _winner(found: Explored, length: int, by: By, limit: float) -> str | None:
    budget = Budget(max_error=limit) if by == "error" else Budget(max_bytes=limit)
    fitting, _ = judged(found.answers[length].fitting, budget)
    order = ranked(fitting, budget)
    return order[0].label if order else None
