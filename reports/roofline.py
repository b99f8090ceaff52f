"""The roofline: what each measured point does with the arithmetic and the memory of its machine."""

from collections.abc import Sequence
from dataclasses import dataclass

from reports.cards import Card
from reports.curve import Curve


@dataclass(frozen=True, slots=True)
class RooflinePoint:
    """Useful FLOPs for each byte that the formula must move, and useful FLOPs a second."""

    label: str
    length: int
    intensity: float
    flop_per_second: float


@dataclass(frozen=True, slots=True)
class Roofline:
    """The measured points of one shape under the ceilings of their machine."""

    flop_per_second: float
    bytes_per_second: float
    source: str
    points: tuple[RooflinePoint, ...]

    def ceiling(self, intensity: float) -> float:
        """The most FLOPs a second at an intensity."""
        return min(self.flop_per_second, intensity * self.bytes_per_second)


def roofline_of(curves: Sequence[Curve], card: Card | None, dtype: str) -> Roofline | None:
    """The points with times, FLOPs and bytes; None where there are none, or the ceilings are not known."""
    peak = card.flop_per_second.get(dtype) if card else None
    points = tuple(
        RooflinePoint(curve.label, length, row.useful_flops / row.moved_bytes, row.useful_flops / row.seconds)
        for curve in curves
        for length, row in curve.rows().items()
        if row.status == "ok" and row.seconds and row.useful_flops and row.moved_bytes
    )
    if card is None or peak is None or not points:
        return None
    return Roofline(peak, card.bytes_per_second, card.source, points)
