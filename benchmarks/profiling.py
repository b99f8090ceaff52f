"""Where the time of one call goes: its operators and kernels, its memory over time, its place under the ceilings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.operator_counts import Counting
from benchmarks.traced_times import kernel_times, operator_times
from variants import Problem

TIMELINE_POINTS: Final = 1000


def profile_call(
    call: Callable[[], Any], ranged_call: Callable[[], Any], problem: Problem, trace: Path, *, compiled: bool
) -> dict[str, Any]:
    """One call counted and one traced; plain data, as `reports.profile_record` reads it.

    What is `compiled` is not counted: under a dispatch mode torch would run its uncompiled form, or refuse.
    `trace` gets the events for Perfetto; on CUDA the allocator's snapshot lies beside it.
    """
    counting = Counting()
    if not compiled:
        with counting:
            call()
    cuda = problem.device_type == "cuda"
    snapshot = trace.with_name(f"{trace.name.partition('.')[0]}.snapshot.pickle") if cuda else None
    profiler = _traced(ranged_call, problem, snapshot)
    profiler.export_chrome_trace(str(trace))
    events = profiler.events() or []
    operators, kernels = operator_times(events, counting.counts, cuda), kernel_times(events)
    for operator in operators:
        if count := counting.counts.get(operator["name"]):
            operator.update(flops=count.flops, bytes=count.bytes)
    dispatched = sum(operator["calls"] for operator in operators) if compiled else counting.dispatched
    return {
        "operators": operators,
        "kernels": kernels,
        "launches": sum(kernel["calls"] for kernel in kernels) if cuda else dispatched,
        "flops": sum(count.flops for count in counting.counts.values()),
        "moved_bytes": sum(count.bytes for count in counting.counts.values()),
        "timeline": timeline(profiler, cuda),
        "trace": str(trace),
        "snapshot": str(snapshot) if snapshot else None,
    }


def _traced(call: Callable[[], Any], problem: Problem, snapshot: Path | None) -> profile:
    """The profiler of one call; the allocator's history of it goes to the snapshot."""
    activities = [ProfilerActivity.CPU]
    if snapshot is not None:
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.memory._record_memory_history(stacks="python")  # torch documents no other
    profiler = profile(activities=activities, profile_memory=True, record_shapes=True)
    try:
        with profiler:
            result = call()
            if snapshot is not None:
                torch.cuda.synchronize(problem.device)
        del result
        if snapshot is not None:
            torch.cuda.memory._dump_snapshot(str(snapshot))
    finally:
        if snapshot is not None:
            torch.cuda.memory._record_memory_history(enabled=None)
    return profiler


def names_of_call(call: Callable[[], Any], device: str) -> tuple[list[str], list[str]]:
    """The operators of one call on a card in their order, and its kernels, the longest first.

    Both are of the profiler; where the driver lets no one look, there are no kernels.
    """
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        result = call()
        torch.cuda.synchronize(device)
    del result
    events = profiler.events() or []
    operators = [e.name for e in events if e.device_type == DeviceType.CPU and not e.is_user_annotation]
    return list(dict.fromkeys(operators)), [kernel["name"] for kernel in kernel_times(events)]


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
