"""Figures that were measured on one card, for another one."""

from dataclasses import replace
from typing import Final

from reports.cards import Card, CardError, Work, transfer
from reports.curve import Figures, Reason, Unavailable
from reports.interpolation import Figure
from reports.prediction import TimePrediction, Unpredictable
from reports.quantities import size_text

WORKSPACE: Final = 0.1
"""How far the memory beyond inputs and outputs may differ, as a share: workspaces follow the number of processors."""


def carried(figures: Figures, work: Work, dtype: str, source: Card, target: Card) -> Figures:
    """The figures on the target: times by the ratio of rooflines, errors and sizes as they are, all `transferred`.

    Raises `Unavailable`.
    """
    seconds = figures.seconds
    measured = TimePrediction(seconds.value, seconds.least, seconds.most, "measured")
    try:
        answer = transfer(measured, work, dtype, source, target)
    except (Unpredictable, CardError) as refusal:
        raise Unavailable([Reason("unpredictable", str(refusal))]) from refusal
    extra = _spread(figures.extra_bytes)
    total = figures.total_bytes
    if total is not None and extra is not None:
        certain = total.value - extra.value
        total = Figure(total.value, "transferred", certain + extra.least, certain + extra.most)
    return replace(
        figures,
        seconds=Figure(answer.seconds, "transferred", answer.low, answer.high),
        total_bytes=_marked(total),
        extra_bytes=extra,
        energy_joules=None,
        hot_seconds=None,
        latency_seconds=None,
        error=_marked(figures.error),
        implementation_error=_marked(figures.implementation_error),
        approximation_error=_marked(figures.approximation_error),
        ratio=None,
        baseline=None,
    )


def too_large(figures: Figures, card: Card) -> Reason | None:
    """Why a variant cannot run in a card's memory, whatever the budget; None where it can, or nothing is known."""
    total = figures.total_bytes
    if total is None or total.least <= card.memory_bytes or total.provenance == "measured":
        return None
    return Reason("capacity", f"needs {size_text(total.value)}, but {card.name} has {size_text(card.memory_bytes)}")


def _marked(figure: Figure | None) -> Figure | None:
    return None if figure is None else replace(figure, provenance="transferred")


def _spread(figure: Figure | None) -> Figure | None:
    if figure is None:
        return None
    return Figure(figure.value, "transferred", figure.least * (1 - WORKSPACE), figure.most * (1 + WORKSPACE))
