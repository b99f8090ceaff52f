import math

import pytest

from reports.question import Budget, InvalidQuestion
from reports.units import budget_of, bytes_of, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5ms", 5e-3), ("200 us", 2e-4), ("200µs", 2e-4), ("0.1s", 0.1), ("1e3ns", 1e-6), (" 2.5 MS ", 2.5e-3)],
)
def test_times(text: str, seconds: float) -> None:
    assert seconds_of(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 2**33), ("500 MB", 5e8), ("64mib", 2**26), ("1.5 GB", 1.5e9), ("2TiB", 2**41), ("10KiB", 10240)],
)
def test_sizes(text: str, size: float) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "5", "ms", "5 parsec", "5ms5ms", "1..5ms", "0x5ms", "5e", "½s", "5 GiB"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(InvalidQuestion, match="the time limit must be a number with a unit, such as 5ms"):
        seconds_of(text)


@pytest.mark.parametrize("text", ["0ms", "-5ms", "nan ms", "inf s"])
def test_times_that_are_no_limit(text: str) -> None:
    with pytest.raises(InvalidQuestion, match="the time limit must be a positive finite number"):
        budget_of(text, None, None, None, None)


def test_each_limit_is_given_once() -> None:
    assert budget_of("5ms", "8GiB", 0.1, None, None) == Budget(5e-3, 2.0**33, 0.1)
    assert budget_of(None, None, None, 5, 8) == Budget(5e-3, 8 * 2.0**20)
    for options in (("5ms", None, None, 5.0, None), (None, "1MiB", None, None, 1.0)):
        with pytest.raises(InvalidQuestion, match="are the same limit"):
            budget_of(*options)
    assert math.isnan(seconds_of("nan s"))
