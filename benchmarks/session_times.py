"""The cases of a session with their samples, and what these make of a row: times, ratios, the check by the ceiling."""

import math
from dataclasses import dataclass, field
from typing import Any

from benchmarks.intervals import median_interval, paired_ratio
from benchmarks.measurement import Case, Measurement
from benchmarks.nvml import joined
from benchmarks.workers import Worker

ROUNDS = 20
INTERVAL_WIDTH = 0.02
TWIN_WITHIN = 0.01
CPU_RATIO = ("cpu_ratio", "cpu_ratio_low", "cpu_ratio_high", "twin_cpu_ratio")


@dataclass(slots=True)
class Entry:
    """One case in a session: its worker while it lives, its figures, its samples by round.

    `first_rounds` are the numbers of the first round of each process that it is sampled in.
    """

    case: Case
    worker: Worker | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    status: str = "ok"
    reason: str = ""
    samples: dict[int, Any] = field(default_factory=dict)
    states: list[dict[str, float | str]] = field(default_factory=list)
    first_rounds: list[int] = field(default_factory=list)
    slowed: bool = False
    silent: bool = False
    """Whether its worker gave no answer in time; its reference, or a time that is only foretold, is another matter."""
    cut: bool = False
    """Whether the time was up before it answered: then it has no row, and is left for another run."""
    braked: int = 0
    """Samples that were rejected."""
    slow: dict[int, tuple[Any, dict[str, float | str]]] = field(default_factory=dict)
    """Samples, with the card's state, at a fraction of the clock that nothing explains."""

    def add(self, number: int, sample: Any, state: dict[str, float | str], rejected: str) -> None:
        """One round's sample; `rejected` tells `brake` or `clock` where it was not taken as it should be."""
        if not rejected:
            self.samples[number] = sample
            self.states.append(state)
        elif rejected == "clock":
            self.slow[number] = sample, state
        else:
            self.braked += 1

    def settle_for_slow(self) -> None:
        """Where no sample was taken at the full clock, those below it are the case's: such a row is marked noisy."""
        if not self.samples and self.slow:
            self.samples = {number: sample for number, (sample, _) in self.slow.items()}
            self.states = [state for _, state in self.slow.values()]
            self.slowed = True

    def fail(self, status: str, reason: str) -> None:
        """No figure survives a failure; the worker does not either."""
        self.status, self.reason, self.figures = status, reason, {}
        self.samples.clear()
        self.slow.clear()
        if self.worker is not None:
            self.worker.end()
            self.worker = None

    def walls(self) -> dict[int, float]:
        """Wall seconds by round."""
        return {number: sample.wall_seconds for number, sample in self.samples.items()}


def settled(entry: Entry, baseline: Entry, twin: Entry) -> bool:
    """Whether the interval of the paired ratio is narrow and the A/A twin agrees."""
    if not entry.samples:
        return False
    if not comparable(entry, baseline, twin):
        middle, low, high = median_interval(list(entry.walls().values()))
        return (high - low) / middle < INTERVAL_WIDTH
    ratio, low, high = paired(entry, baseline)
    twin_ratio, _, _ = paired(twin, baseline)
    return (high - low) / ratio < INTERVAL_WIDTH and abs(twin_ratio - 1) <= TWIN_WITHIN


def comparable(entry: Entry, baseline: Entry, twin: Entry) -> bool:
    """Whether both share a round with the baseline: a brake may have cost either any of its samples."""
    return all(one.samples.keys() & baseline.samples.keys() for one in (entry, twin))


def paired(entry: Entry, baseline: Entry) -> tuple[float, float, float]:
    """The ratio of wall times over the rounds that both have."""
    return _paired(entry.walls(), baseline.walls())


def _paired(own: dict[int, float], other: dict[int, float]) -> tuple[float, float, float]:
    common = sorted(own.keys() & other.keys())
    return paired_ratio([own[number] for number in common], [other[number] for number in common])


