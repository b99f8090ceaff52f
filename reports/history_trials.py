"""What the search for steps finds in simulated histories, beside asv's: `python -m reports.history_trials`.

A history is a number of commits at one level and five more after a step of +10 %, with 3 % noise.
A step is found where it is told within one commit of its place; a false alarm is any other step,
or any at all in a history without one.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reports.change_points import change_points
from reports.quantities import percent_text
from reports.text_table import Table, write_blocks

NOISE: Final = 0.03
STEP: Final = 1.10
AFTER: Final = 5
BEFORE: Final = (10, 20, 50)
HISTORIES: Final = 200

Detector = Callable[[NDArray[np.float64]], list[int]]
"""From figures to the indices of the first commit after each step."""


@dataclass(frozen=True, slots=True)
class Score:
    """Shares of histories: with the step found, with a step told elsewhere, with one told where there is none."""

    found: float
    elsewhere: float
    false_alarms: float


def ours(values: NDArray[np.float64]) -> list[int]:
    """As `attnscape history` does it."""
    return [point.index for point in change_points(values.tolist())]


def of_asv(values: NDArray[np.float64]) -> list[int]:
    """As asv's pages do it."""
    from asv.step_detect import detect_steps

    steps = detect_steps(values.tolist())
    return [begin for begin, *_ in steps[1:]]


def score(detector: Detector, before: int, heavy: bool, histories: int = HISTORIES, seed: int = 0) -> Score:
    """Over simulated histories; `heavy` draws the noise from Student's t with three degrees of freedom."""
    random = np.random.default_rng(seed)
    found = elsewhere = alarms = 0
    for _ in range(histories):
        noise = _noise(random, before + AFTER, heavy)
        alarms += bool(detector(np.exp(noise)))
        noise = _noise(random, before + AFTER, heavy)
        noise[before:] += np.log(STEP)
        steps = detector(np.exp(noise))
        found += any(abs(step - before) <= 1 for step in steps)
        elsewhere += any(abs(step - before) > 1 for step in steps)
    return Score(found / histories, elsewhere / histories, alarms / histories)


def _noise(random: np.random.Generator, count: int, heavy: bool) -> NDArray[np.float64]:
    drawn = random.standard_t(3, count) / np.sqrt(3) if heavy else random.standard_normal(count)
    return NOISE * drawn


def table() -> Table:
    """Both detectors on all kinds of history."""
    lines = []
    for heavy in (False, True):
        for before in BEFORE:
            for name, detector in (("attnscape history", ours), ("asv's steps", of_asv)):
                got = score(detector, before, heavy)
                shares = (percent_text(share) for share in (got.found, got.elsewhere, got.false_alarms))
                lines.append(("Student's t, 3 degrees" if heavy else "normal", str(before), name, *shares))
    header = ("noise", "commits before", "detector", "found", "a step elsewhere", "a step in a flat history")
    title = f"{HISTORIES} histories each: {AFTER} commits after a step to {STEP:.2f}, noise of {100 * NOISE:.0f} %"
    return Table(title, header, tuple(lines), right=frozenset({1, 3, 4, 5}))


if __name__ == "__main__":
    write_blocks([table()], sys.stdout)
