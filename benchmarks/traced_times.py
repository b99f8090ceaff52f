"""The times of operators and kernels in a trace of torch's profiler."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any, Final

from torch._C._autograd import DeviceType

OPERATOR: Final = re.compile(r"(?!torch::|autograd::)\w+::\w|triton")
"""Names of operators of any library; torch's own compiler names its kernels without a library."""

COMPILED: Final = ("Torch-Compiled Region", "CompiledFunction")
"""Parts whose kernels on a CPU are no operators."""


def operator_times(events: Iterable[Any], counted: Collection[str], cuda: bool) -> list[dict[str, Any]]:
    """Time of each operator itself, without those it calls, on the device; the longest first.

    What an operator that was counted calls inside belongs to it: time and counts are in one row, though on a card the
    time is that of kernels which another operator, further inside, has launched.
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for event in events:
        if event.device_type == DeviceType.CPU and (owner := _owner(event, counted)) is not None:
            sums[owner.name][0] += owner is event
            sums[owner.name][1] += event.self_device_time_total if cuda else event.self_cpu_time_total
    return _longest_first(sums)


def kernel_times(events: Iterable[Any]) -> list[dict[str, Any]]:
    """Kernels on the card, the longest first; the profiler shows named ranges there too, which are none."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for event in events:
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            sums[event.name][0] += 1
            sums[event.name][1] += event.self_device_time_total
    return _longest_first(sums)


def _owner(event: Any, counted: Collection[str]) -> Any | None:
    """Whose row an event's time is in: the outermost that was counted, else the innermost that may have a row."""
    around = [event]
    while (parent := around[-1].cpu_parent) is not None:
        around.append(parent)
    known = [each for each in around if each.name in counted]
    return known[-1] if known else next((each for each in around if _has_row(each)), None)


def _has_row(event: Any) -> bool:
    if event.is_user_annotation:
        return False
    return OPERATOR.match(event.name) is not None or event.name.startswith(COMPILED)


def _longest_first(sums: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Rows of calls and microseconds by name."""
    rows = [{"name": name, "calls": int(calls), "seconds": micros / 1e6} for name, (calls, micros) in sums.items()]
    return sorted(rows, key=lambda row: -row["seconds"])
