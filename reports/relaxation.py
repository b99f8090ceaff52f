"""The nearest budgets under which something surely fits, with its whole band, where nothing does."""

from collections.abc import Mapping, Sequence

from reports.answer import Candidate, Nearest, Relaxation
from reports.question import Budget, Limit


def nearest_budgets(candidates: Sequence[Candidate], budget: Budget) -> Nearest:
    """The smallest rise of each limit alone, and of all of them together."""
    known = [one for one in candidates if budget.limits().keys() <= one.figures.needs().keys()]
    return Nearest(
        alone={limit: _alone(known, budget, limit) for limit in budget.limits()},
        joint=_nearest(known, budget),
    )


def _alone(known: Sequence[Candidate], budget: Budget, limit: Limit) -> Relaxation | None:
    """Among the variants that break no other limit, the one that needs the least of this one."""
    return _nearest([one for one in known if set(_factors(one, budget)) == {limit}], budget)


def _nearest(known: Sequence[Candidate], budget: Budget) -> Relaxation | None:
    if not known:
        return None
    best = min(known, key=lambda one: (_largest(_factors(one, budget)), one.figures.seconds.value, one.label))
    raised = budget.raised_to(best.figures.needs())
    factor = _largest(_factors(best, budget))
    return Relaxation(best.variant, best.parameters, raised, factor, raised.options())


def _factors(candidate: Candidate, budget: Budget) -> dict[Limit, float]:
    """By how much each limit is broken; limits that are kept are left out."""
    needs = candidate.figures.needs()
    return {name: needs[name] / limit for name, limit in budget.limits().items() if needs[name] > limit}


def _largest(factors: Mapping[Limit, float]) -> float:
    return max(factors.values(), default=1.0)
