"""Where the time of one call goes: its operators and kernels, its memory over time, its place under the ceilings."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.clock import Sample
from benchmarks.intervals import median_interval
from benchmarks.operator_counts import Counting
from variants import Problem

PROFILED_SAMPLES: Final = 10
TIMELINE_POINTS: Final = 1000
RANGE: Final = "attnscape: "


def profile_call(
    call: Callable[[], Any],
    ranged_call: Callable[[], Any],
    problem: Problem,
    samples: Sequence[Sample],
    trace: Path,
    calls_per_sample: int,
) -> dict[str, Any]:
    """Times as sampled, then one call counted and one traced; plain data, as `reports.profile_record` reads it.

    `trace` gets the events for Perfetto; on CUDA the allocator's snapshot lies beside it.
    """
    seconds, low, high = median_interval([sample.wall_seconds for sample in samples])
    with Counting() as counting:
        call()
    cuda = problem.device_type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    snapshot = trace.with_name(f"{trace.name.partition('.')[0]}.snapshot.pickle") if cuda else None
    if snapshot is not None:
        torch.cuda.memory._record_memory_history(device=problem.device, stacks="python")  # torch documents no other
    with profile(activities=activities, profile_memory=True, record_shapes=True) as profiler:
        result = ranged_call()
        if cuda:
            torch.cuda.synchronize(problem.device)
    del result
    if snapshot is not None:
        torch.cuda.memory._dump_snapshot(str(snapshot))
        torch.cuda.memory._record_memory_history(enabled=None)
    profiler.export_chrome_trace(str(trace))
    operators, kernels = operator_times(profiler, cuda), kernel_times(profiler)
    for operator in operators:
        if count := counting.counts.get(operator["name"]):
            operator.update(flops=count.flops, bytes=count.bytes)
    return {
        "seconds": seconds,
        "seconds_low": low,
        "seconds_high": high,
        "cpu_seconds": median(sample.cpu_seconds for sample in samples),
        "faults_per_call": median(sample.minor_faults for sample in samples) / calls_per_sample,
        "operators": operators,
        "kernels": kernels,
        "launches": sum(kernel["calls"] for kernel in kernels) if cuda else counting.dispatched,
        "flops": sum(count.flops for count in counting.counts.values()),
        "moved_bytes": sum(count.bytes for count in counting.counts.values()),
        "timeline": timeline(profiler, cuda),
        "trace": str(trace),
        "snapshot": str(snapshot) if snapshot else None,
    }


def names_of_call(call: Callable[[], Any], device: str) -> tuple[list[str], list[str]]:
    """The operators of one call on a card in their order, and its kernels, the longest first.

    Both are of the profiler; where the driver lets no one look, there are no kernels.
    """
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        result = call()
        torch.cuda.synchronize(device)
    del result
    operators = [event.name for event in profiler.events() or [] if event.device_type == DeviceType.CPU]
    return list(dict.fromkeys(operators)), [kernel["name"] for kernel in kernel_times(profiler)]


def operator_times(profiler: profile, cuda: bool) -> list[dict[str, Any]]:
    """Time of each operator itself, without those it calls, on the device; the longest first."""
    found = []
    for event in profiler.key_averages():
        if event.device_type == DeviceType.CPU and event.key.startswith(("aten::", "triton")):
            micros = event.self_device_time_total if cuda else event.self_cpu_time_total
            found.append({"name": event.key, "calls": event.count, "seconds": micros / 1e6})
    return sorted(found, key=lambda operator: -operator["seconds"])


def kernel_times(profiler: profile) -> list[dict[str, Any]]:
    """Kernels on the card, the longest first."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for event in profiler.events() or []:
        if event.device_type == DeviceType.CUDA and not event.name.startswith(RANGE):
            sums[event.name][0] += 1
            sums[event.name][1] += event.self_device_time_total / 1e6
    kernels = [{"name": name, "calls": int(calls), "seconds": seconds} for name, (calls, seconds) in sums.items()]
    return sorted(kernels, key=lambda kernel: -kernel["seconds"])


def timeline(profiler: profile, cuda: bool) -> list[tuple[float, int]]:
    """Bytes allocated on the device against seconds since the first event, thinned with every peak kept."""
    wanted = DeviceType.CUDA if cuda else DeviceType.CPU
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.device_type() == wanted]
    memory = sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns())
    if not memory:
        return []
    begin, running = min(event.start_ns() for event in events), 0
    points = [(0.0, 0)]
    for event in memory:
        running += event.nbytes()
        points.append(((event.start_ns() - begin) / 1e9, running))
    return thinned(points, TIMELINE_POINTS)


def thinned(points: list[tuple[float, int]], most: int) -> list[tuple[float, int]]:
    """At most about `most` points, of each stretch the lowest and the highest."""
    if len(points) <= most:
        return points
    stretch = -(-2 * len(points) // most)
    kept = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        extremes = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept += sorted(extremes)
    return kept
