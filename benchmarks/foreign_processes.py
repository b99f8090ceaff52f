"""Processes of others on a card, as NVML lists them, read while this program has none there."""

import time
from types import ModuleType
from typing import Final

from benchmarks.nvml import faults, handle_of, module

AGAIN_SECONDS: Final = 0.5


def foreign_processes(uuid: str, nvml: ModuleType | None = None) -> dict[int, int]:
    """Bytes by process on the card; empty also where there is no card or no NVML.

    To be read before the first worker starts or after the last has ended: in a container the numbers are those of
    the host, so that own processes could not be told. Two readings must agree, since a context that has just
    ended is listed for a moment.
    """
    if not uuid:
        return {}
    first = _read(uuid, nvml)
    if first:
        time.sleep(AGAIN_SECONDS)
    again = _read(uuid, nvml) if first else {}
    return {pid: again[pid] for pid in first if pid in again}


def _read(uuid: str, nvml: ModuleType | None) -> dict[int, int]:
    nvml = nvml or module()
    if nvml is None:
        return {}
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return {}
    try:
        handle, _ = handle_of(uuid, nvml)
        # A driver in a container may keep the bytes of others to itself.
        return {each.pid: each.usedGpuMemory or 0 for each in nvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    except faults(nvml):
        return {}
    finally:
        nvml.nvmlShutdown()
