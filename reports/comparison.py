"""Two sets of measurements, case by case: what became slower, larger, less accurate or stopped working.

Times are compared as ratios to the baseline that was measured in the same rounds: the machine's
load moves both alike. What remains is the spread of the rounds, which each ratio's interval
tells, and the chance of the process, which the twin tells (the baseline measured a second time
in a process of its own).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median
from typing import Final, Literal

from reports.curve import labelled
from reports.records import ResultsError, Row

Verdict = Literal["SLOW", "FAST", "SAME", "AMBIGUOUS", "LARGER", "SMALLER", "WORSE", "BETTER", "BROKEN", "FIXED"]

MARGIN: Final = 0.05
"""Changes of time within ± this share do not matter; SAME are those whose interval is within twice as much."""

MEMORY_MARGIN: Final = 0.01
"""Peaks are counted, not sampled: they repeat to the byte but for the allocator's rounding."""

ERROR_FACTOR: Final = 1.25
ROUNDING: Final = 1e-12
"""Errors below this are rounding of float64 and never worse than one another."""

FALSE_ALARMS: Final = 0.002
"""How often a comparison of equals may call anything slow or fast, all its cases together: a gate that cries
wolf once in twenty commits is switched off."""

LEAST_NOISE: Final = 0.015
"""Of a log-ratio from process to process: the twins show the baseline's only, and other variants depend more on
where their memory happens to lie (seen: 5 % between two runs of one process each, on a quiet machine)."""

_NORMAL: Final = NormalDist()
_HALF_WIDTHS: Final = 2 * 1.96
_ROBUST_DEVIATION: Final = 1.4826


@dataclass(frozen=True, slots=True)
class Reading:
    """What one set says of one case; ratio is the time over the baseline's, errors are relative."""

    status: str
    reason: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    extra_bytes: float | None = None
    error: float | None = None
    baseline: str = ""


@dataclass(frozen=True, slots=True)
class Readings:
    """One side of a comparison: its name, its machine, its cases and its noise from process to process (of a log)."""

    label: str
    machine: str
    cases: Mapping[str, Reading]
    noise: float | None


@dataclass(frozen=True, slots=True)
class Line:
    """One case and quantity on both sides; `change` is B over A, with its interval where one is known."""

    case: str
    quantity: Literal["time", "memory", "error", "status"]
    verdict: Verdict
    change: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every case that both sides have, those that only one has, and the noise that was reckoned with."""

    first: str
    second: str
    lines: tuple[Line, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    noise: float
    margin: float

    def count(self, verdict: Verdict) -> int:
        """How many lines have that verdict."""
        return sum(line.verdict == verdict for line in self.lines)


def failing(words: Iterable[str]) -> list[Verdict]:
    """The verdicts that words such as `slow` name. Raises `ResultsError`."""
    known: dict[str, Verdict] = {"slow": "SLOW", "larger": "LARGER", "worse": "WORSE", "broken": "BROKEN"}
    wanted = list(words)
    if unknown := [word for word in wanted if word not in known]:
        raise ResultsError(f"--fail-on takes {', '.join(known)}, not {', '.join(unknown)}")
    return [known[word] for word in wanted]


def readings_of_rows(label: str, rows: Iterable[Row]) -> Readings:
    """The readings of one machine's rows; on one processor thread the ratio of CPU time, which neighbours move less."""
    found = list(rows)
    twins = [math.log(ratio) for row in found if (ratio := _twin(row)) is not None]
    cases = {case_label(row): _reading(row) for row in found}
    return Readings(label, found[0].machine if found else "", cases, twin_noise(twins) if twins else None)


def case_label(row: Row) -> str:
    """All of a case but its machine, in words."""
    case = row.case
    shape = f"{case.batch}×{case.heads}/{case.kv_heads}×{case.tokens}/{case.kv_tokens}×{case.head_dim}"
    words = (labelled(case.variant, case.parameters), case.mode, case.dtype, case.device, shape)
    return " ".join((*words, "causal" if case.causal else "not causal", case.inputs))


def _by_cpu(row: Row) -> bool:
    return row.case.device == "cpu" and row.threads == 1 and None not in (row.cpu_ratio_low, row.twin_cpu_ratio)


def _twin(row: Row) -> float | None:
    return row.twin_cpu_ratio if _by_cpu(row) else row.twin_ratio


def _reading(row: Row) -> Reading:
    ratios = (row.ratio, row.ratio_low, row.ratio_high)
    if _by_cpu(row):
        ratios = (row.cpu_ratio, row.cpu_ratio_low, row.cpu_ratio_high)
    error = row.implementation_error
    return Reading(
        row.status, row.reason, *ratios, extra_bytes=row.extra_bytes, error=error, baseline=row.baseline_label or ""
    )


