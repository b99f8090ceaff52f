"""Time and memory at lengths that were not measured, with a 90 % band; `docs/predictions.md` has the evidence.

Time is t(N) = c0 + c1·N + c2·pairs(N) with coefficients that are not negative, fitted to the relative
errors with weights rising with N, and anchored to the last measured point. `pairs(N)` is what the
variant declares that one head computes.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Final, Self

import numpy as np

from reports.calibration import own_score, pooled_quantile
from reports.memory_model import MemoryModel
from reports.nonnegative_fit import Array, Fit, fit_nonnegative
from reports.prediction import (
    FURTHEST,
    InvalidPoints,
    MemoryPrediction,
    Points,
    Provenance,
    TimePrediction,
    Unpredictable,
    band_factor,
    refuse_wide,
)

__all__ = [
    "InvalidPoints",
    "MemoryModel",
    "MemoryPrediction",
    "Provenance",
    "TimeModel",
    "TimePrediction",
    "Unpredictable",
    "calibrated",
]

NOISE: Final = 0.02
"""The relative noise of one measurement that is assumed before any residual is seen."""

RESERVE: Final = 0.1
"""The share of the last point times the ratio of work in a figure: longer problems lose a part of what they gain."""

EXACT: Final = 0.003
"""A fit that misses the points by much less than this needs no reserve; no timer is that exact."""

DOUBT: Final = 0.5
"""The share of the distance to the last point times the ratio of work that goes into the band."""

DRIFT: Final = 0.05
"""How far the time per pair may change with each doubling for reasons that no shorter length shows."""

FEWEST_SCORED: Final = 3
"""A curve of fewer points at half its last length or below says nothing of the bands."""

LATEST: Final = 3
"""How the times of a variant that outgrew its work go on is read off this many of its last lengths."""

OUTGROWN: Final = 1.1
"""Nothing is predicted from times that outgrow the declared work by more than this."""


@dataclass(frozen=True)
class TimeModel:
    """Seconds per call by length, from measured lengths; made by `fit`."""

    points: Points
    visible_pairs: Callable[[int], float]
    floor_seconds: Callable[[int], float] | None = None
    noise: float = NOISE
    widening: float = 1.0

    @classmethod
    def fit(
        cls,
        *,
        tokens: Sequence[int],
        seconds: Sequence[float],
        visible_pairs: Callable[[int], float],
        floor_seconds: Callable[[int], float] | None = None,
        noise: float = NOISE,
        widening: float = 1.0,
    ) -> Self:
        """The model of one curve, its points in any order.

        `visible_pairs` gives the pairs of query and key that one head computes at a length, and
        `floor_seconds` the roofline. `noise` is the relative standard deviation of one measurement,
        as far as it is known; `widening` multiplies the half width of extrapolated bands, see
        `calibrated`. Raises `InvalidPoints`, also where a point is faster than the roofline.
        """
        model = cls(Points.of(tokens, seconds, "seconds"), visible_pairs, floor_seconds, noise, widening)
        pairs = [model._pairs(length) for length in model.points.tokens]
        if any(after < before for before, after in pairwise(pairs)):
            raise InvalidPoints("visible_pairs falls with the length")
        for length, measured in zip(model.points.tokens, model.points.values, strict=True):
            if measured < (floor := model._floor(length)):
                raise InvalidPoints(f"{measured:.3g} s at {length} tokens is faster than the roofline, {floor:.3g} s")
        return model

    def predict(self, tokens: int) -> TimePrediction:
        """Seconds at a length: as measured there, else interpolated, else extrapolated.

        Extrapolated figures never fall with the length. Raises `Unpredictable`.
        """
        answer = self.bounds(tokens)
        if answer.provenance == "extrapolated":
            if self._outgrown:
                raise Unpredictable("outgrew its work", self._outgrown)
            refuse_wide(f"at {tokens} tokens", answer.low, answer.high)
        return answer

    def bounds(self, tokens: int) -> TimePrediction:
        """As `predict`, however wide the band, and of times that outgrew their work from how they last grew.

        The upper end of such a band limits the time all the same, which is what a choice asks. Raises `Unpredictable`.
        """
        measured = self.points.measured(tokens)
        if measured is not None:
            return TimePrediction(measured, measured, measured, "measured")
        self.points.refuse(tokens)
        if tokens < self.points.last[0]:
            return self._interpolated(tokens)
        return self._as_it_grew(tokens) if self._outgrown else self._extrapolated(tokens)

    def own_score(self) -> float | None:
        """How far off this curve's shorter lengths would have been at its last one, in half bands; None if unknown."""
        points = dict(zip(self.points.tokens, self.points.values, strict=True))
        return own_score(points, self._foretold)

    def _foretold(self, shorter: Mapping[int, float], tokens: int) -> tuple[float, float] | None:
        if len(shorter) < FEWEST_SCORED or FURTHEST * max(shorter) < tokens:
            return None
        points = Points.of([*shorter], [*shorter.values()], "seconds")
        model = replace(self, points=points, widening=1.0)
        if model._outgrown:
            return None
        answer = model._extrapolated(tokens)
        return answer.seconds, math.log(answer.high / answer.seconds) if answer.high > answer.seconds else DRIFT

    def _extrapolated(self, tokens: int) -> TimePrediction:
        fit, terms, (_, last_seconds) = self._fit, self._terms(tokens), self.points.last
        by_work = last_seconds * float(terms[2])
        reserve = RESERVE * fit.misfit**2 / (fit.misfit**2 + EXACT**2)
        seconds = (1 - reserve) * last_seconds * fit.anchored(terms) + reserve * by_work
        drift = DRIFT * math.log2(tokens / self.points.last[0])
        half_band = self.widening * math.hypot(fit.noise_at(terms), DOUBT * math.log(by_work / seconds), drift)
        return self._banded(tokens, seconds, half_band, "extrapolated")

    def _as_it_grew(self, tokens: int) -> TimePrediction:
        """From the declared growth, if what broke it is over, to the steepest of the last doublings, if it goes on."""
        last, last_seconds = self.points.last
        by_work = last_seconds * max(float(self._terms(tokens)[2]), tokens / last)
        known = list(zip(self.points.tokens, self.points.values, strict=True))[-LATEST:]
        steepest = max(math.log(b / a) / math.log(after / before) for (before, a), (after, b) in pairwise(known))
        steep = max(by_work, last_seconds * (tokens / last) ** steepest)
        half_band = self.widening * math.hypot(self.noise, DRIFT * math.log2(tokens / last))
        seconds = math.sqrt(by_work * steep)
        return self._banded(tokens, seconds, math.log(steep / seconds) + half_band, "extrapolated")

    def _interpolated(self, tokens: int) -> TimePrediction:
        """Between the two neighbours, which keep their measured times, along the shape of the fit."""
        seconds, misfit = self.points.between(tokens, lambda length: self._fit.at(self._terms(length)))
        return self._banded(tokens, seconds, math.hypot(self._fit.noise_between(), DOUBT * misfit), "interpolated")

    def _banded(self, tokens: int, seconds: float, half_band: float, provenance: Provenance) -> TimePrediction:
        """The figure with its band, which is even on a logarithmic scale; nothing below the roofline."""
        floor, factor = self._floor(tokens), band_factor(half_band)
        low, high = max(floor, seconds / factor), max(floor, seconds * factor)
        return TimePrediction(max(floor, seconds), low, high, provenance)

    @cached_property
    def _fit(self) -> Fit:
        lengths = np.array(self.points.tokens, float)
        terms = np.stack([self._terms(length) for length in self.points.tokens])
        return fit_nonnegative(terms, np.array(self.points.shares), lengths / lengths[-1], max(self.noise, NOISE))

    @cached_property
    def _outgrown(self) -> str:
        """How the times outgrow every term, which no sum of the terms can; else empty."""
        last, last_seconds = self.points.last
        for length, seconds in zip(self.points.tokens, self.points.values, strict=True):
            allowed = max(last / length, self._pairs(last) / self._pairs(length))
            grown = last_seconds / seconds
            if 2 * length <= last and grown > OUTGROWN * allowed:
                return (
                    f"from {length} to {last} tokens the time grew {grown:.2f} times, the length and the declared "
                    f"pairs at most {allowed:.2f} times: the kernel computes more than it declares, or outgrew a cache"
                )
        return ""

    def _terms(self, tokens: int) -> Array:
        last = self.points.last[0]
        return np.array([1.0, tokens / last, self._pairs(tokens) / self._pairs(last)])

    def _pairs(self, tokens: int) -> float:
        pairs = float(self.visible_pairs(tokens))
        if not math.isfinite(pairs) or pairs <= 0:
            raise InvalidPoints(f"visible_pairs must be a positive finite number, not {pairs} at {tokens} tokens")
        return pairs

    def _floor(self, tokens: int) -> float:
        floor = 0.0 if self.floor_seconds is None else float(self.floor_seconds(tokens))
        if not math.isfinite(floor) or floor < 0:
            raise InvalidPoints(f"floor_seconds must be a finite number of at least 0, not {floor} at {tokens} tokens")
        return floor


def calibrated(models: Iterable[TimeModel]) -> list[TimeModel]:
    """The models of one machine's curves, their bands as wide as these curves' own last lengths ask for."""
    found = list(models)
    factor = pooled_quantile(score for model in found if (score := model.own_score()) is not None)
    return [replace(model, widening=factor) for model in found]
