"""The asv suite: a commit's variants are measured once, together, and every benchmark looks its figure up.

asv runs each benchmark and each combination of parameters in a process of its own, one after the other; on a machine
that does anything else, such figures cannot be compared. So `setup_cache`, which asv runs once for a commit, measures
all variants with the project's own instrument, interleaved, and the benchmarks only read what it found.

Under asv this package is the working tree's, whatever commit is installed, and `variants` is the commit's. The
parameters therefore come from the files beside this folder and not from the installed package: asv passes a
parameter's index, so that an older list would file one variant's figures under another's name.

`-E existing` files under a commit whatever `variants` is found: the import of this module refuses one from elsewhere.
"""

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar

if TYPE_CHECKING:
    from benchmarks.measurement import Measurement
    from benchmarks.workers import Workers

FOLDER: Final = Path(__file__).parents[1] / "variants"
VARIANTS: Final = sorted(f"{path.parent.name}/{path.stem}" for path in FOLDER.glob("*/[!_]*.py"))
EXPONENTS: Final = [8, 10, 12, 14]
THREADS: Final = 1
"""One, because threads that wait for one another wait for the neighbours too: history needs figures that last."""
TIMED_INPUTS: Final = "normal"
STRUCTURED_INPUTS: Final = "smooth"
"""What approximation errors are measured on: independent inputs hardly tell one rank or window from another."""
ROUNDING: Final = 1e-12
"""An approximation error below it is that of float64 in both oracles, and is 0: else asv would watch its last digit."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device, and what is measured on it: lengths beyond `longest` (as log2) are not."""

    name: str
    dtype: str
    longest: int


DEVICES: Final = (Device("cpu", "float32", 12), Device("cuda", "bfloat16", 14))


class Point(TypedDict):
    """What was found at one length; without status `ok` there is no sample, and every figure is NaN."""

    status: str
    reason: str
    wall_samples: list[float]
    ratio: float
    total_bytes: float
    extra_bytes: float
    implementation_error: float
    approximation_error: float


Points = dict[tuple[str, str, int], Point]
"""By device, variant and log2 of the length; what was not to be measured is missing."""

LOG: Final = logging.getLogger(__name__)


def foreign_variants(found: Path | None) -> str:
    """Why asv must not measure the `variants` found in that folder, in one line; empty where it may.

    In an environment of asv's own they are the commit's, and lie in it; else they must be those beside this package.
    """
    made_by_asv = os.environ.get("ASV_ENV_DIR")
    right = Path(made_by_asv) if made_by_asv else FOLDER
    if found is None or found.resolve().is_relative_to(right.resolve()):
        return ""
    if made_by_asv:
        return f"`variants` comes from {found} and not from asv's environment {right}: unset ASV_PYTHONPATH"
    return (
        f"`variants` comes from {found} and not from this checkout: "
        f"install the checkout (pip install -e .), or set ASV_PYTHONPATH={FOLDER.parent}"
    )


def _variants_found() -> Path | None:
    """The folder that `import variants` would take, without the import; None where there is none."""
    spec = find_spec("variants")
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


if _fault := foreign_variants(_variants_found()):
    raise SystemExit(_fault)  # asv then files nothing; an error later would be filed as the commit's failure

Function = TypeVar("Function", bound=Callable[..., Any])


def failed(point: Point) -> bool:
    """Whether there is no figure for another reason than a refusal."""
    return point["status"] not in ("ok", "unsupported")


def told_to_asv(**attributes: Any) -> Callable[[Function], Function]:
    """Set what asv reads from a function, such as `unit`."""

    def mark(function: Function) -> Function:
        function.__dict__.update(attributes)
        return function

    return mark


class _Attention:
    """The benchmarks of one device. asv takes public classes only, so this one is none."""

    device = ""
    version = "1"
    timeout = 60.0
    params = (VARIANTS, EXPONENTS)
    param_names = ("variant", "log2(length)")

    @told_to_asv(timeout=4 * 3600.0)
    def setup_cache(self) -> Points:
        """Measure everything; one cache serves both devices, because asv knows it by this line."""
        return measure_points()

    def setup(self, points: Points, variant: str, exponent: int | None = None) -> None:
        """Raise NotImplementedError, which is n/a to asv, for what was not measured or is refused here."""
        exponents = EXPONENTS if exponent is None else [exponent]
        found = [point for each in exponents if (point := points.get((self.device, variant, each)))]
        if not found:
            raise NotImplementedError(f"{variant} was not measured on {self.device} at this commit and length")
        if all(point["status"] == "unsupported" for point in found):
            raise NotImplementedError(f"{variant}: {found[0]['reason']}")
        for point in filter(failed, found):
            LOG.warning("%s: %s: %s", variant, point["status"], point["reason"])  # what `--show-stderr` shows

    @told_to_asv(unit="seconds")
    def track_runtime(self, points: Points, variant: str, exponent: int) -> dict[str, Any] | float:
        """Seconds of a call, as samples: asv keeps their median, interval and the samples themselves."""
        samples = points[self.device, variant, exponent]["wall_samples"]
        return {"samples": samples, "number": 1} if samples else math.nan

    @told_to_asv(unit="ratio")
    def track_ratio(self, points: Points, variant: str, exponent: int) -> float:
        """Time over that of the fused exact attention in the same rounds, which the machine's load changes little.

        On the processor it is the process's own CPU time: a neighbour prolongs the wall time of either.
        """
        return points[self.device, variant, exponent]["ratio"]

    @told_to_asv(unit="bytes")
    def track_peak_memory(self, points: Points, variant: str, exponent: int) -> float:
        """Peak bytes beyond inputs and output."""
        return points[self.device, variant, exponent]["extra_bytes"]

    @told_to_asv(unit="relative error")
    def track_implementation_error(self, points: Points, variant: str, exponent: int) -> float:
        """The variant against its own definition's oracle."""
        return points[self.device, variant, exponent]["implementation_error"]

    @told_to_asv(unit="relative error")
    def track_approximation_error(self, points: Points, variant: str, exponent: int) -> float:
        """The definition's oracle against exact attention, on structured inputs."""
        return points[self.device, variant, exponent]["approximation_error"]

    @told_to_asv(unit="lengths", params=(VARIANTS,), param_names=("variant",))
    def track_lengths_not_running(self, points: Points, variant: str) -> float:
        """How many lengths fail or do not fit: asv takes no notice of a figure that has become NaN."""
        keys = ((self.device, variant, exponent) for exponent in EXPONENTS)
        return float(sum(failed(points[key]) for key in keys if key in points))


