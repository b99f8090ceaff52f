"""Peak memory of one call: allocation events on a CPU, the caching allocator's figures on CUDA."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes to stderr at every start and stop

SELF_TEST_BYTES = 64 * 2**20


class InstrumentFault(RuntimeError):
    """The instrument reads wrongly on this machine; no figure can be trusted."""


def measure_cpu_bytes(call: Callable[[], Any]) -> tuple[int, int, list[str]]:
    """Peak and final bytes that `call` allocated on the CPU, and the names of the operators it ran.

    The final bytes are those still held when it returned, its result included. The result is
    kept alive until the profiler has stopped.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    events = profiler.profiler.kineto_results.events()
    del result
    running = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        running += event.nbytes()
        peak = max(peak, running)
    names = list(dict.fromkeys(event.name() for event in events if event.name() != "[memory]"))
    return peak, running, names


def self_test() -> None:
    """One empty tensor of 64 MiB must read 64 MiB: the profiler's events are half private.

    Raises `InstrumentFault`.
    """
    peak, held, _ = measure_cpu_bytes(lambda: torch.empty(SELF_TEST_BYTES, dtype=torch.uint8))
    if (peak, held) != (SELF_TEST_BYTES, SELF_TEST_BYTES):
        raise InstrumentFault(f"a tensor of {SELF_TEST_BYTES} bytes reads as {peak} (peak) and {held} (held)")


def self_test_on_card(device: str) -> None:
    """The same tensor on a card: its allocator may be set up to count nothing. Raises `InstrumentFault`."""
    peak, held, _ = measure_cuda_bytes(lambda: torch.empty(SELF_TEST_BYTES, dtype=torch.uint8, device=device), device)
    if (peak, held) != (SELF_TEST_BYTES, SELF_TEST_BYTES):
        raise InstrumentFault(f"{SELF_TEST_BYTES} bytes on {device} read as {peak} (peak) and {held} (held)")


def measure_cuda_bytes(call: Callable[[], Any], device: str) -> tuple[int, int, int]:
    """Peak and final bytes of the caching allocator during `call`, less what was there before; and its reserve.

    The reserve is all that the allocator held of the card at its peak, in whole segments, inputs included.
    """
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    reserved = torch.cuda.max_memory_reserved(device)
    held = torch.cuda.memory_allocated(device) - before
    del result
    return peak, held, reserved
