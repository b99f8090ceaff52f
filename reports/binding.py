"""Which limit binds: the one that keeps out the most variants which would fit without it.

Ties go to the limit that rejects more variants, then to the one of which the winner uses the most.
No limit binds where none rejects anything.
"""

from collections.abc import Sequence

from reports.answer import Binding, Candidate, Rejected
from reports.question import Budget, Limit


def binding_limit(ranked: Sequence[Candidate], broken: Sequence[Rejected], budget: Budget) -> Binding | None:
    """The binding limit of a budget, given what fits it and what breaks it."""
    figures = ranked[0].figures.limited() if ranked else {}
    needs = {name: figure.value for name, figure in figures.items()}
    found = [_binding(name, limit, needs.get(name), broken) for name, limit in budget.limits().items()]
    most = max(found, key=_weight, default=None)
    return most if most is not None and most.rejected else None


def _binding(name: Limit, limit: float, need: float | None, broken: Sequence[Rejected]) -> Binding:
    out = [one for one in broken if any(reason.kind == name for reason in one.reasons)]
    alone = tuple(one.label for one in out if len(one.reasons) == 1)
    return Binding(name, alone, len(out), None if need is None else need / limit)


def _weight(binding: Binding) -> tuple[int, int, float]:
    return len(binding.alone), binding.rejected, binding.used or 0.0
