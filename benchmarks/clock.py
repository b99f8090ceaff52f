"""One sample of time: of a CPU by wall and process time, of a CUDA device by events."""

import math
import resource
import time
from collections.abc import Callable
from statistics import median
from typing import Any, Final

import msgspec
import torch

from benchmarks.memory import InstrumentFault

LEAST_SAMPLE_SECONDS: Final = 0.01
REFILL_UP_TO_SECONDS: Final = 2.0
"""Up to here a call off the clock comes first: other processes left the caches cold, and memory that lay
idle may have been taken back by the system (seen: 260,000 page faults in the first call after a pause)."""

CUDA_CALLS: Final = 10
CUDA_SAMPLE_SECONDS: Final = 0.5
"""Of calls that take longer than a tenth of this there are fewer in a sample: their times spread less."""

HOT_SAMPLES: Final = 5
CPU_TIMER: Final = "wall and process CPU time, warm"
CUDA_TIMER: Final = "CUDA events, L2 flushed and all launches queued before each call"

SPIN_CYCLES: Final = 2_000_000
SPIN_WITHIN: Final = (1.3, 3.0)
"""A card that is still waking up raises its clock meanwhile."""

LEAD_FACTOR: Final = 1.5
LEAST_LEAD_SECONDS: Final = 20e-6
MOST_LEAD_SECONDS: Final = 0.02


class Sample(msgspec.Struct, frozen=True):
    """Seconds per call, and what the operating system did meanwhile."""

    wall_seconds: float
    cpu_seconds: float
    involuntary_switches: int
    minor_faults: int
    latency_seconds: float | None = None
    host_bound_share: float | None = None
    """Of the calls on CUDA, those that the card had begun before the host had queued them whole."""


def calls_for(seconds: float) -> int:
    """How many calls make a sample long enough to be timed."""
    return max(1, min(1000, math.ceil(LEAST_SAMPLE_SECONDS / max(seconds, 1e-9))))


def measure_cpu(call: Callable[[], Any], calls: int, *, refill: bool) -> Sample:
    """One sample of `calls` calls in a row; with `refill` after one call off the clock, for cold caches."""
    if refill:
        call()
    before = resource.getrusage(resource.RUSAGE_SELF)
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(calls):
        call()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    after = resource.getrusage(resource.RUSAGE_SELF)
    return Sample(
        wall_seconds=wall / calls,
        cpu_seconds=cpu / calls,
        involuntary_switches=after.ru_nivcsw - before.ru_nivcsw,
        minor_faults=after.ru_minflt - before.ru_minflt,
    )


class CudaClock:
    """Cold device time and host-inclusive latency; the flush buffer is made once, outside the clock.

    As in nvbench, the card is kept busy until the host has queued the whole call: else a call of many short
    kernels would be timed by the host's launches, which `latency_seconds` is there for.
    """

    def __init__(self, device: str, call_seconds: float) -> None:
        """Allocate a buffer of twice the L2 cache, and time the card's spinning; a call takes about so long."""
        self.device = device
        self.calls = cuda_calls_for(call_seconds)
        cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self.flush = torch.empty(max(2 * cache_bytes, 2**20), dtype=torch.uint8, device=device)
        with torch.cuda.device(device):
            self.cycles_per_second = SPIN_CYCLES / min(_spin_seconds() for _ in range(3))

    def measure(self, call: Callable[[], Any]) -> Sample:
        """The median over calls, each after an L2 flush; then one call timed from the host."""
        before = resource.getrusage(resource.RUSAGE_SELF)
        cpu = time.process_time()
        with torch.cuda.device(self.device):
            cycles = int(lead_seconds(_queueing_seconds(call)) * self.cycles_per_second)
            found = [self._one(call, cycles) for _ in range(self.calls)]
            cpu = (time.process_time() - cpu) / self.calls
            wall = time.perf_counter()
            call()
            torch.cuda.synchronize()
            latency = time.perf_counter() - wall
        after = resource.getrusage(resource.RUSAGE_SELF)
        return Sample(
            wall_seconds=median(seconds for seconds, _ in found),
            cpu_seconds=cpu,
            involuntary_switches=after.ru_nivcsw - before.ru_nivcsw,
            minor_faults=after.ru_minflt - before.ru_minflt,
            latency_seconds=latency,
            host_bound_share=sum(late for _, late in found) / self.calls,
        )

    def _one(self, call: Callable[[], Any], cycles: int) -> tuple[float, bool]:
        """Seconds of one call on the card, and whether it had begun before the host had queued it whole."""
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        torch.cuda._sleep(cycles)
        start.record()
        call()
        stop.record()
        late = bool(start.query())
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1e3, late

    def measure_hot(self, call: Callable[[], Any]) -> float:
        """Seconds of a call replayed as a graph, caches warm: no host, no launches. Raises what a capture raises."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # what a first call allocates or chooses may not happen in a capture
                call()
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                call()
            graph.replay()
            samples: list[float] = []
            for _ in range(HOT_SAMPLES):
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                for _ in range(self.calls):
                    graph.replay()
                stop.record()
                stop.synchronize()
                samples.append(float(start.elapsed_time(stop)) / 1e3 / self.calls)
        return median(samples)


def cuda_calls_for(seconds: float) -> int:
    """How many calls of a sample on CUDA: ten, or as many as fit its time."""
    return max(1, min(CUDA_CALLS, int(CUDA_SAMPLE_SECONDS / max(seconds, 1e-9))))


def lead_seconds(queueing: float) -> float:
    """How long the card is held back while the host queues a call that takes it so long.

    A call that waits for the card takes as long as the card does: no lead helps there, and it is bounded.
    """
    return min(MOST_LEAD_SECONDS, LEAD_FACTOR * queueing + LEAST_LEAD_SECONDS)


def _queueing_seconds(call: Callable[[], Any]) -> float:
    """How long the host takes to queue a call for the present card; the call is off the clock."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    seconds = time.perf_counter() - begin
    torch.cuda.synchronize()
    return seconds


def spin_test(device: str) -> None:
    """Twice the cycles must take about twice as long: else events or spinning are not what the clock takes them for.

    Raises `InstrumentFault`.
    """
    with torch.cuda.device(device):
        once, twice = (min(_spin_seconds(cycles) for _ in range(5)) for cycles in (SPIN_CYCLES, 2 * SPIN_CYCLES))
    if not SPIN_WITHIN[0] <= twice / once <= SPIN_WITHIN[1]:
        raise InstrumentFault(f"twice the cycles take {device} {twice / once:.2f} times as long by its events")


def _spin_seconds(cycles: int = SPIN_CYCLES) -> float:
    """How long the present card spins."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(cycles)  # the first one may load the kernel, or wake the card
    start.record()
    torch.cuda._sleep(cycles)
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3
