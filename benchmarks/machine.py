"""The machine: its description, the key under which its series are kept, and its measured ceilings."""

import hashlib
import json
import mmap
import os
import platform
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch

from variants.dtypes import TORCH_DTYPES

CEILING_SECONDS = 0.25
COPY_BYTES = 256 * 2**20
LEAST_COPY_BYTES = 64 * 2**20
LAUNCHES = 1000
FAULTED_BYTES = 32 * 2**20


def describe_machine(device: str, threads: int, allocator: str) -> dict[str, Any]:
    """What a figure depends on, as far as the machine tells; `key` hashes what separates series."""
    description: dict[str, Any] = {
        "cpu": cpu_model(),
        "cpu_flags": cpu_flags(),
        "cores": os.cpu_count(),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": threads,
        "memory_bytes": memory_bytes(),
        "load": os.getloadavg()[0],
        "steal_ticks": steal_ticks(),
        "kernel": platform.release(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        # Without the settings of torch's own build, which are paths and flags of another machine.
        "torch_build": torch.__config__.show().partition("  - Build settings")[0],
        "allocator": allocator,
        "flush_denormal": True,
        "gpu": describe_gpu(device) if device.startswith("cuda") else None,
    }
    return {"key": machine_key(description), **description}


def machine_key(description: dict[str, Any]) -> str:
    """A short hash of processor, threads, allocator and torch: series with other keys are never joined.

    A processor is its name and its vector extensions, since a virtual machine may hide all else: without bfloat16
    products, one "AMD EPYC" is a hundred times slower in them than another.
    """
    gpu = description["gpu"]
    processor = gpu["name"] if gpu else [description["cpu"], sorted(description["cpu_flags"])]
    parts = [processor, description["threads"], description["allocator"], description["torch"]]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:10]
    return f"{'cuda' if gpu else 'cpu'}-{digest}"


def cpu_model() -> str:
    """The processor's name as the kernel gives it."""
    for line in _lines("/proc/cpuinfo"):
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """The vector and matrix extensions, which decide which kernel runs."""
    for line in _lines("/proc/cpuinfo"):
        if line.startswith(("flags", "Features")):
            kept = ("avx", "amx", "fma", "sve", "asimd", "bf16", "f16c")
            return [flag for flag in line.partition(":")[2].split() if flag.startswith(kept)]
    return []


def memory_bytes() -> int:
    """Physical memory, or the control group's limit where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = "".join(_lines("/sys/fs/cgroup/memory.max")).strip()
    return min(total, int(limit)) if limit.isdigit() else total


def available_bytes(device: str) -> int:
    """What a new allocation on the device can have now, without swapping."""
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    available = memory_bytes()
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable"):
            available = min(available, int(line.split()[1]) * 1024)
    limit = "".join(_lines("/sys/fs/cgroup/memory.max")).strip()
    used = "".join(_lines("/sys/fs/cgroup/memory.current")).strip()
    if limit.isdigit() and used.isdigit():
        available = min(available, int(limit) - int(used))
    return available


def steal_ticks() -> int | None:
    """Clock ticks that the hypervisor gave to others since boot."""
    for line in _lines("/proc/stat"):
        if line.startswith("cpu "):
            return int(line.split()[8])
    return None


def describe_gpu(device: str) -> dict[str, Any]:
    """The card's properties and present state."""
    from benchmarks.nvml import read_card

    properties = torch.cuda.get_device_properties(device)
    uuid = f"GPU-{properties.uuid}"
    return {
        "name": properties.name,
        "uuid": uuid,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        "state": read_card(uuid),
    }


