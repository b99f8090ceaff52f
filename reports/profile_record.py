"""A profile as it was stored, and what bounds the call that it shows."""

from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from reports.curve import labelled
from reports.quantities import percent_text, printable
from reports.records import Case, ResultsError

Bound = Literal["compute", "bandwidth", "launch", "page faults"]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]

RIVAL: Final = 1.25
RULES: Final = 0.5
"""From this share of the time on, one resource alone is said to bound the call."""


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
    """One call of one case: times in seconds, sizes in bytes, the timeline in (seconds, bytes allocated)."""

    case: Case
    machine: str
    processor: str
    threads: int
    seconds: Positive
    seconds_low: Positive
    seconds_high: Positive
    cpu_seconds: NotNegative
    faults_per_call: NotNegative
    operators: list[Operator]
    kernels: list[Operator]
    launches: int
    flops: int
    moved_bytes: int
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

    def shares(self) -> dict[Bound, float]:
        """What each resource alone would take, as a share of the measured time; they overlap, and may exceed one."""
        seconds: dict[Bound, float] = {
            "compute": self.flops / self.peak_flops,
            "bandwidth": self.moved_bytes / self.ceilings.copy_bytes_per_second,
            "launch": self.launches * self.ceilings.launch_seconds,
            "page faults": self.faults_per_call * self.ceilings.fault_seconds,
        }
        return {name: value / self.seconds for name, value in seconds.items()}

    def verdict(self) -> str:
        """What bounds the call, in a sentence with its figures."""
        shares = self.shares()
        ranked = sorted(shares, key=lambda name: -shares[name])
        told = ", ".join(f"{name} {percent_text(min(shares[name], 9.99))}" for name in ranked)
        # What moves between operators may stay in the cache: then it costs less than the copy of large tensors says.
        cached = " (more than all of it: most of what moves stays in the cache)" if shares["bandwidth"] > 1 else ""
        bound: Bound = ranked[1] if cached and shares[ranked[1]] >= RULES else ranked[0]
        if shares[bound] >= RULES:
            rivals = [name for name in ranked if name != bound and RIVAL * shares[name] >= shares[bound]]
            both = f" and {rivals[0]} about equally" if rivals and not cached else ""
            return f"Bound by {bound}{both}: alone, each would take of the measured time: {told}{cached}."
        return f"Bound by none alone, by {ranked[0]} most; each would take of the measured time: {told}."


def read_profile(file: Path) -> Profile:
    """A stored profile. Raises `ResultsError`."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Profile)
    except FileNotFoundError:
        raise ResultsError(f"no profile at {file}; `attnscape profile` writes them") from None
    except msgspec.DecodeError as error:
        raise ResultsError(f"{file} is no profile: {printable(str(error))}") from error
