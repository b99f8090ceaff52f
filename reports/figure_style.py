"""How pictures look: a colour per folder, a marker per variant, and SVG that follows the page's theme."""

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Theme:
    """The neutral colours: of text and axes, of grid lines, of the ground."""

    ink: str
    rule: str
    paper: str


THEMED: Final = Theme("#010203", "#040506", "#070809")
"""Stand-ins, which `svg_of` replaces by the page's own colours, light or dark."""

PRINTED: Final = Theme("#1a1a1a", "#d9d9d9", "#ffffff")
"""For formats that have no theme."""

_PAGE_COLOURS: Final = {THEMED.ink: "currentColor", THEMED.rule: "var(--rule)", THEMED.paper: "var(--paper)"}
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442")
"""Okabe and Ito's palette, which stays distinct under colour blindness; the ink stands for its black."""

HUES: Final = {colour: f"var(--hue-{index})" for index, colour in enumerate(COLOURS)}
"""The same as the page sets them: darker on a light ground, lighter on a dark one, so that lines stand out."""

_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")


@dataclass(frozen=True, slots=True)
class Style:
    """How one variant is drawn everywhere; exact variants are filled, approximations hollow."""

    colour: str
    marker: str
    fill: str


def styles_of(variants: Iterable[tuple[str, str, bool]], theme: Theme) -> dict[str, Style]:
    """A style by label, from (label, folder, exact) of every variant of a page: exact folders come first."""
    colours = (theme.ink, *COLOURS)
    known = sorted(set(variants), key=lambda one: (not one[2], one[1], one[0]))
    folders = list(dict.fromkeys(folder for _, folder, _ in known))
    made: dict[str, Style] = {}
    for folder in folders:
        colour = colours[folders.index(folder) % len(colours)]
        members = [(label, exact) for label, place, exact in known if place == folder]
        for index, (label, exact) in enumerate(members):
            made[label] = Style(colour, _MARKERS[index % len(_MARKERS)], colour if exact else theme.paper)
    return made


@contextmanager
def drawing(theme: Theme, size: float = 9.0) -> Iterator[None]:
    """Draw inside this: matplotlib's defaults with a small readable type, and nothing that changes by run."""
    settings: dict[str, object] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "attnscape",
        "text.parse_math": False,
        "font.family": "sans-serif",
        "font.size": size,
        "axes.labelsize": size,
        "legend.fontsize": size - 0.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.edgecolor": theme.ink,
        "axes.labelcolor": theme.ink,
        "text.color": theme.ink,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "grid.color": theme.rule,
        "grid.linewidth": 0.6,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "lines.linewidth": 1.4,
        "lines.markersize": 5.5,
        "lines.markeredgewidth": 1.3,
    }
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(settings)  # type: ignore[arg-type]  # the stubs list every key as a literal
        yield


def svg_of(figure: Figure, name: str, title: str) -> str:
    """A figure as an SVG element to put into a page: ids made unique by `name`, colours left to the page."""
    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stream, format="svg", metadata=nothing)
    text = stream.getvalue()
    text = re.sub(r"<(metadata|style)\b.*?</\1>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", lambda tag: _shortened(tag[0]), _with_own_ids(text, name))
    text = re.sub(r">\s+<", "><", text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None, "matplotlib writes a viewBox into every SVG"
    opening = f'<svg {box[0]} role="img" aria-labelledby="{name}-title" xmlns="http://www.w3.org/2000/svg"'
    opening += f' xmlns:xlink="http://www.w3.org/1999/xlink"><title id="{name}-title">{escape(title)}</title>'
    return opening + text[text.index(">") + 1 :].strip()


def _shortened(tag: str) -> str:
    """A tag in the page's colours, without line breaks, its own fonts and digits that no screen shows."""
    for stand_in, colour in {**_PAGE_COLOURS, **HUES}.items():
        tag = tag.replace(stand_in, colour)
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", re.sub(r"\s+", " ", tag))
    tag = re.sub(r' transform="rotate\(-0 [^"]*"', "", tag)
    return re.sub(r"(\d\.\d\d)\d+", r"\1", tag)


def _with_own_ids(text: str, name: str) -> str:
    """Drop ids that nothing refers to, and call the others `name` with a number: a page holds many pictures."""
    used = list(dict.fromkeys(re.findall(r'(?:href="#|url\(#)([^")]+)', text)))
    own = {known: f"{name}-{number}" for number, known in enumerate(used)}
    text = re.sub(r' id="([^"]+)"', lambda found: f' id="{own[found[1]]}"' if found[1] in own else "", text)
    return re.sub(r'(href="#|url\(#)([^")]+)', lambda found: found[1] + own[found[2]], text)
