"""Least squares with non-negative coefficients on three terms, and what noise does to it.

Terms and values are multiples of those at the last length; residuals are relative.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reports.student import student_quantile

Array = NDArray[np.float64]

ASSUMED_FREEDOM: Final = 2
"""How many degrees of freedom the noise is worth that is assumed before any residual is seen."""

_BETTER: Final = 1e-9
"""By how much a larger set of terms must lower the residual to be preferred."""


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """Coefficients, and the change of each for a relative change of each point.

    `misfit` is the relative noise that the residuals show, `noise` the same with the assumption made
    beforehand, `freedom` the degrees of freedom behind `noise`.
    """

    coefficients: Array
    response: Array
    misfit: float
    noise: float
    freedom: float

    def at(self, terms: Array) -> float:
        """The fitted multiple of the last value."""
        return float(terms @ self.coefficients)

    def anchored(self, terms: Array) -> float:
        """The fitted multiple of the last value, where the fit is moved onto the last point."""
        return self.at(terms) / self.at(np.ones_like(terms))

    def noise_at(self, terms: Array) -> float:
        """Half of the 90 % band that noise alone gives an anchored figure, as a natural logarithm.

        The measurement that the figure will be held against counts too: its own noise is no smaller.
        """
        last = np.ones_like(terms)
        from_points = (terms / self.at(terms) - last / self.at(last)) @ self.response
        from_points[-1] += 1
        return self._half_band(1 + float(from_points @ from_points))

    def noise_between(self) -> float:
        """The same for a figure between two points: its own noise, and that of their mean."""
        return self._half_band(1.5)

    def _half_band(self, variances: float) -> float:
        return student_quantile(0.95, self.freedom) * self.noise * float(np.sqrt(variances))


def fit_nonnegative(terms: Array, values: Array, weights: Array, assumed_noise: float) -> Fit:
    """Fit values (positive, the last one 1) on terms (points × terms), with weights of the relative residuals."""
    rows = terms * (weights / values)[:, None]
    active, coefficients = _best(rows, weights)
    response = np.zeros((terms.shape[1], len(values)))
    response[active] = np.linalg.pinv(rows[:, active]) * weights
    squares = float(np.sum((rows @ coefficients - weights) ** 2))
    expected = float(np.sum((rows @ response - np.diag(weights)) ** 2))
    freedom = len(values) - len(active)
    known = freedom if expected > _BETTER else 0
    variance = squares / expected if known else 0.0
    noise = np.sqrt((ASSUMED_FREEDOM * assumed_noise**2 + known * variance) / (ASSUMED_FREEDOM + known))
    return Fit(coefficients, response, float(np.sqrt(variance)), float(noise), ASSUMED_FREEDOM + known)


def _best(rows: Array, target: Array) -> tuple[list[int], Array]:
    """The terms in use and all coefficients: of the sets whose free solution is not negative, the closest.

    That is the solution with non-negative coefficients; with three terms there are seven sets.
    """
    count = rows.shape[1]
    best: tuple[float, list[int], Array] | None = None
    for size in range(1, count + 1):
        for active in map(list, combinations(range(count), size)):
            solution = np.linalg.lstsq(rows[:, active], target)[0]
            if np.any(solution < 0):
                continue
            coefficients = np.zeros(count)
            coefficients[active] = solution
            squares = float(np.sum((rows @ coefficients - target) ** 2))
            if best is None or squares < best[0] - _BETTER * float(target @ target):
                best = squares, active, coefficients
    assert best is not None  # one term alone, positive as the target is, has a positive coefficient
    return best[1], best[2]
