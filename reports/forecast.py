"""The figures of each curve at any length: measured, interpolated with a band, or extrapolated with one."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist, median
from typing import TYPE_CHECKING, Final

from reports.calibration import LEVEL, spread
from reports.cards import Card
from reports.curve import TIMED_INPUTS, Curve, Figures, Reason, Unavailable, failures
from reports.declared_costs import Declare, DeclaredCosts
from reports.interpolation import ROUNDING, Figure, error_at
from reports.records import Row
from reports.shape import Shape

if TYPE_CHECKING:
    from reports.cost_model import TimeModel

MEMORY_SPREAD: Final = 0.04
"""As `reports.calibration.SPREAD`, of memory: allocators round, and buffers have fixed sizes."""

ERROR_SPREAD: Final = 0.05
"""The same of errors."""

INTERVAL_WIDTHS: Final = 2 * 1.96
"""Standard deviations in a 95 % interval."""


@dataclass(frozen=True)
class Forecast:
    """Every curve of one shape on one machine; `card` sets the roofline below which no time is foretold.

    `drift` is the standard deviation of the machine's pace from run to run, as `session_drift` finds it.
    """

    curves: Sequence[Curve]
    shape: Shape
    declare: Declare
    card: Card | None = None
    drift: float = 0.0

    def figures_at(self, curve: Curve, length: int, inputs: str | None = None) -> Figures:
        """The figures of one of the curves. Raises `Unavailable` with every reason."""
        try:
            return self._figures_at(curve, length, inputs)
        except Unavailable as unavailable:
            left_out = curve.left_out()
            if length not in left_out:
                raise
            raise Unavailable([*unavailable.reasons, *failures([left_out[length]])]) from unavailable

    def _figures_at(self, curve: Curve, length: int, inputs: str | None) -> Figures:
        rows = curve.rows()
        timed = _timed(curve)
        if not timed or length <= max(rows) or max(rows) > max(timed):
            return self._inside(curve.figures_at(length, inputs))
        wrong = [row for row in curve.points.values() if row.status == "wrong"]
        if wrong:
            raise Unavailable(failures(wrong))
        return self._beyond(curve, timed, length, inputs)

    def costs(self, curve: Curve) -> DeclaredCosts:
        """What a curve's variant declares."""
        return DeclaredCosts(curve, self.shape, self.declare)

    def _inside(self, figures: Figures) -> Figures:
        below, above = figures.between
        if below == above:
            return figures
        doublings = math.log2(above / below)
        time = math.hypot(self._time_spread * doublings, self._drift_band)
        memory = self._memory_spread * doublings
        errors = self._error_spread(figures.error_inputs) * doublings
        return replace(
            figures,
            seconds=figures.seconds.widened(time),
            energy_joules=_widened(figures.energy_joules, time),
            hot_seconds=_widened(figures.hot_seconds, time),
            latency_seconds=_widened(figures.latency_seconds, time),
            total_bytes=_widened(figures.total_bytes, memory),
            extra_bytes=_widened(figures.extra_bytes, memory),
            error=_widened(figures.error, errors),
            implementation_error=_widened(figures.implementation_error, errors),
            approximation_error=_widened(figures.approximation_error, errors),
        )

    def _beyond(self, curve: Curve, timed: Mapping[int, Row], length: int, inputs: str | None) -> Figures:
        from reports.prediction import InvalidPoints, Unpredictable

        try:
            answer = self._models[curve.label].bounds(length)
        except KeyError:
            raise Unavailable([Reason("unpredictable", "its rows declare no visible pairs")]) from None
        except (Unpredictable, InvalidPoints) as refusal:
            raise Unavailable([Reason("unpredictable", str(refusal))]) from refusal
        floor = self._floor_seconds(curve, timed, length)
        total, extra, gap = self._memory(timed, length)
        banded = Figure(answer.seconds, "extrapolated", answer.low, answer.high).widened(self._drift_band)
        seconds, low, high = (max(floor, end) for end in (banded.value, banded.least, banded.most))
        return Figures(
            seconds=Figure(seconds, "extrapolated", low, high),
            total_bytes=total,
            extra_bytes=extra,
            energy_joules=None,
            hot_seconds=None,
            latency_seconds=None,
            memory_gap=gap,
            ratio=None,
            baseline=None,
            kernel=timed[max(timed)].kernel,
            noisy=any(row.noisy for row in timed.values()),
            between=(min(timed), max(timed)),
            **curve.errors_at(length, inputs),
        )

    def _memory(self, timed: Mapping[int, Row], length: int) -> tuple[Figure | None, Figure | None, str]:
        """Total and extra bytes beyond the last length, or why they are not known."""
        from reports.memory_model import MemoryModel
        from reports.prediction import InvalidPoints, Unpredictable

        sizes = {at: row.total_bytes for at, row in timed.items() if row.total_bytes}
        certain = self.shape.input_output_bytes
        try:
            model = MemoryModel.fit(tokens=[*sizes], size_bytes=[*sizes.values()], certain_bytes=certain)
            found = model.bounds(length)
        except (Unpredictable, InvalidPoints) as refusal:
            return None, None, str(refusal)
        ends = [max(0.0, end - certain(length)) for end in (found.size_bytes, found.low, found.high)]
        total = Figure(found.size_bytes, "extrapolated", max(found.low, certain(length)), found.high)
        return total, Figure(ends[0], "extrapolated", ends[1], ends[2]), ""

    def _floor_seconds(self, curve: Curve, timed: Mapping[int, Row], length: int) -> float:
        """The roofline at a length; 0 where it is not known, or a measured time already contradicts it."""
        peak = self.card.flop_per_second.get(self.shape.dtype) if self.card else None
        known = {at: row.useful_flops for at, row in timed.items() if row.useful_flops}
        if peak is None or not known or any(flops / peak > (timed[at].seconds or 0) for at, flops in known.items()):
            return 0.0
        try:
            return self.costs(curve).flops(length) / peak
        except Unavailable:
            return 0.0

    @property
    def _drift_band(self) -> float:
        """Half of the 90 % band that the machine's pace alone asks for."""
        return NormalDist().inv_cdf((1 + LEVEL) / 2) * self.drift

    @cached_property
    def _time_spread(self) -> float:
        return spread(curve.seconds() for curve in self.curves)

    def _error_spread(self, inputs: str | None) -> float:
        return spread((_errors(curve, inputs or TIMED_INPUTS) for curve in self.curves), ERROR_SPREAD, error_at)

    @cached_property
    def _memory_spread(self) -> float:
        rows = (curve.rows().items() for curve in self.curves)
        sizes = ({at: float(row.total_bytes) for at, row in one if row.total_bytes} for one in rows)
        return spread(sizes, MEMORY_SPREAD)

    @cached_property
    def _models(self) -> "dict[str, TimeModel]":
        """The time model of each curve that has one, their bands calibrated on one another."""
        from reports.cost_model import TimeModel, calibrated
        from reports.prediction import InvalidPoints

        found: dict[str, TimeModel] = {}
        for curve in self.curves:
            timed = _timed(curve)
            try:
                found[curve.label] = TimeModel.fit(
                    tokens=[*timed],
                    seconds=[row.seconds or 0.0 for row in timed.values()],
                    visible_pairs=self.costs(curve).pairs,
                    noise=_noise(timed.values()),
                )
            except (Unavailable, InvalidPoints):
                continue
        return dict(zip(found, calibrated(found.values()), strict=True))


def _timed(curve: Curve) -> dict[int, Row]:
    return {at: row for at, row in curve.rows().items() if row.status == "ok" and row.seconds is not None}


def _errors(curve: Curve, inputs: str) -> dict[int, float]:
    """The error that makes most of the distance from exact attention, by length, without what is only rounding."""
    name = "implementation_error" if curve.exact else "approximation_error"
    known = {at: getattr(row, name) for at, row in curve.rows(inputs).items()}
    return {at: value for at, value in known.items() if value is not None and (curve.exact or value > ROUNDING)}


def _noise(rows: Iterable[Row]) -> float:
    """The relative standard deviation of a measured time: the median over the lengths, from the intervals."""
    widths = [
        math.log(row.seconds_high / row.seconds_low) / INTERVAL_WIDTHS
        for row in rows
        if row.seconds_low is not None and row.seconds_high is not None
    ]
    return median(widths) if widths else 0.0


def _widened(figure: Figure | None, half_band: float) -> Figure | None:
    return figure if figure is None or figure.provenance == "measured" else figure.widened(half_band)