def measure_ceilings(device: str, dtypes: Collection[str] | None = None) -> dict[str, Any]:
    """The fastest matmul of each dtype (FLOP/s) and copy (bytes/s, read and written), one operator, one page fault.

    All dtypes where none are named. On a CPU also one thread's matmul times the threads, where that is more:
    while other processes run, threads wait for one another, and a ceiling that is too low would refuse true figures.
    """
    cuda = device.startswith("cuda")
    wanted = set(TORCH_DTYPES if dtypes is None else dtypes)
    narrow = wanted & {"bfloat16", "float16"} if not cuda else set()
    if narrow:  # a kernel may widen a type that the processor lacks, and be faster than its matmul
        wanted.add("float32")
    matmul_flops = {name: _matmul_ceiling(TORCH_DTYPES[name], device, cuda) for name in TORCH_DTYPES if name in wanted}
    for name in narrow:
        matmul_flops[name] = max(matmul_flops[name], matmul_flops["float32"])
    found = {
        "matmul_flops": matmul_flops,
        "copy_bytes_per_second": _copy_ceiling(device, (8 if cuda else 1) * COPY_BYTES),
        "launch_seconds": measure_launch(device),
    }
    return found if cuda else found | {"fault_seconds": measure_fault()}


def _copy_ceiling(device: str, size: int) -> float:
    """Bytes read and written in a second; of fewer where so many do not fit beside what others hold."""
    while True:
        try:
            source, target = torch.ones(2 * size, dtype=torch.uint8, device=device).chunk(2)
            break
        except torch.OutOfMemoryError:
            if size <= LEAST_COPY_BYTES:
                raise
            size //= 2
    return 2 * size / _fastest(lambda: target.copy_(source), device)


def _matmul_ceiling(dtype: torch.dtype, device: str, cuda: bool) -> float:
    best = 0.0
    # The larger product comes nearer to the ceiling, but takes seconds in a type that the processor emulates.
    for size in (2048, 8192) if cuda else (256, 1024):
        a = torch.randn(size, size, device=device).to(dtype)
        found = [_matmul_seconds(partial(way, a, a), device, cuda) for way in _ways_to_multiply(a)]
        best = max(best, 2 * size**3 / min(seconds for seconds, _ in found))
        if all(slow for _, slow in found):
            break
    return best


def _ways_to_multiply(a: torch.Tensor) -> list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    """Those of the variants: which one is the fastest depends on the processor."""
    try:
        from variants.products import by_onednn, product
    except ImportError:  # under asv: the variants of a commit that has torch's way only
        return [torch.mm]
    return [torch.mm, product] if by_onednn(a, a) else [torch.mm]


def _matmul_seconds(multiply: Callable[[], Any], device: str, cuda: bool) -> tuple[float, bool]:
    """The fastest of one product, and whether one thread takes too long for several to be tried."""
    threads = torch.get_num_threads()
    # One thread first: on a busy machine several may wait for one another, and seem slow for that alone.
    torch.set_num_threads(1)
    alone = _fastest(multiply, device)
    torch.set_num_threads(threads)
    slow = not cuda and 64 * alone > CEILING_SECONDS
    if cuda or threads == 1 or slow:
        return (alone if cuda else alone / threads), slow
    return min(alone / threads, _fastest(multiply, device)), slow


def measure_launch(device: str) -> float:
    """Seconds that one operator of a program costs at least: a kernel's launch on CUDA, a dispatch on the CPU."""
    number = torch.zeros(1, device=device)

    def launch() -> None:
        for _ in range(LAUNCHES):
            number.add_(1)

    return _fastest(launch, device) / LAUNCHES


def measure_fault() -> float:
    """Seconds for one page that the system hands to this process at its first touch."""

    def touch() -> None:
        with mmap.mmap(-1, FAULTED_BYTES) as memory:
            memory[:: mmap.PAGESIZE] = bytes(FAULTED_BYTES // mmap.PAGESIZE)

    return _fastest(touch, "cpu") / (FAULTED_BYTES // mmap.PAGESIZE)


def _fastest(call: Callable[[], Any], device: str) -> float:
    """The shortest of the calls that fit a quarter of a second: a ceiling is a best case."""
    call()
    best = float("inf")
    begin = time.perf_counter()
    while time.perf_counter() - begin < CEILING_SECONDS:
        start = time.perf_counter()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.is_file() else []
