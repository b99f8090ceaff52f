"""The picture of a definition's page: exact attention, the matrix that the definition realises, their difference."""

import io
from collections.abc import Mapping
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LogNorm, Normalize, SymLogNorm
from matplotlib.figure import Figure
from PIL import Image

from reports.figure_style import Theme, drawing

STYLE: Final = 1
"""To be counted up with every change of how pictures look: then they are drawn anew."""

CELLS: Final = 128
SIDE: Final = 256
DPI: Final = 100
WIDTH: Final = 900
HEIGHT: Final = 350
TOP: Final = 34
GAP: Final = 34
LOWEST: Final = 0.03
HIGHEST: Final = 30.0
TICKS: Final = (0.1, 1, 10)
SHADES: Final = 48
BOTH_GROUNDS: Final = Theme("#7d8590", "#7d8590", "#7d8590")
"""A grey that is read on light and on dark pages alike: the picture has no ground of its own."""

Array = np.ndarray[Any, np.dtype[np.float64]]


def picture_png(matrix: Array, exact: Array, facts: Mapping[str, Any], title: str) -> bytes:
    """Three panels, each cell the mean over a few rows and columns, in multiples of the uniform weight.

    The exact definition itself has one panel. Colours follow the logarithm; what is nought stays without colour.
    """
    tokens = matrix.shape[0]
    known, made = (pooled(x) * tokens for x in (exact, matrix / facts["divided_by"]))
    if not facts["distance"]:
        panels = [("exact attention", known)]
    else:
        panels = [("exact attention", known), (title.rpartition(": ")[2], made), ("difference", made - known)]
    with drawing(BOTH_GROUNDS, size=10):
        mpl.rcParams["axes.grid"] = False
        figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI)
        for place, (name, cells) in enumerate(panels):
            left = (WIDTH - len(panels) * SIDE - (len(panels) - 1) * GAP) // 2 + place * (SIDE + GAP)
            axes = figure.add_axes(_box(left, HEIGHT - TOP - SIDE, SIDE, SIDE))
            signed = name == "difference" or bool((cells < 0).any())
            _draw(figure, axes, cells, signed, left)
            axes.set_title(name, fontsize=10, pad=6)
            axes.set_ylabel("queries" if not place else "")
        return _bytes_of(figure)


def pooled(matrix: Array) -> Array:
    """Means of square cells, at most `CELLS` along a side."""
    step = -(-matrix.shape[0] // CELLS)
    size = matrix.shape[0] // step * step
    cells = matrix[:size, :size].reshape(size // step, step, size // step, step)
    means: Array = cells.mean(axis=(1, 3))
    return means


def _draw(figure: Figure, axes: Axes, cells: Array, signed: bool, left: int) -> None:
    shades: Colormap = mpl.colormaps["PuOr" if signed else "viridis"].resampled(SHADES)
    shades = shades.with_extremes(under=shades(0))
    norm: Normalize = SymLogNorm(LOWEST, vmin=-HIGHEST, vmax=HIGHEST) if signed else LogNorm(LOWEST, HIGHEST)
    shown = np.ma.masked_where(cells == 0, cells)
    image = axes.imshow(shown.clip(-HIGHEST, HIGHEST), cmap=shades, norm=norm, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_linewidth(0.6)
    bar = figure.colorbar(image, cax=figure.add_axes(_box(left, 26, SIDE, 7)), orientation="horizontal")
    ticks = [-10, -1, -0.1, 0.1, 1, 10] if signed else list(TICKS)
    bar.set_ticks(ticks, labels=[f"{tick:g}".replace("-", "−") for tick in ticks])
    bar.minorticks_off()
    bar.ax.tick_params(labelsize=8, length=2, pad=1)
    bar.outline.set_visible(False)


def _box(left: float, bottom: float, width: float, height: float) -> tuple[float, float, float, float]:
    return left / WIDTH, bottom / HEIGHT, width / WIDTH, height / HEIGHT


def _bytes_of(figure: Figure) -> bytes:
    """A PNG with a palette: a third of the size of one in true colour."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI, transparent=True)
    small = io.BytesIO()
    Image.open(drawn).quantize(256, method=Image.Quantize.FASTOCTREE).save(small, format="png", optimize=True)
    return small.getvalue()
