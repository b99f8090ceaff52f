"""Readings of an NVIDIA card through NVML, outside the clock; nothing is ever set.

The module `pynvml` comes from the distribution nvidia-ml-py; the distribution called pynvml
is a deprecated wrapper.
"""

import importlib
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from statistics import median
from types import ModuleType
from typing import Any, Final

BRAKES = ("SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown", "HwSlowdown")
"""Clock event reasons under which a sample is not of the card but of its cooling or supply."""

POWER_CAP = "SwPowerCap"
"""The card's own power limit: it belongs to the card, so samples under it count, and are tagged."""


FULL_CLOCK: Final = 0.75
"""Below this share of its greatest clock a card was still waking up, or slowed by what it does not tell."""

EXPLAINED: Final = (POWER_CAP, "ApplicationsClocksSetting", "UserDefinedClocks", "SyncBoost", "DisplayClockSetting")
"""Reasons for a low clock that belong to the card as it is set up."""


def read_card(uuid: str, nvml: ModuleType | None = None) -> dict[str, float | str]:
    """Clocks (MHz), temperature (°C), power (W) and clock event reasons of the card with that UUID.

    What a card, a slice of one, a driver or an old module does not tell is left out; without NVML
    the dictionary names that. NVML stays open in the process: to open it takes longer than a sample.
    """
    nvml = nvml or module()
    if nvml is None:
        return {"nvml": "the package nvidia-ml-py is not installed, or cannot be imported"}
    try:
        handle, lasting = _opened(uuid, nvml)
        return lasting | _read(nvml, _passing(nvml, handle))
    except faults(nvml) as error:
        return {"nvml": str(error)}


@cache
def _opened(uuid: str, nvml: Any) -> tuple[Any, dict[str, float | str]]:
    """The card's handle, and what does not change; raises `faults`, of which nothing is kept."""
    nvml.nvmlInit()
    handle, is_slice = handle_of(uuid, nvml)
    slice_of: dict[str, float | str] = {"slice": "MIG"} if is_slice else {}
    return handle, slice_of | _read(nvml, _lasting(nvml, handle))


def _read(nvml: Any, calls: dict[str, Callable[[], float | str]]) -> dict[str, float | str]:
    found = {name: reading(nvml, call) for name, call in calls.items()}
    return {name: value for name, value in found.items() if value is not None}


@cache
def module() -> Any | None:
    """NVML's module, imported on machines with a card only; None where there is none that this Python can import."""
    try:
        return importlib.import_module("pynvml") if find_spec("pynvml") else None
    except (ImportError, SyntaxError):
        return None


def faults(nvml: Any) -> tuple[type[Exception], ...]:
    """What a call raises where the card, the driver or an old module does not have it, or wants other types."""
    return nvml.NVMLError, AttributeError, TypeError


def handle_of(uuid: str, nvml: Any) -> tuple[Any, bool]:
    """NVML's handle of a card, and whether only a slice of it is ours; then the handle is the whole card's.

    Raises `faults`. torch gives a slice's UUID without the prefix that tells it from a card's.
    """
    try:
        return _by_uuid(uuid, nvml), False
    except faults(nvml) as error:
        try:
            part = _by_uuid(uuid.replace("GPU-", "MIG-", 1), nvml)
        except faults(nvml):
            raise error from None
        return nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(part), True


def _by_uuid(uuid: str, nvml: Any) -> Any:
    try:
        return nvml.nvmlDeviceGetHandleByUUID(uuid)
    except TypeError:  # an older module takes bytes only
        return nvml.nvmlDeviceGetHandleByUUID(uuid.encode())


def reading(nvml: Any, call: Callable[[], float | str]) -> float | str | None:
    """One reading, or None where the card, the driver or the module does not have it."""
    try:
        return call()
    except faults(nvml):
        return None


def _passing(nvml: Any, handle: Any) -> dict[str, Callable[[], float | str]]:
    """The clock first: a card that has nothing to do soon lowers it."""
    return {
        "sm_mhz": lambda: float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        "clock_events": lambda: ", ".join(event_names(nvml, _events(nvml, handle))),
        "power_watts": lambda: float(nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        "memory_mhz": lambda: float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
        "temperature_celsius": lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        "memory_used_bytes": lambda: float(nvml.nvmlDeviceGetMemoryInfo(handle).used),
    }


def _events(nvml: Any, handle: Any) -> int:
    """Under the name that they had before driver 535, where the new one is not known: the bits are the same."""
    try:
        return int(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    except faults(nvml):
        return int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))


def _lasting(nvml: Any, handle: Any) -> dict[str, Callable[[], float | str]]:
    return {
        "sm_max_mhz": lambda: float(nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
        "power_limit_watts": lambda: float(nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
        "driver": lambda: str(nvml.nvmlSystemGetDriverVersion()),
    }


def joined(states: Sequence[dict[str, float | str]]) -> dict[str, float | str]:
    """The readings of several samples as one: of numbers the median, of clocks the extremes too; shares of caps."""
    found: dict[str, float | str] = {}
    for name in dict.fromkeys(name for state in states for name in state):
        values = [state[name] for state in states if name in state]
        numbers = [value for value in values if isinstance(value, float)]
        if len(numbers) < len(values):
            texts = [part for value in values for part in str(value).split(", ") if part]
            found[name] = ", ".join(dict.fromkeys(texts))
            continue
        found[name] = median(numbers)
        if name.endswith("_mhz") and "max" not in name:
            found[f"{name}_min"], found[f"{name}_max"] = min(numbers), max(numbers)
    if events := [str(state["clock_events"]) for state in states if "clock_events" in state]:
        found["power_capped_share"] = sum(POWER_CAP in event for event in events) / len(events)
    return found


def event_names(nvml: Any, mask: int) -> list[str]:
    """The names of the set bits of a clock event mask, as NVML's constants spell them."""
    named = {
        name.removeprefix(prefix): getattr(nvml, name)
        for prefix in ("nvmlClocksThrottleReason", "nvmlClocksEventReason")
        for name in dir(nvml)
        if name.startswith(prefix)
    }
    return sorted(name for name, bit in named.items() if isinstance(bit, int) and bit and bit & mask == bit)


def braked(state: dict[str, float | str]) -> bool:
    """Whether a thermal or power brake was on, so that the sample must be rejected."""
    return any(brake in str(state.get("clock_events", "")) for brake in BRAKES)


def underclocked(state: dict[str, float | str]) -> bool:
    """Whether the clock is far below the card's own, and no setting or limit of power says why."""
    now, most = state.get("sm_mhz"), state.get("sm_max_mhz")
    if not isinstance(now, float) or not isinstance(most, float):
        return False
    events = str(state.get("clock_events", ""))
    return now < FULL_CLOCK * most and not any(reason in events for reason in EXPLAINED)
