"""A profile as it was stored, and what bounds the call that it shows."""

from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from reports.curve import labelled
from reports.quantities import printable
from reports.records import Case, ResultsError

Bound = Literal["compute", "bandwidth", "launch", "page faults"]
Declared = Literal["flops", "moved_bytes"]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]

CLEAN_SHARE: Final = 0.5
"""Of fewer clean samples the wall time tells more of other processes than of the call."""


class Operator(msgspec.Struct, frozen=True):
    """An operator or kernel: its own time, and what was counted of it."""

    name: str
    calls: int
    seconds: NotNegative
    flops: int = 0
    bytes: int = 0


class Ceilings(msgspec.Struct, frozen=True):
    """The machine's best, measured in the same run; launch and fault are seconds each."""

    matmul_flops: dict[str, Positive]
    copy_bytes_per_second: Positive
    launch_seconds: Positive
    fault_seconds: NotNegative = 0.0


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One call of one case: times in seconds, sizes in bytes, the timeline in (seconds, bytes allocated).

    On a card `seconds` are its own with cold caches, `hot_seconds` those of a graph's replay, `latency_seconds` what
    the host waits. `declared` names the amounts that were not counted, since a kernel hides them.
    """

    case: Case
    machine: str
    processor: str
    threads: int
    seconds: Positive
    seconds_low: Positive
    seconds_high: Positive
    cpu_seconds: NotNegative
    faults_per_call: NotNegative | None = None
    clean_share: NotNegative = 1.0
    latency_seconds: Positive | None = None
    hot_seconds: Positive | None = None
    hot_reason: str = ""
    host_bound_share: NotNegative = 0.0
    operators: list[Operator]
    kernels: list[Operator]
    launches: int
    flops: int
    moved_bytes: int
    declared: list[Declared] = []
    input_output_bytes: int
    useful_flops: int
    extra_bytes: int
    implementation_error: NotNegative
    kernel: str
    timeline: list[tuple[float, int]]
    trace: str
    snapshot: str | None
    ceilings: Ceilings
    nsys: str
    ncu: str

    @property
    def label(self) -> str:
        """The variant with its parameters."""
        return labelled(self.case.variant, self.case.parameters)

    @property
    def peak_flops(self) -> float:
        """FLOP/s of a matmul of this type on this machine."""
        return self.ceilings.matmul_flops[self.case.dtype]

    @property
    def on_card(self) -> bool:
        """Whether it ran on CUDA."""
        return self.case.device != "cpu"

    @property
    def disturbed(self) -> bool:
        """Whether other processes took so much of the processor that the wall time says little of the call."""
        return self.clean_share < CLEAN_SHARE and self.cpu_seconds > 0

    @property
    def judged_seconds(self) -> float:
        """The time that is held against ceilings: where it was disturbed, the processor's by thread."""
        return min(self.seconds, self.cpu_seconds / self.threads) if self.disturbed else self.seconds

    def shares(self) -> dict[Bound, float]:
        """What each resource alone would take, as a share of the time; they overlap, and may exceed one.

        On a card the time is its own, in which there are neither launches nor the host's page faults.
        """
        seconds: dict[Bound, float] = {
            "compute": self.flops / self.peak_flops,
            "bandwidth": self.moved_bytes / self.ceilings.copy_bytes_per_second,
        }
        if not self.on_card:
            seconds["launch"] = self.launches * self.ceilings.launch_seconds
            seconds["page faults"] = (self.faults_per_call or 0.0) * self.ceilings.fault_seconds
        return {name: value / self.judged_seconds for name, value in seconds.items()}

    @property
    def launch_share(self) -> float | None:
        """What launches alone would take of the time that the host waits for one call on a card."""
        if self.latency_seconds is None:
            return None
        return self.launches * self.ceilings.launch_seconds / self.latency_seconds


def read_profile(file: Path) -> Profile:
    """A stored profile. Raises `ResultsError`."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Profile)
    except FileNotFoundError:
        raise ResultsError(f"no profile at {file}; `attnscape profile` writes them") from None
    except msgspec.DecodeError as error:
        raise ResultsError(f"{file} is no profile: {printable(str(error))}") from error
