"""One sample of time: of a CPU by wall and process time, of a CUDA device by events."""

import math
import resource
import time
from collections.abc import Callable
from statistics import median
from typing import Any, Final

import msgspec
import torch

LEAST_SAMPLE_SECONDS: Final = 0.01
REFILL_UP_TO_SECONDS: Final = 2.0
"""Up to here a call off the clock comes first: other processes left the caches cold, and memory that lay
idle may have been taken back by the system (seen: 260,000 page faults in the first call after a pause)."""

CUDA_CALLS: Final = 10
HOT_SAMPLES: Final = 5
CPU_TIMER: Final = "wall and process CPU time, warm"
CUDA_TIMER: Final = "CUDA events, L2 flushed before each call"


class Sample(msgspec.Struct, frozen=True):
    """Seconds per call, and what the operating system did meanwhile."""

    wall_seconds: float
    cpu_seconds: float
    involuntary_switches: int
    minor_faults: int
    latency_seconds: float | None = None


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
    """Cold device time and host-inclusive latency; the flush buffer is made once, outside the clock."""

    def __init__(self, device: str) -> None:
        """Allocate a buffer of twice the L2 cache."""
        self.device = device
        cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self.flush = torch.empty(max(2 * cache_bytes, 2**20), dtype=torch.uint8, device=device)

    def measure(self, call: Callable[[], Any]) -> Sample:
        """The median over calls, each after an L2 flush; then one call timed from the host."""
        pairs = []
        before = resource.getrusage(resource.RUSAGE_SELF)
        cpu = time.process_time()
        with torch.cuda.device(self.device):
            for _ in range(CUDA_CALLS):
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                self.flush.zero_()
                start.record()
                call()
                stop.record()
                pairs.append((start, stop))
            torch.cuda.synchronize()
            cpu = (time.process_time() - cpu) / CUDA_CALLS
            wall = time.perf_counter()
            call()
            torch.cuda.synchronize()
            latency = time.perf_counter() - wall
        after = resource.getrusage(resource.RUSAGE_SELF)
        return Sample(
            wall_seconds=median(start.elapsed_time(stop) for start, stop in pairs) / 1e3,
            cpu_seconds=cpu,
            involuntary_switches=after.ru_nivcsw - before.ru_nivcsw,
            minor_faults=after.ru_minflt - before.ru_minflt,
            latency_seconds=latency,
        )

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
                for _ in range(CUDA_CALLS):
                    graph.replay()
                stop.record()
                stop.synchronize()
                samples.append(float(start.elapsed_time(stop)) / 1e3 / CUDA_CALLS)
        return median(samples)