class Cpu(_Attention):
    """On the processor, in float32."""

    device = "cpu"


class Cuda(_Attention):
    """On the first CUDA card, in bfloat16."""

    device = "cuda"


def measure_points() -> Points:
    """Measure the installed commit's variants on every device that is here.

    Raises ValueError where ATTNSCAPE_ASV_VARIANTS names what the working tree does not have.
    """
    from benchmarks.workers import Workers
    from variants import catalogue
    from variants.variant import missing_device

    known = [name for name in variants_asked_for() if name in catalogue.names()]
    named = os.environ.get("ATTNSCAPE_ASV_VARIANTS", "").split(",")
    # What compiles takes minutes over all lengths: only where it is named in full.
    names = [name for name in known if name in named or not getattr(catalogue.load(name), "compiled", False)]
    points: Points = {}
    with Workers() as workers:
        for device in DEVICES:
            if missing_device(device.name) is None:
                points |= _measure_device(workers, device, names)
    return points


def variants_asked_for() -> list[str]:
    """Those of the working tree that ATTNSCAPE_ASV_VARIANTS names, by themselves or by their folder; all without it."""
    words = [word for part in os.environ.get("ATTNSCAPE_ASV_VARIANTS", "").split(",") if (word := part.strip())]
    if unknown := [word for word in words if not any(_names(word, name) for name in VARIANTS)]:
        raise ValueError(f"ATTNSCAPE_ASV_VARIANTS: no variant or folder {', '.join(unknown)}")
    return [name for name in VARIANTS if not words or any(_names(word, name) for word in words)]


def _names(word: str, name: str) -> bool:
    return word in (name, name.partition("/")[0])


def _measure_device(workers: "Workers", device: Device, names: Sequence[str]) -> Points:
    from benchmarks.campaign import read_machine
    from benchmarks.provenance import Provenance
    from benchmarks.sweep import Settings, Sweep, plan_cases
    from variants import Problem
    from variants.catalogue import load

    settings = Settings(seconds=float(os.environ.get("ATTNSCAPE_ASV_SECONDS", "60")), threads=THREADS)
    # asv files the figures under its commit; what the rows say of theirs is dropped.
    provenance = Provenance(code="", commit=os.environ.get("ASV_COMMIT", ""), dirty=False)
    sweep = Sweep(workers, settings, read_machine(workers, device.name, settings.threads), provenance)
    problems = [
        Problem(tokens=2**exponent, batch=1, heads=8, head_dim=64, dtype=device.dtype, device=device.name, causal=True)
        for exponent in EXPONENTS
        if exponent <= device.longest
    ]
    timed: list[Measurement] = []
    sweep.measure(plan_cases(names, problems, TIMED_INPUTS), timed.append)
    inexact = [name for name in names if not load(name).definition.exact]
    structured: list[Measurement] = []
    sweep.measure_errors(plan_cases(inexact, problems, STRUCTURED_INPUTS), structured.append)
    errors = {_place(row): row.approximation_error for row in structured}
    return {_place(row): point_of(row, errors.get(_place(row), row.approximation_error)) for row in timed}


def _place(row: "Measurement") -> tuple[str, str, int]:
    return row.case.device, row.case.variant, row.case.tokens.bit_length() - 1


def point_of(row: "Measurement", approximation_error: float | None) -> Point:
    """What the benchmarks need of a row, in plain floats: asv counts any other type as a failure."""
    ok = row.status == "ok"
    approximation = figure(approximation_error, ok)
    return {
        "status": row.status,
        "reason": row.reason,
        "wall_samples": [float(seconds) for seconds in row.wall_samples] if ok else [],
        "ratio": figure(row.cpu_ratio if row.case.device == "cpu" else row.ratio, ok),
        "total_bytes": figure(row.total_bytes, ok),
        "extra_bytes": figure(row.extra_bytes, ok),
        "implementation_error": figure(row.implementation_error, ok),
        "approximation_error": 0.0 if abs(approximation) < ROUNDING else approximation,
    }


def figure(value: float | None, ok: bool) -> float:
    """A plain float; NaN for what is not there, and for infinity, on which asv's step detection hangs."""
    return float(value) if ok and value is not None and math.isfinite(value) else math.nan
