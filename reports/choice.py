"""Which variant fits a budget, from the measured rows of one machine; `reports.verdict` holds the rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from reports.answer import COMPARED_ONLY, Answer, Candidate, Outcome, Rejected
from reports.binding import binding_limit
from reports.cards import Card, Work
from reports.carried import carried, too_large
from reports.ceilings import machine_card
from reports.crossover import crossovers_of
from reports.curve import Curve, Figures, Reason, Unavailable, curves
from reports.declared_costs import Declare, declare_nothing
from reports.floors import Floors, floors_of
from reports.forecast import Forecast
from reports.interpolation import FURTHEST
from reports.notes import notes_on, rounding_note
from reports.question import Budget, Question
from reports.records import ResultsError, Row
from reports.relaxation import nearest_budgets
from reports.session_drift import session_drift
from reports.shape import Shape
from reports.verdict import judged, ranked

__all__ = ["Answer", "Budget", "Question", "choose"]

_SHAPES_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Cards:
    """The card that was measured, and the one that is asked for; None where it is not known."""

    source: Card | None
    target: Card | None

    @property
    def asked(self) -> Card | None:
        return self.target or self.source

    @property
    def differ(self) -> bool:
        return self.target is not None and self.target != self.source


def choose(
    rows: Sequence[Row],
    question: Question,
    budget: Budget,
    *,
    description: Mapping[str, Any] | None = None,
    target: Card | None = None,
    declare: Declare = declare_nothing,
) -> Answer:
    """Rank what fits the budget, give every reason for what does not, and prove what nothing can.

    Only rows of exactly the asked shape count. `description` is that of the measured machine; `target` the
    card that is asked for, where that is another one; `declare` tells costs where the rows do not. Without
    rows, only a target's floors answer. Raises `ResultsError` where the rows cannot answer and no floor does.
    """
    machine = _one_machine(rows) if rows or target is None else None
    cards = Cards(machine_card(description or {}, rows, question.device), target)
    floors = floors_of(question, budget, cards.asked) if cards.asked else None
    found = curves(rows, question.shape)
    try:
        _require_coverage(rows, found, question)
    except ResultsError as error:
        proved = floors is not None and floors.proves("any")
        if target is None and not proved:
            raise
        return _unmeasured(question, budget, machine, cards, floors, str(error))
    forecast = Forecast(found, question.shape, declare, cards.source, session_drift(rows))
    candidates, failed = with_figures(forecast, question, cards)
    fitting, broken = judged(candidates, budget)
    order = ranked(fitting, budget)
    floors, contradiction = _without_contradiction(floors, order)
    sure = any(not one.doubts for one in order)
    return Answer(
        question=question,
        budget=budget,
        machine=machine,
        card=target.name if target is not None and cards.differ else None,
        outcome=_outcome(order, candidates, floors),
        fits=bool(order),
        fitting=order,
        rejected=(*broken, *failed),
        binding=binding_limit(order, broken, budget),
        crossovers=() if cards.differ else crossovers_of(order, candidates, forecast, question),
        nearest=None if sure else nearest_budgets(candidates, budget),
        floors=floors,
        notes=(*contradiction, *notes_on(rows, candidates, order, question, budget)),
    )


def _one_machine(rows: Sequence[Row]) -> str:
    machines = sorted({row.machine for row in rows})
    if len(machines) != 1:
        raise ResultsError(f"the rows come from {len(machines)} machines ({', '.join(machines)}): use --machine")
    return machines[0]


def _require_coverage(rows: Sequence[Row], found: Sequence[Curve], question: Question) -> None:
    """Raise `ResultsError` where no curve can say anything about the question."""
    if not rows:
        raise ResultsError("there are no results, so that only floors are known; `attnscape run` measures")
    if not found:
        raise ResultsError(_other_shapes(rows, question.shape))
    kinds = sorted({inputs for curve in found for inputs, _ in curve.points})
    if question.inputs is not None and question.inputs not in kinds:
        raise ResultsError(f"nothing was measured on {question.inputs!r} inputs, only on {', '.join(kinds)}")
    lengths = sorted({length for curve in found for length in curve.rows()})
    if not lengths:
        raise ResultsError(f"no time was measured for {question.shape.describe()}")
    if not lengths[0] <= question.tokens <= FURTHEST * lengths[-1]:
        span = f"{lengths[0]} to {lengths[-1]}" if len(lengths) > 1 else f"{lengths[0]}"
        how = "below" if question.tokens < lengths[0] else f"more than {FURTHEST} times beyond"
        raise ResultsError(
            f"{question.tokens} tokens is {how} the measured lengths ({span}), and nothing is foretold there; "
            f"`attnscape run --tokens {question.tokens}` measures it"
        )


def _other_shapes(rows: Sequence[Row], wanted: Shape) -> str:
    other = replace(wanted, causal=not wanted.causal)
    if wanted.mode == "decode" and any(row.case.shape == other for row in rows):
        missing, there = ("--causal", "--no-causal")[:: 1 if wanted.causal else -1]
        return (
            f"decode was measured with {there}, not with {missing}: exact attention of one query sees the same keys "
            f"under both, so ask with {there}; what a window sees may differ"
        )
    shapes = sorted({row.case.shape for row in rows}, key=lambda shape: (wanted.distance(shape), shape.describe()))
    texts = [", ".join(shape.differences(wanted)) for shape in shapes[:_SHAPES_NAMED]]
    more = f"; and {len(shapes) - _SHAPES_NAMED} more" if len(shapes) > _SHAPES_NAMED else ""
    measured = "; ".join(texts)
    return f"nothing was measured for {wanted.describe()}; measured instead, closest first: {measured}{more}"


def with_figures(forecast: Forecast, question: Question, cards: Cards) -> tuple[list[Candidate], list[Rejected]]:
    """Who has figures at the asked length, whatever the budget, and who has none, with every reason."""
    candidates, failed = [], []
    for curve in forecast.curves:
        parameters = dict(curve.parameters)
        try:
            figures = _figures(forecast, curve, question, cards)
        except Unavailable as error:
            failed.append(Rejected(curve.variant, parameters, curve.exact, error.reasons))
            continue
        excess = too_large(figures, cards.asked) if cards.asked else None
        if not curve.attention:
            failed.append(Rejected(curve.variant, parameters, curve.exact, (COMPARED_ONLY,), figures))
        elif excess is not None:
            failed.append(Rejected(curve.variant, parameters, curve.exact, (excess,), figures))
        else:
            candidates.append(Candidate(curve.variant, parameters, curve.exact, figures))
    return candidates, failed


def _figures(forecast: Forecast, curve: Curve, question: Question, cards: Cards) -> Figures:
    """The figures at the asked length, on the asked card. Raises `Unavailable`."""
    figures = forecast.figures_at(curve, question.tokens, question.inputs)
    if cards.target is None or not cards.differ:
        return figures
    if cards.source is None or question.device == "cpu":
        measured = "a CPU" if question.device == "cpu" else "a machine that was not described"
        raise Unavailable([Reason("unpredictable", f"times of {measured} are not carried to {cards.target.name}")])
    work = Work(forecast.costs(curve).flops(question.tokens), question.input_output_bytes)
    return carried(figures, work, question.dtype, cards.source, cards.target)


def _without_contradiction(floors: Floors | None, order: Sequence[Candidate]) -> tuple[Floors | None, tuple[str, ...]]:
    """No floor stands against a measurement that is below it: then the card's figures are too low."""
    if floors is None or not floors.proofs:
        return floors, ()
    exact = any(one.exact for one in order)
    if not (floors.proves("any") and order) and not (floors.proves("exact") and exact):
        return floors, ()
    return None, (f"the floors of {floors.card} are left out: something was faster than {floors.source} allow",)


def _outcome(order: Sequence[Candidate], candidates: Sequence[Candidate], floors: Floors | None) -> Outcome:
    if order:
        return "likely" if order[0].doubts else "fits"
    if floors is not None and floors.proves("any"):
        return "impossible"
    return "nothing fits" if candidates else "unknown"


def _unmeasured(
    question: Question, budget: Budget, machine: str | None, cards: Cards, floors: Floors | None, gap: str
) -> Answer:
    """The answer of the floors alone; `gap` says why no row counts."""
    return Answer(
        question=question,
        budget=budget,
        machine=machine,
        card=cards.target.name if cards.target else None,
        outcome=_outcome((), (), floors),
        fits=False,
        fitting=(),
        rejected=(),
        binding=None,
        crossovers=(),
        nearest=None,
        floors=floors,
        notes=(gap, *rounding_note((), question, budget)),
    )
