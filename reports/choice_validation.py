"""How good the choice is: under random budgets, without the rows of a length, held against those rows.

Regret is the true time of the variant that was chosen over that of the fastest one that truly keeps the budget.
A claim is a budget that `choose` said is kept, or likely kept; it held if the true figures keep it.
"""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from typing import Any, Final, Self

from reports.answer import Answer
from reports.choice import choose
from reports.curve import TIMED_INPUTS, Curve, Figures, Unavailable, curves
from reports.declared_costs import Declare, declare_nothing
from reports.question import LIMITS, Budget, Limit, Question
from reports.records import ResultsError, Row
from reports.shape import Shape
from reports.text_table import Table

KINDS: Final = ("between", "beyond")

REACH: Final = 1.5
"""Limits are drawn evenly on logarithmic axes, from this factor below the least true figure to it above the most."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One budget; `regret` is None where nothing was chosen, or what was chosen or all else is not feasible."""

    shape: str
    tokens: int
    held_out: str
    outcome: str
    chosen: str | None
    best: str | None
    held: bool | None
    regret: float | None


@dataclass(frozen=True, slots=True)
class RegretScore:
    """What holds for a group of trials; None where no trial says."""

    group: str
    trials: int
    claims: int
    claims_held: float | None
    sure_claims: int
    sure_claims_held: float | None
    compared: int
    median_regret: float | None
    p95_regret: float | None
    missed: int


@dataclass(frozen=True, slots=True)
class BandScore:
    """How many figures of held-out lengths were given, how far they missed, and the share inside their bands."""

    held_out: str
    limit: Limit
    figures: int
    median_miss: float | None
    inside: float | None


@dataclass(frozen=True, slots=True)
class RegretReport:
    """Every trial, the scores of all of them and by what was held out, and how the bands held."""

    trials: tuple[Trial, ...]
    scores: tuple[RegretScore, ...]
    bands: tuple[BandScore, ...]


def validate_choice(
    rows: Sequence[Row],
    description: Mapping[str, Any],
    budgets: int,
    seed: int = 0,
    declare: Declare = declare_nothing,
) -> RegretReport:
    """Hold out each inner length, and the last one, of each shape that has enough of them. Raises `ResultsError`."""
    draw = random.Random(seed)
    cases = [_HeldOut.of(rows, shape, tokens, kind) for shape, tokens, kind in _hold_outs(rows)]
    if not cases:
        raise ResultsError("no shape was measured at three lengths or more: nothing can be held out")
    ask = partial(choose, description=description, declare=declare)
    trials = [trial for case in cases for trial in case.trials(ask, budgets, draw)]
    groups = {"all": trials} | {kind: [one for one in trials if one.held_out == kind] for kind in KINDS}
    return RegretReport(
        tuple(trials),
        tuple(_score(name, found) for name, found in groups.items()),
        tuple(_bands(cases, ask)),
    )


def _hold_outs(rows: Sequence[Row]) -> Iterator[tuple[Shape, int, str]]:
    shapes = sorted({row.case.shape for row in rows}, key=Shape.describe)
    for shape in shapes:
        lengths = sorted({length for curve in curves(rows, shape) for length in curve.seconds()})
        if len(lengths) >= 3:
            yield from ((shape, length, "between") for length in lengths[1:-1])
            yield shape, lengths[-1], "beyond"


@dataclass(frozen=True)
class _HeldOut:
    """A length whose rows are taken away: what is left, and the true figures of each variant."""

    kind: str
    question: Question
    seen: tuple[Row, ...]
    truths: dict[str, Figures]

    @classmethod
    def of(cls, rows: Sequence[Row], shape: Shape, tokens: int, kind: str) -> Self:
        seen = tuple(row for row in rows if row.case.shape != shape or _is_known(row, tokens, kind))
        return cls(kind, _question(shape, tokens), seen, dict(_truths(curves(rows, shape), tokens)))

    def trials(self, ask: Callable[..., Answer], budgets: int, draw: random.Random) -> Iterator[Trial]:
        for _ in range(budgets if self.truths else 0):
            budget = _drawn(list(self.truths.values()), draw)
            yield _trial(ask(self.seen, self.question, budget), self.truths, self.kind)


def _bands(cases: Sequence[_HeldOut], ask: Callable[..., Answer]) -> Iterator[BandScore]:
    found: dict[tuple[str, Limit], list[tuple[float, bool]]] = defaultdict(list)
    for case in cases:
        answer = ask(case.seen, case.question, Budget())
        given = {one.label: one.figures for one in answer.fitting}
        for label, truth in case.truths.items():
            for limit, figure in given[label].limited().items() if label in given else ():
                true = truth.limited()[limit].value
                miss = abs(figure.value / true - 1) if true else 0.0
                found[case.kind, limit].append((miss, figure.least <= true <= figure.most))
    for kind in KINDS:
        for limit in LIMITS:
            points = found[kind, limit]
            misses = [miss for miss, _ in points]
            inside = _share([inside for _, inside in points])
            yield BandScore(kind, limit, len(points), median(misses) if misses else None, inside)


