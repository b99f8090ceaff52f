"""The length at which two variants take the same time, inside the lengths at which both are known."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from reports.answer import Candidate, Crossover
from reports.curve import Curve, Unavailable
from reports.forecast import Forecast
from reports.interpolation import Figure, Provenance, time_at
from reports.question import Question


def crossovers_of(
    ranked: Sequence[Candidate], candidates: Sequence[Candidate], forecast: Forecast, question: Question
) -> tuple[Crossover, ...]:
    """The winner against the fastest variant of the other kind, exact or approximate, and against the runner-up.

    A rival need not fit the budget. Of several crossings the one closest to the asked length counts; there is
    none where fewer than two lengths are known of both.
    """
    if not ranked:
        return ()
    winner, *others = ranked
    other_kind = [one for one in candidates if one.exact != winner.exact]
    rivals = [min(other_kind, key=lambda one: one.figures.seconds.value)] if other_kind else []
    rivals += [one for one in others[:1] if one.label not in {rival.label for rival in rivals}]
    by_label = {curve.label: curve for curve in forecast.curves}
    times = {one.label: _times(by_label[one.label], forecast, question.tokens) for one in (winner, *rivals)}
    found = (
        _crossing(winner.label, one.label, times[winner.label], times[one.label], question.tokens) for one in rivals
    )
    return tuple(crossover for crossover in found if crossover is not None)


def _times(curve: Curve, forecast: Forecast, tokens: int) -> dict[int, Figure]:
    """Every measured time; where a longer one is asked for, those at it and at twice and four times the last, too."""
    times = {length: Figure(seconds) for length, seconds in curve.seconds().items()}
    last = max(times, default=tokens)
    for length in sorted({tokens, 2 * last, 4 * last}) if tokens > last else ():
        try:
            times[length] = forecast.figures_at(curve, length).seconds
        except Unavailable:
            break
    return times


def _crossing(
    one: str, other: str, mine: Mapping[int, Figure], theirs: Mapping[int, Figure], near: int
) -> Crossover | None:
    if not mine or not theirs:
        return None
    shortest, longest = max(min(mine), min(theirs)), min(max(mine), max(theirs))
    lengths = sorted(length for length in {*mine, *theirs} if shortest <= length <= longest)
    if len(lengths) < 2:
        return None
    leads = [math.log(_seconds(mine, at) / _seconds(theirs, at)) for at in lengths]
    crossings = [
        (_zero(a, b, lead_a, lead_b), lead_a, b)
        for (a, lead_a), (b, lead_b) in pairwise(zip(lengths, leads, strict=True))
        if (lead_a < 0) != (lead_b < 0)
    ]
    if not crossings:
        faster = one if leads[-1] < 0 else other
        return Crossover(one, other, None, faster, faster, shortest, longest, _provenance(mine, theirs, longest))
    tokens, lead, end = min(crossings, key=lambda crossing: abs(math.log(crossing[0] / near)))
    below, above = (one, other) if lead < 0 else (other, one)
    return Crossover(one, other, round(tokens), below, above, shortest, longest, _provenance(mine, theirs, end))


def _seconds(times: Mapping[int, Figure], length: int) -> float:
    return time_at({at: figure.value for at, figure in times.items()}, length).value


def _provenance(mine: Mapping[int, Figure], theirs: Mapping[int, Figure], end: int) -> Provenance:
    """Extrapolated where one of the times up to `end` is."""
    used = [figure for times in (mine, theirs) for at, figure in times.items() if at <= end]
    return "extrapolated" if any(figure.provenance == "extrapolated" for figure in used) else "interpolated"


def _zero(start: int, end: int, lead_start: float, lead_end: float) -> float:
    """Where the straight line between two leads is zero, on a logarithmic axis of lengths."""
    share = lead_start / (lead_start - lead_end)
    return math.exp(math.log(start) + share * (math.log(end) - math.log(start)))
