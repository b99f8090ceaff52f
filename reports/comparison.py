"""Two sets of measurements, case by case: what became slower, larger, less accurate or stopped working.

Times are compared as ratios to the baseline that was measured in the same rounds: the machine's
load moves both alike. What remains is the spread of the rounds and the chance of the process, such
as where its memory lies. Cases that were timed in several processes each (`attnscape run
--processes 8`) tell both by themselves, and small changes can be told. Of cases that were timed in
one, each ratio's interval tells the first, and the twin the second (the baseline measured once
more in a process of its own).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, median, variance
from typing import Final, Literal

from reports.curve import labelled
from reports.records import ResultsError, Row
from reports.student import student_quantile

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

FEWEST_PROCESSES: Final = 4
"""So many processes on both sides tell the noise of a case by themselves."""

LEAST_PROCESS_NOISE: Final = 0.005
"""Of a log-ratio in one of several processes: a few that agree by chance must not make a change of no size sure."""

_NORMAL: Final = NormalDist()
_HALF_WIDTHS: Final = 2 * 1.96
_ROBUST_DEVIATION: Final = 1.4826


@dataclass(frozen=True, slots=True)
class Reading:
    """What one set says of one case; ratio is the time over the baseline's, errors are relative.

    `processes` are the same ratio in each process that the case was timed in.
    """

    status: str
    reason: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    extra_bytes: float | None = None
    error: float | None = None
    baseline: str = ""
    processes: tuple[float, ...] = ()


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
    """Every case that both sides have, those that only one has, and the noise that was reckoned with.

    `noise` is that from process to process, of cases that were timed in one; None where there are none.
    `fewest_processes` is the smaller side's of the case that was timed in the fewest.
    """

    first: str
    second: str
    lines: tuple[Line, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    noise: float | None
    margin: float
    fewest_processes: int

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
    ratios, processes = (row.ratio, row.ratio_low, row.ratio_high), row.process_ratios
    if _by_cpu(row):
        ratios, processes = (row.cpu_ratio, row.cpu_ratio_low, row.cpu_ratio_high), row.process_cpu_ratios
    return Reading(
        row.status,
        row.reason,
        *ratios,
        extra_bytes=row.extra_bytes,
        error=row.implementation_error,
        baseline=row.baseline_label or "",
        processes=processes,
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
    timed = [case for case, (a, b) in pairs.items() if _change(a, b) is not None]
    # Bonferroni: the more cases, the wider each interval, so that all of them together keep their promise.
    beyond = FALSE_ALARMS / 2 / max(1, len(timed))
    processes = [min(len(side.processes) for side in pairs[case]) for case in timed]
    single = any(count < FEWEST_PROCESSES for count in processes)
    noise = _noise(first, second, pairs) if single else None
    lines = [line for case, (a, b) in pairs.items() for line in _lines(case, a, b, noise, beyond, margin)]
    return Comparison(
        first.label,
        second.label,
        tuple(lines),
        tuple(case for case in first.cases if case not in second.cases),
        tuple(case for case in second.cases if case not in first.cases),
        noise,
        margin,
        min(processes, default=0),
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


def interval(a: Reading, b: Reading, noise: float | None, beyond: float) -> tuple[float, float, float] | None:
    """The log of B's ratio over A's, and an interval that it leaves by chance with `beyond` on either side.

    None where there are no two ratios to the same baseline.
    """
    change = _change(a, b)
    if change is None:
        return None
    if min(len(a.processes), len(b.processes)) >= FEWEST_PROCESSES:
        return _interval_of_processes(a.processes, b.processes, beyond)
    assert noise is not None
    own = [_deviation_of(side) for side in (a, b)]
    wide = _NORMAL.inv_cdf(1 - beyond) * math.sqrt(2 * noise**2 + sum(each**2 for each in own))
    return change, change - wide, change + wide


def _interval_of_processes(a: Sequence[float], b: Sequence[float], beyond: float) -> tuple[float, float, float]:
    """By Welch's t: every process is one observation, whatever its rounds did."""
    logs = [[math.log(ratio) for ratio in side] for side in (a, b)]
    change = fmean(logs[1]) - fmean(logs[0])
    parts = [max(variance(side), LEAST_PROCESS_NOISE**2) / len(side) for side in logs]
    freedom = sum(parts) ** 2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, logs, strict=True))
    wide = student_quantile(1 - beyond, freedom) * math.sqrt(sum(parts))
    return change, change - wide, change + wide


def _lines(case: str, a: Reading, b: Reading, noise: float | None, beyond: float, margin: float) -> Iterable[Line]:
    if a.status != b.status and "ok" in (a.status, b.status):
        broken = a.status == "ok"
        said = (b if broken else a).reason
        reason = f"{a.status} → {b.status}" + (f": {said}" if said else "")
        yield Line(case, "status", "BROKEN" if broken else "FIXED", reason=reason)
        return
    found = interval(a, b, noise, beyond)
    if found is not None:
        verdict = time_verdict(*found, margin)
        change, low, high = map(math.exp, found)
        yield Line(case, "time", verdict, change, low, high)
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
