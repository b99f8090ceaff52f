"""The length at which two variants take the same time, inside the measured lengths of both."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from reports.answer import Candidate, Crossover
from reports.curve import Curve
from reports.interpolation import time_at


def crossover_of(
    winner: Candidate, candidates: Sequence[Candidate], found: Sequence[Curve], tokens: int
) -> Crossover | None:
    """The winner against the fastest variant of the other kind: exact against approximate, or the reverse.

    The rival need not fit the budget. Of several crossings the one closest to the asked length counts.
    None where there is no rival, or fewer than two lengths at which both were measured.
    """
    rivals = [one for one in candidates if one.exact != winner.exact]
    if not rivals:
        return None
    rival = min(rivals, key=lambda one: one.figures.seconds.value)
    by_label = {curve.label: curve.seconds() for curve in found}
    return _crossing(winner.label, rival.label, by_label[winner.label], by_label[rival.label], tokens)


def _crossing(
    one: str, other: str, mine: Mapping[int, float], theirs: Mapping[int, float], near: int
) -> Crossover | None:
    shortest, longest = max(min(mine), min(theirs)), min(max(mine), max(theirs))
    lengths = sorted(length for length in {*mine, *theirs} if shortest <= length <= longest)
    if len(lengths) < 2:
        return None
    leads = [math.log(time_at(mine, at).value / time_at(theirs, at).value) for at in lengths]
    crossings = [
        (_zero(a, b, lead_a, lead_b), lead_a)
        for (a, lead_a), (b, lead_b) in pairwise(zip(lengths, leads, strict=True))
        if (lead_a < 0) != (lead_b < 0)
    ]
    if not crossings:
        faster = one if leads[-1] < 0 else other
        return Crossover(one, other, None, faster, faster, shortest, longest)
    tokens, lead = min(crossings, key=lambda crossing: abs(math.log(crossing[0] / near)))
    below, above = (one, other) if lead < 0 else (other, one)
    return Crossover(one, other, round(tokens), below, above, shortest, longest)


def _zero(a: int, b: int, lead_a: float, lead_b: float) -> float:
    """Where the lead is zero: it is linear in the logarithm of the length, as `time_at` is."""
    share = lead_a / (lead_a - lead_b)
    return math.exp(math.log(a) + share * (math.log(b) - math.log(a)))
