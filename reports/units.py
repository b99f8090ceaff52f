"""Times and sizes as people write them."""

import math
import re
from typing import Final

from reports.question import Budget, InvalidQuestion

SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0}
BYTES: Final = {
    "b": 1.0,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "tb": 1e12,
    "kib": 2.0**10,
    "mib": 2.0**20,
    "gib": 2.0**30,
    "tib": 2.0**40,
}
_AMOUNT: Final = re.compile(r"\s*([-+]?[0-9.]+(?:e[-+]?[0-9]+)?|[-+]?nan|[-+]?inf)\s*([a-zµμ]*)\s*", re.IGNORECASE)


def seconds_of(text: str) -> float:
    """`5ms`, `200 us` or `0.1s` in seconds. Raises `InvalidQuestion`."""
    return _amount(text, SECONDS, "time", "5ms, 200us or 0.1s")


def bytes_of(text: str) -> float:
    """`8GiB` (2**30), `500 MB` (10**6) or `64MiB` in bytes. Raises `InvalidQuestion`."""
    return _amount(text, BYTES, "memory", "8GiB, 512MiB or 500MB")


def budget_of(
    max_time: str | None, max_mem: str | None, max_error: float | None, max_ms: float | None, max_mib: float | None
) -> Budget:
    """The budget of the options of the command line, each limit given once. Raises `InvalidQuestion`."""
    for names, one, other in (("time and --max-ms", max_time, max_ms), ("mem and --max-mib", max_mem, max_mib)):
        if one is not None and other is not None:
            raise InvalidQuestion(f"--max-{names} are the same limit: give one of them")
    plain = Budget.of_options(max_ms, max_mib, max_error)
    return Budget(
        plain.max_seconds if max_time is None else seconds_of(max_time),
        plain.max_bytes if max_mem is None else bytes_of(max_mem),
        max_error,
    )


def _amount(text: str, units: dict[str, float], what: str, examples: str) -> float:
    found = _AMOUNT.fullmatch(text)
    try:
        number, unit = (float(found[1]), found[2].lower()) if found else (math.nan, "")
    except ValueError:
        found = None
    if found is None or unit not in units:
        raise InvalidQuestion(f"the {what} limit must be a number with a unit, such as {examples}, not {text!r}")
    return number * units[unit]
