"""Memory at lengths that were not measured.

Allocator peaks have no noise: a sum of 1, N and N² with coefficients that are not negative describes a
variant that keeps whole matrices to the byte. Small sizes are piecewise, so that the weights of the
points rise steeply with the length. A variant that works through a buffer of bounded size stops
growing, which no shorter length can show: the lower end of the band stands for that.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Self

import numpy as np

from reports.nonnegative_fit import Array, Fit, fit_nonnegative
from reports.prediction import InvalidPoints, MemoryPrediction, Points, band_factor, refuse_wide

ROUNDING: Final = 0.001
"""The relative error of one size that is assumed before any residual is seen: allocators round up."""

STEEPNESS: Final = 3
"""The power of the length with which the weights rise: the last two points count, others break ties."""

DOUBT: Final = 0.5
"""The share of a misfit between two neighbours that goes into the band between them."""


def _nothing(_tokens: int) -> float:
    return 0.0


@dataclass(frozen=True)
class MemoryModel:
    """Bytes by length, from measured peaks; made by `fit`."""

    points: Points
    certain_bytes: Callable[[int], float]

    @classmethod
    def fit(
        cls,
        *,
        tokens: Sequence[int],
        size_bytes: Sequence[float],
        certain_bytes: Callable[[int], float] = _nothing,
    ) -> Self:
        """The model of one curve, its points in any order.

        `certain_bytes` gives the part of the sizes that is known to grow at every length, such as q,
        k, v and the output. Raises `InvalidPoints`.
        """
        points = Points.of(tokens, size_bytes, "sizes")
        for length, size in zip(points.tokens, points.values, strict=True):
            if size < certain_bytes(length):
                raise InvalidPoints(f"the size at {length} tokens is less than the part of it that is certain")
        return cls(points, certain_bytes)

    def predict(self, tokens: int) -> MemoryPrediction:
        """Bytes at a length: as measured there, else interpolated, else extrapolated. Raises `Unpredictable`."""
        answer = self.bounds(tokens)
        if answer.provenance == "extrapolated":
            refuse_wide(f"at {tokens} tokens", answer.low, answer.high)
        return answer

    def bounds(self, tokens: int) -> MemoryPrediction:
        """As `predict`, however wide the band: its upper end limits the size all the same. Raises `Unpredictable`."""
        measured = self.points.measured(tokens)
        if measured is not None:
            return MemoryPrediction(measured, measured, measured, "measured")
        self.points.refuse(tokens)
        if tokens < self.points.last[0]:
            return self._interpolated(tokens)
        return self._extrapolated(tokens)

    def _extrapolated(self, tokens: int) -> MemoryPrediction:
        """The fit; at the low end all that grew in proportion to the length has stopped, but for the certain part."""
        (last, last_bytes), terms = self.points.last, self._terms(tokens)
        size = last_bytes * self._fit.anchored(terms)
        matrices = last_bytes * self._fit.anchored(np.array([1.0, 1.0, terms[2]]))
        stopped = min(size, matrices + self.certain_bytes(tokens) - self.certain_bytes(last))
        factor = band_factor(self._fit.noise_at(terms))
        return MemoryPrediction(size, stopped / factor, size * factor, "extrapolated")

    def _interpolated(self, tokens: int) -> MemoryPrediction:
        size, misfit = self.points.between(tokens, lambda length: self._fit.at(self._terms(length)))
        factor = band_factor(math.hypot(self._fit.noise_between(), DOUBT * misfit))
        return MemoryPrediction(size, size / factor, size * factor, "interpolated")

    @cached_property
    def _fit(self) -> Fit:
        lengths = np.array(self.points.tokens, float)
        terms = np.stack([self._terms(length) for length in self.points.tokens])
        return fit_nonnegative(terms, np.array(self.points.shares), (lengths / lengths[-1]) ** STEEPNESS, ROUNDING)

    def _terms(self, tokens: int) -> Array:
        share = tokens / self.points.last[0]
        return np.array([1.0, share, share**2])
