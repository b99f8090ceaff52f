"""Readings of an NVIDIA card through NVML, outside the clock; nothing is ever set.

The module `pynvml` comes from the distribution nvidia-ml-py; the distribution called pynvml
is a deprecated wrapper.
"""

import importlib
from types import ModuleType
from typing import Any

BRAKES = ("SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
"""Clock event reasons under which a sample is not of the card but of its cooling or supply."""


def read_card(uuid: str, nvml: ModuleType | None = None) -> dict[str, float | str]:
    """Clocks (MHz), temperature (°C), power (W) and clock event reasons of the card with that UUID.

    What a card or driver does not tell is left out; without NVML the dictionary names that.
    """
    nvml = nvml or importlib.import_module("pynvml")  # imported on machines with a card only
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError as error:
        return {"nvml": str(error)}
    state: dict[str, float | str] = {}
    for name, call in _readings(nvml, handle).items():
        try:
            state[name] = call()
        except nvml.NVMLError:  # not supported by this card: left out, as documented
            continue
    nvml.nvmlShutdown()
    return state


def _readings(nvml: Any, handle: Any) -> dict[str, Any]:
    return {
        "sm_mhz": lambda: float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        "memory_mhz": lambda: float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
        "sm_max_mhz": lambda: float(nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
        "temperature_celsius": lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        "power_watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "power_limit_watts": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        "clock_events": lambda: ", ".join(event_names(nvml, nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))),
        "driver": lambda: str(nvml.nvmlSystemGetDriverVersion()),
    }


def event_names(nvml: Any, mask: int) -> list[str]:
    """The names of the set bits of a clock event mask, as NVML's constants spell them."""
    prefix = "nvmlClocksEventReason"
    named = {name.removeprefix(prefix): getattr(nvml, name) for name in dir(nvml) if name.startswith(prefix)}
    return sorted(name for name, bit in named.items() if isinstance(bit, int) and bit and bit & mask == bit)


def braked(state: dict[str, float | str]) -> bool:
    """Whether a thermal or power brake was on, so that the sample must be rejected."""
    return any(brake in str(state.get("clock_events", "")) for brake in BRAKES)
