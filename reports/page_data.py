"""What the scripts of a page know, as plain data: `page_assets/rule.js` and `charts.js` say what each place means."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from reports.answer import Candidate, Rejected
from reports.figure_style import HUES, Style
from reports.floors import floors_of
from reports.interpolation import Figure
from reports.page_answers import Explored, options_of, question_of
from reports.question import Budget
from reports.roofline import roofline_of
from reports.winner_map import limits_of

_SYMBOLS: Final = dict(
    zip(
        "os^DvPX<>h",
        ("circle", "square", "triangle", "diamond", "wye", "plus", "times", "star", "cross", "hexagon"),
        strict=True,
    )
)
_MARKS: Final = {"measured": "m", "interpolated": "i", "extrapolated": "e", "transferred": "t"}


class _Strings:
    """Each text once, by number."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self.known.setdefault(text, len(self.known))


def page_data(found: Sequence[tuple[str, Explored]], styles: Mapping[str, Style]) -> dict[str, Any]:
    """Everything that can be explored, by the id of its section."""
    texts = _Strings()
    shapes = [_shape(name, one, styles, texts) for name, one in found]
    return {"shapes": shapes, "texts": list(texts.known)}


def cell_count(found: Explored) -> int:
    """How many cells of figures it has: what makes a page large."""
    return sum(len(known.fitting) for known in found.answers.values())


def _shape(name: str, found: Explored, styles: Mapping[str, Style], texts: _Strings) -> dict[str, Any]:
    places = {curve.label: index for index, curve in enumerate(found.curves)}
    roofline = roofline_of(found.curves, found.card, found.shape.dtype)
    return {
        "id": name,
        "title": found.shape.describe(),
        "options": options_of(found.shape),
        "curves": [
            {
                "label": curve.label,
                "variant": curve.variant,
                "family": curve.variant.partition("/")[0],
                "exact": curve.exact,
                "colour": HUES.get(styles[curve.label].colour, "currentColor"),
                "symbol": _SYMBOLS.get(styles[curve.label].marker, "circle"),
            }
            for curve in found.curves
        ],
        "errorLimits": limits_of(found, "error"),
        "memoryLimits": limits_of(found, "memory"),
        "roofline": None
        if roofline is None
        else {
            "peak": roofline.flop_per_second,
            "bandwidth": roofline.bytes_per_second,
            "source": roofline.source,
            "points": [[places[one.label], one.length, one.intensity, one.flop_per_second] for one in roofline.points],
        },
        "lengths": [_length(found, length, places, texts) for length in found.answers],
    }


def _length(found: Explored, length: int, places: Mapping[str, int], texts: _Strings) -> dict[str, Any]:
    known = found.answers[length]
    floors = floors_of(question_of(found.shape, length), Budget(), found.card) if found.card else None
    return {
        "tokens": length,
        "kind": "measured" if length in found.measured else "interpolated" if length < found.last else "extrapolated",
        "floors": None
        if floors is None or found.card is None
        else [floors.size_bytes, floors.seconds_any, found.card.memory_bytes],
        "cells": [_cell(one, places[one.label], texts) for one in known.fitting],
        "failed": [_failed(one, places[one.label], texts) for one in known.rejected],
    }


def _cell(one: Candidate, place: int, texts: _Strings) -> list[Any]:
    """Place, time, memory, error, extra memory, energy, noise, the texts of gaps and inputs, who loses to the mean."""
    figures = one.figures
    known = (figures.seconds, figures.total_bytes, figures.error, figures.extra_bytes, figures.energy_joules)
    gaps = (figures.error_gap, figures.memory_gap, figures.error_inputs or "")
    numbers = (texts.number(gap) for gap in gaps)
    return [place, *map(_figure, known), int(figures.noisy), *numbers, int(not one.beats_mean)]


def _figure(figure: Figure | None) -> list[Any] | None:
    """Mark of its provenance, value, and the band where there is one; None for an end without bound."""
    if figure is None:
        return None
    if figure.low is None and figure.high is None:
        return [_MARKS[figure.provenance], figure.value]
    most = figure.most if math.isfinite(figure.most) else None
    return [_MARKS[figure.provenance], figure.value, figure.least, most]


def _failed(one: Rejected, place: int, texts: _Strings) -> list[int]:
    return [place, *(texts.number(reason.text) for reason in one.reasons)]
