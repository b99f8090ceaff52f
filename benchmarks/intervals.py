"""Medians and their intervals from samples that are neither normal nor independent of the machine."""

import math
from collections.abc import Sequence
from functools import cache
from statistics import median


@cache
def left_out(count: int) -> int:
    """How many samples a 95 % interval of the median may leave out at either end.

    The true median lies beyond the next one with a probability that is binomial, whatever the
    distribution; both ends together may have 5 %.
    """
    ways = beyond = 1
    for outside in range(count):
        ways = ways * (count - outside) // (outside + 1)
        beyond += ways
        if 40 * beyond > 2**count:
            return outside
    return 0


def median_interval(samples: Sequence[float]) -> tuple[float, float, float]:
    """The median and its 95 % interval from order statistics, which assumes no distribution.

    With fewer than six samples no such interval exists: the extremes stand in for it.
    Raises ValueError without samples.
    """
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    count = len(ordered)
    low = left_out(count)
    return median(ordered), ordered[low], ordered[count - 1 - low]


def paired_ratio(samples: Sequence[float], baseline: Sequence[float]) -> tuple[float, float, float]:
    """Median of the ratios round by round, with its 95 % interval; over the rounds that both have."""
    logs = [math.log(a / b) for a, b in zip(samples, baseline, strict=False)]
    middle, low, high = median_interval(logs)
    return math.exp(middle), math.exp(low), math.exp(high)
