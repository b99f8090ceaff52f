"""How a machine's pace changes from run to run, and what that makes of the bands of times that were not measured."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from reports.choice import choose
from reports.question import Budget, Question
from reports.session_drift import session_drift
from tests.results_builder import as_rows, case, line


def measured(
    run: str, pace: float, lengths: Sequence[int] = (256, 512, 1024, 2048, 4096), variant: str = "local_window/tiled"
) -> list[dict[str, Any]]:
    """A variant of half the baseline's time, on a machine that runs at some pace."""
    return [
        line(case(variant, tokens), run=run, seconds=pace * tokens * 1e-6, ratio=0.5, visible_pairs=tokens)
        | {"key": f"{run} {tokens}"}
        for tokens in lengths
    ]


def test_without_a_second_run_nothing_is_known() -> None:
    assert session_drift([]) == 0.0
    assert session_drift(as_rows(measured("a", 1.0))) == 0.0
    assert session_drift(as_rows([*measured("a", 1.0, [256]), *measured("b", 2.0, [512])])) == 0.0


def test_the_drift_is_that_of_the_baseline_and_pooled_over_lengths() -> None:
    rows = as_rows([*measured("a", 1.0), *measured("b", 1.25)])
    assert session_drift(rows) == pytest.approx(math.log(1.25) / math.sqrt(2))
    same = as_rows([*measured("a", 1.0), *measured("b", 1.0)])
    assert session_drift(same) == pytest.approx(0.0, abs=1e-12)


def test_another_variant_is_no_drift() -> None:
    fast, slow = measured("a", 1.0), measured("b", 3.0)
    for one in slow:  # a slower variant beside the same baseline
        one["ratio"] = 1.5
    assert session_drift(as_rows([*fast, *slow])) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("tokens", [3000, 8192])
def test_bands_of_what_was_not_measured_allow_for_it(tokens: int) -> None:
    def band(pace: float) -> float:
        """How wide it is where another variant was measured in another run."""
        rows = as_rows([*measured("a", 1.0), *measured("b", pace, [256], "linear_scan/chunked")])
        fitting = {one.variant: one for one in choose(rows, Question(tokens=tokens), Budget()).fitting}
        figure = fitting["local_window/tiled"].figures.seconds
        assert figure.provenance == ("interpolated" if tokens < 4096 else "extrapolated")
        return figure.most / figure.least

    assert band(1.3) > 1.2 * band(1.0)
