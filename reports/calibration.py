"""How much wider or narrower a machine's own curves ask the bands to be.

Each curve foretells its own last length from those of at most half of it. What it missed, as a multiple of
half its band, is one score; together with twenty scores of an honest band, so that few curves change little,
their 90 % quantile (split conformal prediction) is what the bands of this machine are multiplied with.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import pairwise
from statistics import NormalDist
from typing import Final

from reports.interpolation import Figure, time_at

Chord = Callable[[Mapping[int, float], int], Figure]
"""A figure between two lengths from those at both."""

LEVEL: Final = 0.9
PRIOR_SCORES: Final = 20
"""As many curves are worth what is believed of a band before any curve of the machine is seen."""

SPREAD: Final = 0.08
"""The 90 % quantile of what a chord on log-log axes misses, per doubling between its ends, before any is seen."""


def pooled_quantile(scores: Iterable[float], prior: float = 1.0) -> float:
    """The 90 % quantile of scores and of the prior ones, of which 90 % are at most `prior`; of n, the ⌈0.9(n+1)⌉th."""
    found = sorted([*scores, *(prior * score for score in _prior_scores())])
    return found[min(math.ceil(LEVEL * (len(found) + 1)), len(found)) - 1]


def spread(curves: Iterable[Mapping[int, float]], prior: float = SPREAD, chord: Chord = time_at) -> float:
    """What a chord between two neighbours misses per doubling between them, as a natural logarithm.

    Each inner point of each curve that is not zero is held against the chord of its two neighbours, which is drawn
    as figures between lengths are.
    """
    return pooled_quantile((miss for curve in curves for miss in _missed_by_chords(curve, chord)), prior)


def own_score(
    points: Mapping[int, float], foretell: Callable[[Mapping[int, float], int], tuple[float, float] | None]
) -> float | None:
    """The score of one curve; `foretell` gives a figure and half its band as a natural logarithm, or None."""
    last = max(points)
    shorter = {length: value for length, value in points.items() if 2 * length <= last}
    found = foretell(shorter, last) if shorter else None
    if found is None:
        return None
    value, half_band = found
    return abs(math.log(points[last] / value)) / half_band


def _missed_by_chords(curve: Mapping[int, float], chord: Chord) -> Iterable[float]:
    for (before, at), (_, after) in zip(pairwise(sorted(curve)), pairwise(sorted(curve)[1:]), strict=False):
        expected = chord({before: curve[before], after: curve[after]}, at).value
        if curve[at] > 0 and expected > 0:
            yield abs(math.log(curve[at] / expected)) / math.log2(after / before)


@cache
def _prior_scores() -> tuple[float, ...]:
    """Twenty even quantiles of a half-normal distribution whose own 90 % quantile is 1."""
    normal = NormalDist()
    widest = normal.inv_cdf((1 + LEVEL) / 2)
    return tuple(normal.inv_cdf(0.5 + (n + 0.5) / (2 * PRIOR_SCORES)) / widest for n in range(PRIOR_SCORES))