def process_ratios(entry: Entry, own: dict[int, float], other: dict[int, float]) -> list[float]:
    """The paired ratio within each process that shares a round with the baseline's of the same time."""
    ends = [*entry.first_rounds[1:], math.inf]
    parts = [
        [{number: value for number, value in side.items() if first <= number < end} for side in (own, other)]
        for first, end in zip(entry.first_rounds, ends, strict=True)
    ]
    return [_paired(a, b)[0] for a, b in parts if a.keys() & b.keys()]


def add_times(row: Measurement, entry: Entry, baseline: Entry | None, twin: Entry | None) -> None:
    """Medians, intervals, paired ratios and the samples themselves."""
    samples = [entry.samples[number] for number in sorted(entry.samples)]
    row.wall_samples = [sample.wall_seconds for sample in samples]
    row.cpu_samples = [sample.cpu_seconds for sample in samples]
    row.involuntary_switches = [sample.involuntary_switches for sample in samples]
    row.minor_faults = [sample.minor_faults for sample in samples]
    row.seconds, row.seconds_low, row.seconds_high = median_interval(row.wall_samples)
    row.cpu_seconds = median_interval(row.cpu_samples)[0]
    latencies = [sample.latency_seconds for sample in samples if sample.latency_seconds is not None]
    row.latency_seconds = median_interval(latencies)[0] if latencies else None
    shares = [sample.host_bound_share for sample in samples if sample.host_bound_share is not None]
    row.host_bound_share = sum(shares) / len(shares) if shares else None
    row.device_state = joined(entry.states)
    if entry.braked:
        row.device_state["rejected_share"] = entry.braked / (entry.braked + len(samples) + len(entry.slow))
    if entry.case.device == "cpu":  # the host is idle while a card works
        busy = [sample.cpu_seconds / (sample.wall_seconds * (row.threads or 1)) for sample in samples]
        row.clean_share = sum(share >= 0.95 for share in busy) / len(busy)
    row.noisy = True
    if baseline is not None and twin is not None and comparable(entry, baseline, twin):
        row.baseline, row.baseline_causal = baseline.case.variant, baseline.case.causal
        row.ratio, row.ratio_low, row.ratio_high = paired(entry, baseline)
        own, other, again = ({n: s.cpu_seconds for n, s in e.samples.items()} for e in (entry, baseline, twin))
        row.cpu_ratio, row.cpu_ratio_low, row.cpu_ratio_high = _paired(own, other)
        row.process_ratios = process_ratios(entry, entry.walls(), baseline.walls())
        row.process_cpu_ratios = process_ratios(entry, own, other)
        row.twin_ratio, row.twin_cpu_ratio = paired(twin, baseline)[0], _paired(again, other)[0]
        row.noisy = len(samples) < ROUNDS or entry.slowed or baseline.slowed or not settled(entry, baseline, twin)


def add_ceiling(row: Measurement, ceilings: dict[str, Any]) -> None:
    """The least time that the machine's measured ceilings allow, and the refusal of what is faster.

    Short problems live in the cache, so only arithmetic can refuse a figure.
    """
    assert row.useful_flops is not None and row.traffic_bytes is not None and row.seconds is not None
    arithmetic = row.useful_flops / ceilings["matmul_flops"][row.case.dtype]
    row.ceiling_seconds = max(arithmetic, row.traffic_bytes / ceilings["copy_bytes_per_second"])
    row.ceiling_share = row.ceiling_seconds / row.seconds
    if row.seconds < arithmetic / 1.5:
        row.status = "error"
        row.reason = f"a fault of the measurement: {row.seconds:.3g} s, but the arithmetic takes {arithmetic:.3g} s"
        times = ("seconds", "seconds_low", "seconds_high", "cpu_seconds", "latency_seconds", "hot_seconds")
        for name in (*times, "ratio", "ratio_low", "ratio_high", *CPU_RATIO, "twin_ratio"):
            setattr(row, name, None)
        row.process_ratios = row.process_cpu_ratios = []