def _is_known(row: Row, tokens: int, kind: str) -> bool:
    """Of the held-out length nothing is known, and where it is the last one, of no longer one either."""
    return row.case.length != tokens if kind == "between" else row.case.length < tokens


def _question(shape: Shape, tokens: int) -> Question:
    return Question(
        tokens=tokens,
        batch=shape.batch,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        dtype=shape.dtype,
        device=shape.device,
        causal=shape.causal,
        mode=shape.mode,
        inputs=TIMED_INPUTS,
    )


def _truths(found: Iterable[Curve], tokens: int) -> Iterator[tuple[str, Figures]]:
    for curve in found:
        if not curve.attention:
            continue
        try:
            figures = curve.figures_at(tokens, TIMED_INPUTS)
        except Unavailable:
            continue
        if figures.seconds.provenance == "measured" and len(figures.limited()) == 3:
            yield curve.label, figures


def _drawn(truths: Sequence[Figures], draw: random.Random) -> Budget:
    """One to three limits, each around the true figures of the variants."""
    limits: dict[Limit, float] = {}
    for name in draw.sample(LIMITS, draw.randint(1, len(LIMITS))):
        values = [figures.limited()[name].value for figures in truths]
        low, high = math.log(max(min(values), 1e-12) / REACH), math.log(max(values) * REACH)
        limits[name] = math.exp(draw.uniform(low, high))
    return Budget(limits.get("time"), limits.get("memory"), limits.get("error"))


def _trial(answer: Answer, truths: Mapping[str, Figures], kind: str) -> Trial:
    limits = answer.budget.limits()

    def keeps(figures: Figures) -> bool:
        true = figures.limited()
        return all(true[name].value <= limit for name, limit in limits.items())

    kept = {label: one for label, one in truths.items() if keeps(one)}
    feasible = {label: one.seconds.value for label, one in _approximations(kept, answer.budget).items()}
    best = min(feasible, key=lambda label: feasible[label], default=None)
    chosen = answer.fitting[0].label if answer.fitting else None
    held = regret = None
    if chosen is not None and chosen in truths:
        held = keeps(truths[chosen])
        regret = feasible[chosen] / min(feasible.values()) if chosen in feasible else None
    question = answer.question
    return Trial(question.shape.describe(), question.tokens, kind, answer.outcome, chosen, best, held, regret)


def _approximations(kept: Mapping[str, Figures], budget: Budget) -> Mapping[str, Figures]:
    """Without an error limit those that beat the mean of V, if any do: the others are not looked for."""
    better = {label: one for label, one in kept.items() if one.beats_mean}
    return better if better and budget.max_error is None else kept


def _score(group: str, trials: Sequence[Trial]) -> RegretScore:
    claims = [one.held for one in trials if one.held is not None]
    sure = [one.held for one in trials if one.held is not None and one.outcome == "fits"]
    regrets = sorted(one.regret for one in trials if one.regret is not None)
    return RegretScore(
        group=group,
        trials=len(trials),
        claims=len(claims),
        claims_held=_share(claims),
        sure_claims=len(sure),
        sure_claims_held=_share(sure),
        compared=len(regrets),
        median_regret=median(regrets) if regrets else None,
        p95_regret=quantiles(regrets, n=20, method="inclusive")[-1] if len(regrets) > 1 else None,
        missed=sum(one.chosen is None and one.best is not None for one in trials),
    )


def _share(held: Sequence[bool]) -> float | None:
    return sum(held) / len(held) if held else None


def regret_tables(report: RegretReport) -> list[Table | str]:
    """One line for each group, and what the columns mean."""
    header = (
        "held out",
        "budgets",
        "claims",
        "held, %",
        "sure claims",
        "held, %",
        "compared",
        "median",
        "95 %",
        "missed",
    )
    rows = tuple(
        (
            one.group,
            str(one.trials),
            str(one.claims),
            _percent(one.claims_held),
            str(one.sure_claims),
            _percent(one.sure_claims_held),
            str(one.compared),
            _factor(one.median_regret),
            _factor(one.p95_regret),
            str(one.missed),
        )
        for one in report.scores
    )
    shapes = len({one.shape for one in report.trials})
    return [
        Table(f"Choices without the rows of a length, {shapes} shapes", header, rows, frozenset(range(1, 10))),
        Table(
            "Bands at held-out lengths",
            ("held out", "figure", "figures", "median miss, %", "in the band, %"),
            tuple(
                (one.held_out, one.limit, str(one.figures), _percent(one.median_miss), _percent(one.inside))
                for one in report.bands
            ),
            frozenset({2, 3, 4}),
        ),
        _LEGEND,
    ]


_LEGEND: Final = (
    "median, 95 %: quantiles of the true time of what was chosen over that of the fastest that keeps the budget.\n"
    "claims: budgets that were said to be kept, surely or likely. missed: nothing was chosen, but something fitted."
)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _factor(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
