"""The two pictures of profiles: memory over the time of a call, and the roofline with the calls under it."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.axis_scale import log_scale
from reports.figure_style import PRINTED, Style, drawing, styles_of
from reports.profile_record import Profile
from reports.quantities import BYTES_PER_MIB, digits

_DPI: Final = 150
_DECADE: Final = 10.0
_DASHES: Final = ("-", "--")  # variants of one folder have one colour
_WIDE_LABEL: Final = 40
"""Characters from which on two names do not fit beside each other."""


def write_pictures(profiles: Sequence[Profile], stem: Path) -> list[Path]:
    """`STEM.memory.png` and `STEM.roofline.png`, with every profile in both; returns their paths."""
    styles = styles_of(((p.label, p.case.variant.partition("/")[0], True) for p in profiles), PRINTED)
    written = []
    for name, draw in (("memory", _draw_memory), ("roofline", _draw_roofline)):
        with drawing(PRINTED):
            figure = Figure(figsize=(6.4, 3.9), layout="constrained")
            axes = figure.subplots()
            draw(axes, profiles, styles)
            figure.legend(loc="outside lower left", ncols=_columns(axes), frameon=False)
            path = stem.with_name(f"{stem.name}.{name}.png")
            figure.savefig(path, dpi=_DPI, facecolor=PRINTED.paper)
        written.append(path)
    return written


def _columns(axes: Axes) -> int:
    """Of the legend: one where names are too wide for more."""
    return 1 if any(len(label) > _WIDE_LABEL for label in axes.get_legend_handles_labels()[1]) else 2


def _draw_memory(axes: Axes, profiles: Sequence[Profile], styles: dict[str, Style]) -> None:
    for profile, dashes in zip(profiles, cycle(_DASHES), strict=False):
        at = [1e3 * seconds for seconds, _ in profile.timeline]
        mib = [size / BYTES_PER_MIB for _, size in profile.timeline]
        style, peak = styles[profile.label], max(mib, default=0.0)
        # The peak is told in the legend: beside its curve it might lie under another one.
        axes.step(
            *(at, mib, dashes),
            where="post",
            color=style.colour,
            marker=style.marker,
            markevery=[mib.index(peak)] if mib else [],
            label=f"{profile.label}: peak {digits(peak)} MiB",
        )
        axes.fill_between(at, mib, step="post", color=style.colour, alpha=0.12, linewidth=0)
    axes.set(xlabel="ms of one call, slowed by its profiler", ylabel="MiB allocated in the call", ylim=(0, None))
    axes.margins(y=0.12)


def _draw_roofline(axes: Axes, profiles: Sequence[Profile], styles: dict[str, Style]) -> None:
    first = profiles[0]
    bandwidth, peak = first.ceilings.copy_bytes_per_second, first.peak_flops
    ridge = peak / bandwidth
    points = [(p.flops / max(1, p.moved_bytes), p.flops / p.judged_seconds) for p in profiles]
    shown = [x for x, y in points if x > 0 and y > 0]
    low, high = min([ridge, *shown]) / _DECADE, max([ridge, *shown]) * _DECADE
    axes.plot(
        [low, ridge, high],
        [low * bandwidth / 1e9, peak / 1e9, peak / 1e9],
        color=PRINTED.ink,
        label="measured ceilings",
    )
    axes.text(high, peak / 1e9, f"matmul {digits(peak / 1e9)} GFLOP/s", ha="right", va="bottom")
    middle = (low * ridge) ** 0.5
    axes.text(middle, middle * bandwidth / 1e9, f"copy {digits(bandwidth / 1e9)} GB/s ", ha="right", va="bottom")
    for profile, (x, y) in zip(profiles, points, strict=True):
        if x > 0 and y > 0:
            style = styles[profile.label]
            label = f"{profile.label}{' (declared)' if profile.declared else ''}"
            axes.plot([x], [y / 1e9], style.marker, color=style.colour, markersize=8, label=label)
    log_scale(axes, "x", [low, high], digits)
    heights = [low * bandwidth / 1e9, peak / 1e9, *(y / 1e9 for x, y in points if x > 0 and y > 0)]
    log_scale(axes, "y", heights, digits)
    axes.set(xlabel="FLOP per byte moved between operators", ylabel="GFLOP/s")