def twin_noise(logs: Sequence[float]) -> float:
    """The root mean square: of a handful of twins a robust measure would leave out the one that tells."""
    return math.sqrt(sum(log**2 for log in logs) / len(logs))


def deviation(logs: Sequence[float]) -> float:
    """A robust standard deviation about zero: half of all values lie within two thirds of it."""
    return _ROBUST_DEVIATION * median(map(abs, logs))


def compare(first: Readings, second: Readings, margin: float = MARGIN) -> Comparison:
    """Hold the second set against the first. Raises `ResultsError` where they have no case in common."""
    common = [case for case in first.cases if case in second.cases]
    if not common:
        raise ResultsError(f"{first.label} and {second.label} have no case in common")
    pairs = {case: (first.cases[case], second.cases[case]) for case in common}
    noise = _noise(first, second, pairs)
    timed = [case for case, (a, b) in pairs.items() if _change(a, b) is not None]
    # Bonferroni: the more cases, the wider each interval, so that all of them together keep their promise.
    reach = _NORMAL.inv_cdf(1 - FALSE_ALARMS / 2 / max(1, len(timed)))
    lines = [line for case, (a, b) in pairs.items() for line in _lines(case, a, b, noise, reach, margin)]
    return Comparison(
        first.label,
        second.label,
        tuple(lines),
        tuple(case for case in first.cases if case not in second.cases),
        tuple(case for case in second.cases if case not in first.cases),
        noise,
        margin,
    )


def _noise(first: Readings, second: Readings, pairs: Mapping[str, tuple[Reading, Reading]]) -> float:
    """Of one log-ratio, from one process to another: by the twins, else by the cases themselves, most of them equal."""
    known = [side.noise for side in (first, second) if side.noise is not None]
    if known:
        return max(LEAST_NOISE, *known)
    changes = [change for a, b in pairs.values() if (change := _change(a, b)) is not None]
    return max(LEAST_NOISE, deviation(changes) / math.sqrt(2)) if changes else LEAST_NOISE


def _change(a: Reading, b: Reading) -> float | None:
    """The log of B's ratio over A's."""
    if a.ratio is None or b.ratio is None or a.baseline != b.baseline:
        return None
    return math.log(b.ratio / a.ratio)


def _lines(case: str, a: Reading, b: Reading, noise: float, reach: float, margin: float) -> Iterable[Line]:
    if a.status != b.status and "ok" in (a.status, b.status):
        broken = a.status == "ok"
        said = (b if broken else a).reason
        reason = f"{a.status} → {b.status}" + (f": {said}" if said else "")
        yield Line(case, "status", "BROKEN" if broken else "FIXED", reason=reason)
        return
    change = _change(a, b)
    if change is not None:
        own = [_deviation_of(side) for side in (a, b)]
        wide = reach * math.sqrt(2 * noise**2 + sum(each**2 for each in own))
        low, high = change - wide, change + wide
        verdict = time_verdict(change, low, high, margin)
        yield Line(case, "time", verdict, math.exp(change), math.exp(low), math.exp(high))
    if a.extra_bytes is not None and b.extra_bytes is not None:
        # One page more or less is no change of a variant that needs next to nothing.
        grown = (b.extra_bytes + 4096) / (a.extra_bytes + 4096)
        verdict = "LARGER" if grown > 1 + MEMORY_MARGIN else "SMALLER" if grown < 1 - MEMORY_MARGIN else "SAME"
        yield Line(case, "memory", verdict, grown)
    if a.error is not None and b.error is not None:
        worse = max(b.error, ROUNDING) / max(a.error, ROUNDING)
        verdict = "WORSE" if worse > ERROR_FACTOR else "BETTER" if worse < 1 / ERROR_FACTOR else "SAME"
        yield Line(case, "error", verdict, worse)


def _deviation_of(reading: Reading) -> float:
    """Of the log of a ratio, by its 95 % interval; nothing where none was stored."""
    if reading.low is None or reading.high is None:
        return 0.0
    return math.log(reading.high / reading.low) / _HALF_WIDTHS


def time_verdict(change: float, low: float, high: float, margin: float) -> Verdict:
    """SLOW or FAST where the interval is on one side and the change matters; SAME where it is within twice that."""
    limit = math.log1p(margin)
    if low > 0 and change > limit:
        return "SLOW"
    if high < 0 and change < -limit:
        return "FAST"
    if max(-low, high) <= math.log1p(2 * margin):
        return "SAME"
    return "AMBIGUOUS"
