"""The figures of one shape at every length that a page offers: those with which `choose` itself begins."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from reports.answer import Candidate, Rejected
from reports.cards import Card
from reports.ceilings import machine_card
from reports.choice import Cards, with_figures
from reports.curve import Curve
from reports.declared_costs import Declare
from reports.forecast import Forecast
from reports.interpolation import FURTHEST, Figure
from reports.question import Budget, InvalidQuestion, Question
from reports.records import Row
from reports.session_drift import session_drift
from reports.shape import Shape
from reports.verdict import judged

_MOST_STEPS: Final = 4


@dataclass(frozen=True, slots=True)
class Known:
    """Who has figures at one length, by time, and who has none, with every reason."""

    fitting: list[Candidate]
    rejected: list[Rejected]


@dataclass(frozen=True)
class Explored:
    """What is known of one shape, by length: `answers` hold what `choose` starts from, before any limit."""

    shape: Shape
    curves: Sequence[Curve]
    measured: frozenset[int]
    answers: dict[int, Known]
    card: Card | None

    @property
    def last(self) -> int:
        """The last measured length."""
        return max(self.measured)

    def foretold(self, label: str, name: str) -> dict[int, Figure]:
        """The extrapolated figures of one variant, by length; `name` is a field of `Figures`."""
        found: dict[int, Figure] = {}
        for length, answer in self.answers.items():
            figures = next((one.figures for one in answer.fitting if one.label == label), None)
            figure = getattr(figures, name) if figures else None
            if figure is not None and figure.provenance == "extrapolated" and length > self.last:
                found[length] = figure
        return found


def explored(
    rows: Sequence[Row],
    curves: Sequence[Curve],
    shape: Shape,
    steps: int,
    description: dict[str, Any],
    declare: Declare,
) -> Explored | None:
    """Every answer about a shape; None where no question can ask for it, or no time was measured."""
    measured = frozenset(length for curve in curves for length in curve.seconds())
    try:
        if not measured or question_of(shape, max(measured)).shape != shape:
            return None
    except InvalidQuestion:
        return None
    card = machine_card(description, rows, shape.device)
    forecast = Forecast(curves, shape, declare, card, session_drift(rows))
    answers: dict[int, Known] = {}
    for length in offered_lengths(measured, steps):
        fitting, rejected = with_figures(forecast, question_of(shape, length), Cards(card, None))
        answers[length] = Known(judged(fitting, Budget())[0], rejected)
    return Explored(shape, curves, measured, answers, card)


def question_of(shape: Shape, length: int) -> Question:
    """The question about one length of a shape. Raises `InvalidQuestion`."""
    return Question(
        tokens=length,
        batch=shape.batch,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        dtype=shape.dtype,
        device=shape.device,
        causal=shape.causal,
        mode=shape.mode,
    )


def options_of(shape: Shape) -> str:
    """The shape as options of `attnscape choose`."""
    return (
        f"--batch {shape.batch} --heads {shape.heads} --kv-heads {shape.kv_heads} --head-dim {shape.head_dim} "
        f"--dtype {shape.dtype} --{'causal' if shape.causal else 'no-causal'} --mode {shape.mode} "
        f"--device {shape.device}"
    )


def offered_lengths(measured: Iterable[int], steps: int) -> list[int]:
    """The measured lengths, `steps` for each doubling between them, and those up to four times the last one."""
    known = sorted(measured)
    found = set(known)
    for below, above in pairwise([*known, FURTHEST * known[-1]]):
        count = max(1, round(steps * math.log2(above / below)))
        found |= {round(below * (above / below) ** (step / count)) for step in range(1, count + 1)}
    return sorted(found)


def steps_for(curves: int, doublings: int, most_cells: int) -> int:
    """How many lengths for each doubling a page can hold."""
    return next((steps for steps in range(_MOST_STEPS, 1, -1) if curves * doublings * steps <= most_cells), 1)
