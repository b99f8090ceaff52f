"""Energy by counters that are made up, and a card's readings where modules are old and cards are sliced."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks import nvml
from benchmarks.energy import CardMeter, NoMeter, PackageMeter, measure_energy, meter_of
from tests.test_instrument import NotSupported, fake_nvml


class Device:
    """A device that draws 50 W idle and 250 W at work, with calls of 10 ms; time passes only in it."""

    def __init__(self, moves: bool = True) -> None:
        self.now = self.drawn = 0.0
        self.moves = moves

    def call(self) -> None:
        self._pass(0.010, 250.0)

    def sleep(self, seconds: float) -> None:
        self._pass(seconds, 50.0)

    def joules(self) -> float:
        return self.drawn if self.moves else 0.0

    def clock(self) -> float:
        return self.now

    def _pass(self, seconds: float, watts: float) -> None:
        self.now += seconds
        self.drawn += watts * seconds


def measured(device: Device, meter: Any = None) -> dict[str, float]:
    return measure_energy(device.call, meter or device, lambda: None, clock=device.clock, sleep=device.sleep)


def test_energy_is_per_call_and_net_of_the_idle_draw() -> None:
    device = Device()
    found = measured(device)
    assert found["energy_joules"] == pytest.approx(2.5)
    assert found["energy_net_joules"] == pytest.approx(2.0)
    assert found["idle_watts"] == pytest.approx(50.0)
    assert found["energy_spread"] == pytest.approx(0.0, abs=1e-9)
    assert device.now >= 2 + 3 * 5


def test_the_device_does_not_idle_between_short_calls() -> None:
    device, waits = Device(), []
    found = measure_energy(
        device.call,
        device,
        lambda: waits.append(device.now),
        call_seconds=0.004,
        clock=device.clock,
        sleep=device.sleep,
    )
    assert found["energy_joules"] == pytest.approx(2.5)
    assert len(waits) == pytest.approx(3 * 5 / (5 * 0.010), abs=3)  # five calls to a wait


def test_a_counter_that_stands_still_or_cannot_be_read_gives_nothing() -> None:
    assert measured(Device(moves=False)) == {}
    assert measured(Device(), NoMeter()) == {}


# ---- a card's counter


def card(**changes: Any) -> ModuleType:
    return fake_nvml(**({"nvmlDeviceGetTotalEnergyConsumption": lambda _: 1_234_500} | changes))


def unsupported(*_: Any) -> Any:
    raise NotSupported("Not Supported")


def sliced(uuid: str) -> str:
    """A card of which only a slice can be had by its UUID."""
    if not uuid.startswith("MIG-"):
        raise NotSupported(f"no {uuid}")
    return f"slice {uuid}"


SLICE = {
    "nvmlDeviceGetHandleByUUID": sliced,
    "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": lambda part: f"card of {part}",
}


def test_a_card_counts_in_joules() -> None:
    assert CardMeter("GPU-1", card()).joules() == pytest.approx(1234.5)


@pytest.mark.parametrize(
    "changes",
    [
        {"nvmlDeviceGetTotalEnergyConsumption": unsupported},
        {"nvmlInit": unsupported},
        {"nvmlDeviceGetHandleByUUID": unsupported},
        SLICE,
    ],
    ids=["old card", "no driver", "no card", "slice"],
)
def test_a_card_that_does_not_count_gives_nothing(changes: dict[str, Any]) -> None:
    assert CardMeter("GPU-1", card(**changes)).joules() is None


def test_a_module_without_the_counter_gives_nothing() -> None:
    assert CardMeter("GPU-1", fake_nvml()).joules() is None


def test_the_meter_is_that_of_the_device() -> None:
    assert isinstance(meter_of("GPU-1"), CardMeter)
    assert isinstance(meter_of(""), PackageMeter)


# ---- the processor's counter


def package(folder: Path, name: str, microjoules: int, limit: int = 1000_000_000) -> Path:
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "energy_uj").write_text(f"{microjoules}\n", "ascii")
    (place / "max_energy_range_uj").write_text(f"{limit}\n", "ascii")
    return place


def test_packages_are_summed_their_parts_are_not_and_wrapping_is_seen(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", 999_000_000)
    package(tmp_path, "intel-rapl:1", 5_000_000)
    package(tmp_path, "intel-rapl:0:0", 7)
    meter = PackageMeter(tmp_path)
    assert meter.joules() == 0.0
    package(tmp_path, "intel-rapl:0", 2_000_000)  # past its range
    package(tmp_path, "intel-rapl:1", 6_000_000)
    package(tmp_path, "intel-rapl:0:0", 900_000_000)
    assert meter.joules() == pytest.approx(3.0 + 1.0)


def test_a_processor_without_counters_gives_nothing(tmp_path: Path) -> None:
    assert PackageMeter(tmp_path / "none").joules() is None
    assert PackageMeter(tmp_path).joules() is None
    (package(tmp_path, "intel-rapl:0", 1) / "energy_uj").unlink()
    assert PackageMeter(tmp_path).joules() is None


# ---- a card's state


def test_a_slice_is_read_through_its_card_and_named() -> None:
    asked = []

    def clock(handle: str, which: int) -> int:
        asked.append(handle)
        return 1500

    state = nvml.read_card("GPU-1", fake_nvml(**SLICE, nvmlDeviceGetClockInfo=clock))
    assert (state["slice"], state["sm_mhz"]) == ("MIG", 1500.0)
    assert set(asked) == {"card of slice MIG-1"}


def test_an_old_module_leaves_out_what_it_lacks() -> None:
    old = fake_nvml()
    del old.nvmlDeviceGetCurrentClocksEventReasons  # older modules call it otherwise
    state = nvml.read_card("GPU-1", old)
    assert "clock_events" not in state and state["sm_mhz"] == 1755.0
    assert not nvml.braked(state)


def test_the_states_of_samples_are_joined_with_their_extremes() -> None:
    states: list[dict[str, float | str]] = [
        {"sm_mhz": 1700.0, "sm_max_mhz": 1980.0, "temperature_celsius": 60.0, "clock_events": ""},
        {"sm_mhz": 1400.0, "sm_max_mhz": 1980.0, "temperature_celsius": 62.0, "clock_events": "SwPowerCap"},
        {"sm_mhz": 1600.0, "sm_max_mhz": 1980.0, "clock_events": "GpuIdle, SwPowerCap"},
    ]
    assert nvml.joined(states) == {
        "sm_mhz": 1600.0,
        "sm_mhz_min": 1400.0,
        "sm_mhz_max": 1700.0,
        "sm_max_mhz": 1980.0,
        "temperature_celsius": 61.0,
        "clock_events": "SwPowerCap, GpuIdle",
        "power_capped_share": pytest.approx(2 / 3),
    }
    assert nvml.joined([]) == {}
    assert nvml.joined([{"nvml": "Driver Not Loaded"}, {"nvml": "Driver Not Loaded"}]) == {"nvml": "Driver Not Loaded"}


def test_the_real_module_has_what_the_meters_use() -> None:
    real = pytest.importorskip("pynvml")
    wanted: list[Callable[..., Any] | str] = [
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetDeviceHandleFromMigDeviceHandle",
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetComputeRunningProcesses",
    ]
    assert all(hasattr(real, str(name)) for name in wanted)
