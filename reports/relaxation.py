"""The nearest budgets under which something surely fits, with its whole band, or likely, with its values."""

from collections.abc import Callable, Mapping, Sequence

from reports.answer import Candidate, Nearest, Relaxation
from reports.question import Budget, Limit

Needs = Callable[[Candidate], dict[Limit, float]]
"""What a candidate must be granted, by limit."""


def nearest_budgets(candidates: Sequence[Candidate], budget: Budget) -> Nearest:
    """The smallest rise of each limit alone, and of all of them together."""
    known = [one for one in candidates if budget.limits().keys() <= one.figures.needs().keys()]
    alone, likely = (
        {limit: _alone(known, budget, limit, needs) for limit in budget.limits()} for needs in (_surely, _likely)
    )
    return Nearest(alone, _nearest(known, budget, _surely), likely, _nearest(known, budget, _likely))


def _surely(candidate: Candidate) -> dict[Limit, float]:
    return candidate.figures.needs()


def _likely(candidate: Candidate) -> dict[Limit, float]:
    return {name: figure.value for name, figure in candidate.figures.limited().items()}


def _alone(known: Sequence[Candidate], budget: Budget, limit: Limit, needs: Needs) -> Relaxation | None:
    """Among the variants that break no other limit, the one that needs the least of this one."""
    return _nearest([one for one in known if set(_factors(one, budget, needs)) == {limit}], budget, needs)


def _nearest(known: Sequence[Candidate], budget: Budget, needs: Needs) -> Relaxation | None:
    if not known:
        return None
    best = min(known, key=lambda one: (_largest(_factors(one, budget, needs)), one.figures.seconds.value, one.label))
    raised = budget.raised_to(needs(best))
    factor = _largest(_factors(best, budget, needs))
    return Relaxation(best.variant, best.parameters, raised, factor, raised.options())


def _factors(candidate: Candidate, budget: Budget, needs: Needs) -> dict[Limit, float]:
    """By how much each limit is broken; limits that are kept are left out."""
    needed = needs(candidate)
    return {name: needed[name] / limit for name, limit in budget.limits().items() if needed[name] > limit}


def _largest(factors: Mapping[Limit, float]) -> float:
    return max(factors.values(), default=1.0)
