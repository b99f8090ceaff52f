"""Which variant fits a budget, from the measured rows of one machine."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from reports.answer import Answer, Candidate, Rejected
from reports.binding import binding_limit
from reports.crossover import crossover_of
from reports.curve import Curve, Reason, Unavailable, curves
from reports.notes import notes_on
from reports.quantities import BYTES_PER_MIB, error_text, factor_text, mib_text, seconds_text
from reports.question import Budget, Limit, Question
from reports.records import ResultsError, Row
from reports.relaxation import nearest_budgets
from reports.shape import Shape

__all__ = ["Answer", "Budget", "Question", "choose"]

_SHAPES_NAMED: Final = 5


def choose(rows: Sequence[Row], question: Question, budget: Budget) -> Answer:
    """Rank what fits the budget, and give every reason for what does not.

    Only rows of exactly the asked shape count. Raises `ResultsError` where the rows cannot answer:
    several machines, another shape, a length beyond the measured ones, inputs that were not measured.
    """
    machine = _one_machine(rows)
    found = curves(rows, question.shape)
    _require_coverage(rows, found, question)
    candidates, failed = _with_figures(found, question)
    fitting, broken = _judged(candidates, budget)
    ranked = _ranked(fitting)
    return Answer(
        question=question,
        budget=budget,
        machine=machine,
        fits=bool(ranked),
        fitting=ranked,
        rejected=(*broken, *failed),
        binding=binding_limit(ranked, broken, budget),
        crossover=crossover_of(ranked[0], candidates, found, question.tokens) if ranked else None,
        nearest=None if ranked else nearest_budgets(candidates, budget),
        notes=tuple(notes_on(rows, candidates, ranked, question, budget)),
    )


def _one_machine(rows: Sequence[Row]) -> str:
    machines = sorted({row.machine for row in rows})
    if len(machines) != 1:
        raise ResultsError(f"the rows come from {len(machines)} machines ({', '.join(machines)}): use --machine")
    return machines[0]


def _require_coverage(rows: Sequence[Row], found: Sequence[Curve], question: Question) -> None:
    """Raise `ResultsError` where no curve can say anything about the question."""
    if not found:
        raise ResultsError(_other_shapes(rows, question.shape))
    kinds = sorted({inputs for curve in found for inputs, _ in curve.points})
    if question.inputs is not None and question.inputs not in kinds:
        raise ResultsError(f"nothing was measured on {question.inputs!r} inputs, only on {', '.join(kinds)}")
    lengths = sorted({length for curve in found for length in curve.rows()})
    if not lengths:
        raise ResultsError(f"no time was measured for {question.shape.describe()}")
    if not lengths[0] <= question.tokens <= lengths[-1]:
        span = f"{lengths[0]} to {lengths[-1]}" if len(lengths) > 1 else f"{lengths[0]}"
        wider = f"{min(lengths[0], question.tokens)}:{max(lengths[-1], question.tokens)}"
        raise ResultsError(
            f"{question.tokens} tokens is beyond the measured lengths ({span}) and nothing is extrapolated; "
            f"`attnscape run --tokens {wider}` measures it"
        )


def _other_shapes(rows: Sequence[Row], wanted: Shape) -> str:
    shapes = sorted({row.case.shape for row in rows}, key=lambda shape: (wanted.distance(shape), shape.describe()))
    texts = [", ".join(shape.differences(wanted)) for shape in shapes[:_SHAPES_NAMED]]
    more = f"; and {len(shapes) - _SHAPES_NAMED} more" if len(shapes) > _SHAPES_NAMED else ""
    measured = "; ".join(texts)
    return f"nothing was measured for {wanted.describe()}; measured instead, closest first: {measured}{more}"


def _with_figures(found: Sequence[Curve], question: Question) -> tuple[list[Candidate], list[Rejected]]:
    candidates, failed = [], []
    for curve in found:
        parameters = dict(curve.parameters)
        try:
            figures = curve.figures_at(question.tokens, question.inputs)
        except Unavailable as error:
            failed.append(Rejected(curve.variant, parameters, curve.exact, error.reasons))
        else:
            candidates.append(Candidate(curve.variant, parameters, curve.exact, figures))
    return candidates, failed


def _judged(candidates: Sequence[Candidate], budget: Budget) -> tuple[list[Candidate], list[Rejected]]:
    fitting, broken = [], []
    for candidate in sorted(candidates, key=_speed):
        reasons = _broken_limits(candidate, budget)
        if reasons:
            broken.append(
                Rejected(candidate.variant, candidate.parameters, candidate.exact, reasons, candidate.figures)
            )
        else:
            fitting.append(candidate)
    return fitting, broken


def _broken_limits(candidate: Candidate, budget: Budget) -> tuple[Reason, ...]:
    needs = candidate.figures.needs()
    reasons = []
    for name, limit in budget.limits().items():
        need = needs.get(name)
        if need is None:
            gap = candidate.figures.error_gap if name == "error" else ""
            reasons.append(Reason(name, f"{name} not measured" + (f": {gap}" if gap else "")))
        elif need > limit:
            reasons.append(Reason(name, _excess(name, need, limit), need / limit))
    return tuple(reasons)


def _excess(name: Limit, need: float, limit: float) -> str:
    factor = f"{factor_text(need / limit)} times the limit of"
    if name == "time":
        return f"takes {seconds_text(need)}, {factor} {limit * 1e3:g} ms"
    if name == "memory":
        return f"needs {mib_text(need)} MiB, {factor} {limit / BYTES_PER_MIB:g} MiB"
    return f"error {error_text(need)}, {factor} {limit:g}"


def _ranked(fitting: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """By time; but of those that are as fast as the fastest within the noise, an exact one comes first."""
    if not fitting:
        return ()
    fastest, *others = sorted(fitting, key=_speed)
    tied = [other for other in others if _overlap(fastest, other)]
    if not tied:
        return fastest, *others
    marked = [replace(one, tied=True) for one in (fastest, *tied)]
    first = next((one for one in marked if one.exact), marked[0])
    rest = [*(one for one in marked if one is not first), *(other for other in others if other not in tied)]
    return first, *sorted(rest, key=_speed)


def _overlap(one: Candidate, other: Candidate) -> bool:
    mine, theirs = one.figures, other.figures
    return mine.seconds_low <= theirs.seconds_high and theirs.seconds_low <= mine.seconds_high


def _speed(candidate: Candidate) -> tuple[float, str]:
    return candidate.figures.seconds.value, candidate.label
