"""The sheet of a picture: its size, and a legend below the axes, where it covers nothing."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.curve import Curve

_WIDTH: Final = 4.1
_HEIGHT: Final = 2.7
_LEGEND_LINE: Final = 0.17
_WIDE_NAME: Final = 26
"""Characters of a name from which on a legend has one column only."""

_LONGEST_NAME: Final = 48


def canvas(count: int, names: Mapping[str, str], height: float = _HEIGHT) -> tuple[Figure, Axes]:
    """An empty figure of a phone's width, with room for a legend of `count` entries under `height` inches."""
    lines = math.ceil(count / _columns(names))
    figure = Figure(figsize=(_WIDTH, height + _LEGEND_LINE * lines), layout="constrained")
    return figure, figure.subplots()


def add_legend(figure: Figure, axes: Axes, names: Mapping[str, str]) -> None:
    """A legend below the axes, where it covers nothing."""
    figure.legend(
        *entries(axes, names),
        loc="outside lower left",
        ncols=_columns(names),
        frameon=False,
        handlelength=1.6,
        columnspacing=1.0,
        labelspacing=0.3,
    )


def entries(axes: Axes, names: Mapping[str, str]) -> tuple[list[Artist], list[str]]:
    """Handles and short names of a legend: each label once."""
    handles, labels = axes.get_legend_handles_labels()
    first = dict(zip(reversed(labels), reversed(handles), strict=True))
    known = [label for label in names if label in first]
    return [first[label] for label in known], [clipped(names[label]) for label in known]


def clipped(text: str, count: int = _LONGEST_NAME) -> str:
    """Text of at most `count` characters: a name may not squeeze the axes out of their figure."""
    return text if len(text) <= count else text[: count - 1] + "…"


def _columns(names: Mapping[str, str]) -> int:
    return 1 if max(map(len, names.values())) > _WIDE_NAME else 2


def short_names(curves: Sequence[Curve]) -> dict[str, str]:
    """Names by label, without the parameters where the variant has only one set of them."""
    sets = Counter(curve.variant for curve in curves)
    return {curve.label: curve.variant if sets[curve.variant] == 1 else curve.label for curve in curves}
