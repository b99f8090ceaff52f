"""Change points of a series: where its level stepped, and with what confidence.

A series is cut where the difference of the means before and after is largest in units of its
standard error; whether a cut that good could come from noise is asked of the series itself, by
permuting it, which needs no assumption on the distribution. Each part is then searched in turn
(binary segmentation). The procedure is that of E-divisive (Matteson and James, 2014,
arXiv:1306.4933) with Student's t in place of the energy distance: as Fleming et al. found
(2023, arXiv:2301.03034), t tells a step of a few commits from noise where E-divisive does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

FALSE_ALARMS: Final = 0.02
"""How often noise alone may yield a change point, each search of a part."""

PERMUTATIONS: Final = 999
LEAST_PART: Final = 3
"""Values on either side of a cut: of one or two nobody knows the spread."""

_LEAST_SPREAD: Final = 1e-3
"""Of a part's logs: figures that repeat to the digit would make every rounding a step."""


@dataclass(frozen=True, slots=True)
class ChangePoint:
    """A step: the index of the first value after it, the levels on both sides, and the chance of it in noise."""

    index: int
    before: float
    after: float
    chance: float

    @property
    def factor(self) -> float:
        """The level after over that before."""
        return self.after / self.before


def change_points(
    values: Sequence[float], *, false_alarms: float = FALSE_ALARMS, least_change: float = 0.0, seed: int = 0
) -> list[ChangePoint]:
    """The steps of a series of positive figures, in order; changes by less than the share `least_change` are left out.

    Raises ValueError for a figure that is not positive: steps are told by factor.
    """
    series = np.asarray(values, dtype=np.float64)
    if not (np.isfinite(series).all() and (series > 0).all()):
        raise ValueError("a series to search must be of finite positive figures")
    if not len(series):
        return []
    logs = np.log(series)
    random = np.random.default_rng(seed)
    cuts: dict[int, float] = {}
    _search(logs, 0, len(logs), false_alarms, random, cuts)
    kept = _kept(logs, sorted(cuts), least_change)
    bounds = [0, *kept, len(logs)]
    levels = [float(np.exp(np.median(logs[a:b]))) for a, b in zip(bounds, bounds[1:], strict=False)]
    return [
        ChangePoint(cut, before, after, cuts[cut]) for cut, before, after in zip(kept, levels, levels[1:], strict=False)
    ]


def _search(
    logs: NDArray[np.float64], begin: int, end: int, alarms: float, random: np.random.Generator, cuts: dict[int, float]
) -> None:
    part = logs[begin:end]
    if len(part) < 2 * LEAST_PART:
        return
    statistics = _statistics(part[None, :])[0]
    best = int(statistics.argmax())
    shuffled = random.permuted(np.broadcast_to(part, (PERMUTATIONS, len(part))), axis=1)
    as_good = int((_statistics(shuffled).max(axis=1) >= statistics[best]).sum())
    chance = (1 + as_good) / (1 + PERMUTATIONS)
    if chance > alarms:
        return
    cut = begin + LEAST_PART + best
    cuts[cut] = chance
    _search(logs, begin, cut, alarms, random, cuts)
    _search(logs, cut, end, alarms, random, cuts)


def _statistics(parts: NDArray[np.float64]) -> NDArray[np.float64]:
    """|Student's t| of each cut of each row, from `LEAST_PART` values before it to as many after it."""
    count = parts.shape[1]
    before = np.arange(LEAST_PART, count - LEAST_PART + 1)
    after = count - before
    centred = parts - parts.mean(axis=1, keepdims=True)
    sums, squares = centred.cumsum(axis=1), (centred**2).cumsum(axis=1)
    left, left_squares = sums[:, before - 1], squares[:, before - 1]
    right, right_squares = sums[:, -1:] - left, squares[:, -1:] - left_squares
    difference = right / after - left / before
    # Both sides' spread in one: of three values alone it is often small by chance.
    within = left_squares - left**2 / before + right_squares - right**2 / after
    spread = np.sqrt(np.maximum(within, 0.0) / (count - 2))
    found: NDArray[np.float64] = np.abs(difference) / (
        np.maximum(spread, _LEAST_SPREAD) * np.sqrt(1 / before + 1 / after)
    )
    return found


def _kept(logs: NDArray[np.float64], cuts: list[int], least_change: float) -> list[int]:
    """The cuts that matter: the smallest step is taken out until every step is large enough."""
    kept = list(cuts)
    limit = np.log1p(least_change)
    while kept:
        bounds = [0, *kept, len(logs)]
        levels = [float(np.median(logs[a:b])) for a, b in zip(bounds, bounds[1:], strict=False)]
        steps = [abs(b - a) for a, b in zip(levels, levels[1:], strict=False)]
        smallest = min(range(len(steps)), key=steps.__getitem__)
        if steps[smallest] >= limit:
            return kept
        del kept[smallest]
    return kept
