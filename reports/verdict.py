"""The rule of a choice: who keeps a budget, and in which order those stand who do.

With its whole band inside a limit a variant keeps it; with its value inside, it likely does; with the lower end
inside only, it may; else it breaks it. What is not known breaks a limit. Those who keep every limit come before
those who likely do, each by time, but for some that are much faster and nearly sure (`AHEAD`). Where others are as
fast as the fastest within the noise, that is their bands overlap and their values differ by at most a tenth, an exact
one goes first. An approximation that is no better than the mean of V is none: unless an error limit admits it, it
stands behind all that are better, in the same order.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from reports.answer import Candidate, Rejected
from reports.curve import Reason
from reports.interpolation import Figure
from reports.quantities import BYTES_PER_MIB, error_text, factor_text, mib_text, milliseconds_text, seconds_text
from reports.question import Budget, Limit

TIE_WITHIN: Final = 1.1
"""Times that differ by a larger factor are no tie, however noisy they are."""

AHEAD: Final = 1.25
"""Who likely fits goes before those who surely do where it is faster by more than this and has `ROOM`."""

ROOM: Final = 1 / 3
"""The share of the upper half of each doubted band that must lie inside its limit: about seven in ten hold."""


def judged(candidates: Sequence[Candidate], budget: Budget) -> tuple[list[Candidate], list[Rejected]]:
    """Who fits, with their doubts, and who does not, with every reason; both by time."""
    fitting, broken = [], []
    for candidate in sorted(candidates, key=_speed):
        judgements = list(_judgements(candidate, budget))
        reasons = tuple(reason for kept, reason in judgements if kept != "likely")
        if reasons:
            may_fit = all(kept != "breaks" for kept, _ in judgements)
            broken.append(
                Rejected(candidate.variant, candidate.parameters, candidate.exact, reasons, candidate.figures, may_fit)
            )
        else:
            doubts = tuple(reason for _, reason in judgements)
            fitting.append(replace(candidate, doubts=doubts, room=_room(candidate, budget)))
    return fitting, broken


def ranked(fitting: Sequence[Candidate], budget: Budget) -> tuple[Candidate, ...]:
    """Best first; without an error limit those that are no better than the mean of V come last."""
    if budget.max_error is not None:
        return _ranked(fitting)
    better, others = ([one for one in fitting if one.beats_mean is wanted] for wanted in (True, False))
    return *_ranked(better), *_ranked(others)


def _ranked(fitting: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Those who surely fit before those who likely do, see `AHEAD`; within each by time, ties led by an exact one."""
    sure = _by_time([one for one in fitting if not one.doubts])
    likely = _by_time([one for one in fitting if one.doubts])
    ahead = [one for one in likely if sure and _goes_ahead(one, sure[0])]
    return (*ahead, *sure, *(one for one in likely if one not in ahead))


def _goes_ahead(likely: Candidate, sure: Candidate) -> bool:
    return likely.room >= ROOM and AHEAD * likely.figures.seconds.value < sure.figures.seconds.value


def _room(candidate: Candidate, budget: Budget) -> float:
    """The least share of the upper half of a band that is inside its limit, of those that reach beyond theirs."""
    known = candidate.figures.limited()
    return min((_inside(known[name], limit) for name, limit in budget.limits().items()), default=1.0)


def _inside(figure: Figure, limit: float) -> float:
    """On a logarithmic scale, which a band without an end or from zero has none of."""
    if figure.most <= limit:
        return 1.0
    if not 0 < figure.value < figure.most < math.inf:
        return 0.0
    return math.log(limit / figure.value) / math.log(figure.most / figure.value)


def _judgements(candidate: Candidate, budget: Budget) -> Iterator[tuple[str, Reason]]:
    """For each limit that is not surely kept, how it stands and why."""
    known = candidate.figures.limited()
    gaps = {"error": candidate.figures.error_gap, "memory": candidate.figures.memory_gap}
    for name, limit in budget.limits().items():
        figure = known.get(name)
        if figure is None:
            gap = gaps.get(name)
            yield "breaks", Reason(name, f"{name} not known: {gap}" if gap else f"{name} not measured")
        elif figure.most > limit:
            yield _doubt(name, figure, limit)


def _doubt(name: Limit, figure: Figure, limit: float) -> tuple[str, Reason]:
    factor = figure.value / limit
    amount, allowed = _amount(name, figure.value), _limit_text(name, limit)
    if figure.value <= limit:
        text = f"{amount}, but its band reaches up to {_value_text(name, figure.most)}: likely within {allowed}"
        return "likely", Reason(name, text, figure.most / limit)
    text = f"{amount}, {factor_text(factor)} times the limit of {allowed}"
    if figure.least <= limit:
        return "may", Reason(name, f"{text}; may fit: its band begins at {_value_text(name, figure.least)}", factor)
    return "breaks", Reason(name, text, factor)


def _amount(name: Limit, value: float) -> str:
    verb = {"time": "takes", "memory": "needs", "error": "has an error of"}[name]
    return f"{verb} {_value_text(name, value)}"


def _value_text(name: Limit, value: float) -> str:
    return {"time": seconds_text, "memory": lambda size: f"{mib_text(size)} MiB", "error": error_text}[name](value)


def _limit_text(name: Limit, limit: float) -> str:
    if name == "time":
        return milliseconds_text(limit)
    return f"{limit / BYTES_PER_MIB:g} MiB" if name == "memory" else f"{limit:g}"


def _by_time(fitting: Sequence[Candidate]) -> tuple[Candidate, ...]:
    if not fitting:
        return ()
    fastest, *others = sorted(fitting, key=_speed)
    tied = [other for other in others if _tie(fastest, other)]
    if not tied:
        return fastest, *others
    marked = [replace(one, tied=True) for one in (fastest, *tied)]
    first = next((one for one in marked if one.exact), marked[0])
    rest = [*(one for one in marked if one is not first), *(other for other in others if other not in tied)]
    return first, *sorted(rest, key=_speed)


def _tie(fastest: Candidate, other: Candidate) -> bool:
    mine, theirs = fastest.figures.seconds, other.figures.seconds
    return theirs.least <= mine.most and theirs.value <= TIE_WITHIN * mine.value


def _speed(candidate: Candidate) -> tuple[float, str]:
    return candidate.figures.seconds.value, candidate.label
