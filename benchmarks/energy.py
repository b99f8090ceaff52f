"""Energy of a call, from the device's own counter: the sum over seconds of calls, less what it draws idle.

Nothing here estimates: where no counter moves, there is no figure.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any, Final, Protocol

from benchmarks.nvml import faults, handle_of, module

TRIALS: Final = 3
TRIAL_SECONDS: Final = 5.0
"""A card's counter moves about every 100 ms: over five seconds that is 2 %."""

BATCH_SECONDS: Final = 0.02
"""So long the calls in a row between two waits for the device: it must not idle while the host queues the next."""

IDLE_SECONDS: Final = 2.0
POWERCAP: Final = Path("/sys/class/powercap")


class Meter(Protocol):
    """A counter of joules."""

    def joules(self) -> float | None:
        """The sum so far from some start, or None where it cannot be read."""


class NoMeter:
    """Where nothing counts."""

    def joules(self) -> float | None:
        """None."""
        return None


class CardMeter:
    """NVML's counter of a card's total energy. On a slice of a card it counts the neighbours too: none then."""

    def __init__(self, uuid: str, nvml: ModuleType | None = None) -> None:
        """Nothing is read yet."""
        self.uuid, self.nvml = uuid, nvml

    def joules(self) -> float | None:
        """The counter, in joules."""
        nvml: Any = self.nvml or module()
        if nvml is None:
            return None
        try:
            nvml.nvmlInit()
        except nvml.NVMLError:
            return None
        try:
            handle, is_slice = handle_of(self.uuid, nvml)
            return None if is_slice else float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
        except faults(nvml):
            return None
        finally:
            nvml.nvmlShutdown()


class PackageMeter:
    """The processors' packages by RAPL, whose counters wrap around."""

    def __init__(self, folder: Path = POWERCAP) -> None:
        """Packages only: their parts have counters of their own, which would count twice."""
        self.packages = sorted(folder.glob("intel-rapl:?")) if folder.is_dir() else []
        self.last: dict[Path, int] = {}
        self.sum = 0

    def joules(self) -> float | None:
        """The sum of the packages since the first reading; it must be read more often than they wrap."""
        if not self.packages:
            return None
        try:
            for package in self.packages:
                now = int((package / "energy_uj").read_text())
                moved = now - self.last.get(package, now)
                if moved < 0:
                    moved += int((package / "max_energy_range_uj").read_text())
                self.sum, self.last[package] = self.sum + moved, now
        except OSError:  # most systems let only root read it
            return None
        return self.sum / 1e6


def meter_of(card_uuid: str) -> Meter:
    """The counter of the card with that UUID, or of the processor where it is empty."""
    return CardMeter(card_uuid) if card_uuid else PackageMeter()


def measure_energy(
    call: Callable[[], Any],
    meter: Meter,
    synchronize: Callable[[], Any],
    *,
    call_seconds: float = BATCH_SECONDS,
    seconds: float = TRIAL_SECONDS,
    idle_seconds: float = IDLE_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], Any] = time.sleep,
) -> dict[str, float]:
    """Joules of one call: median of the trials, the same less the idle draw, and the trials' relative spread.

    `call_seconds` is about how long a call takes. Empty where the counter cannot be read or does not move.
    """
    idle = _drawn(lambda: sleep(idle_seconds), meter, clock)
    if idle is None:
        return {}
    idle_watts = idle[0] / idle[1]
    batch = max(1, round(BATCH_SECONDS / max(call_seconds, 1e-9)))
    gross, net = [], []
    for _ in range(TRIALS):
        calls = 0

        def trial() -> None:
            nonlocal calls
            end = clock() + seconds
            while clock() < end:
                for _ in range(batch):
                    call()
                synchronize()
                calls += batch

        drawn = _drawn(trial, meter, clock)
        if drawn is None or drawn[0] <= 0:
            return {}
        gross.append(drawn[0] / calls)
        net.append((drawn[0] - idle_watts * drawn[1]) / calls)
    middle = median(gross)
    return {
        "energy_joules": middle,
        "energy_net_joules": max(0.0, median(net)),
        "energy_spread": (max(gross) - min(gross)) / middle,
        "idle_watts": idle_watts,
    }


def _drawn(action: Callable[[], Any], meter: Meter, clock: Callable[[], float]) -> tuple[float, float] | None:
    """Joules and seconds that an action took."""
    begin, before = clock(), meter.joules()
    action()
    after, end = meter.joules(), clock()
    return None if before is None or after is None else (after - before, end - begin)
