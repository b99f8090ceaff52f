"""What a machine with a CUDA card is asked first: whether every kernel is right there, and the named speeds reached.

Stages in the order of their worth, each with its share of the time; every row is on the disk at
once, so that a second run goes on where the first one stopped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Final

from benchmarks.campaign import TIMED_INPUTS, Outcome, Progress, Request, require_device, run_campaign, usable_threads
from benchmarks.gpu_profile import PROFILE_SECONDS, profile_own
from benchmarks.lengths import parse_lengths
from benchmarks.sweep import Settings
from benchmarks.workers import Workers
from variants import Problem
from variants.catalogue import load, names
from variants.definition import Definition

PROOF_INPUTS: Final = "smooth"
"""Not the inputs that are timed: of these the errors alone are wanted."""

TIMEOUT_SECONDS: Final = 90.0
PROOF_TIMEOUT_SECONDS: Final = 120.0
PROOFS_AT_ONCE: Final = 8
LONGEST_CALL_SECONDS: Final = 1.0
"""Several times what exact attention takes of an H200 at the greatest length; nothing interrupts a call."""

WITH_A_DENSE_MASK: Final = ("local_window/masked",)
"""Its mask alone would take a gigabyte at the length where windows are compared."""

STEP_BY_STEP: Final = "/recurrent"
"""These launch kernels for each token: at the lengths of the named speeds they would take all others' time."""

NO_RIVALS: Final = tuple(
    f"memory_efficient/{name}"
    for name in ("chunked", "flex", "sdpa_efficient", "split_kv", "xformers", "xformers_cutlass", "xformers_splitk")
)
"""Exact variants that the stage `exact` measures beside all others, but that later ones have no time for."""

TUNING_THEMSELVES: Final = ("fla", "flash_attn_4")
"""Of other packages, those that compile for a minute or more at each head size: few proofs of them must do."""

FIRST_PROOFS: Final = ((128, 333, True), (64, 1000, False), (256, 333, False), (128, 130, True))
"""Head size, length and mask of what tells most: the named speeds' head size, grouped heads, other lengths of keys."""

FEW_PROOFS: Final = ((128, 333, True), (64, 333, True), (64, 1000, False))

SCANS: Final = ("linear_scan", "retention", "lightning", "gated_linear", "delta_rule", "gated_delta_rule")


@dataclass(frozen=True, slots=True)
class Stage:
    """Cases under one name, with their share of the time."""

    name: str
    share: float
    variants: tuple[str, ...]
    problems: tuple[Problem, ...]
    inputs: tuple[str, ...] = (TIMED_INPUTS,)
    timeout_seconds: float = TIMEOUT_SECONDS
    parameters: dict[str, int] = field(default_factory=dict)
    energy: bool = False

    def request(self) -> Request:
        """What `run_campaign` takes."""
        return Request(self.variants, self.problems, self.inputs, self.parameters, by_variant=True)


def cuda_variants() -> tuple[str, ...]:
    """Every variant that declares CUDA, the project's kernels first, then those for nothing else; refusals are rows."""
    found = [name for name in names() if "cuda" in load(name).devices]
    return tuple(sorted(found, key=lambda name: ("cpu" in load(name).devices, _kind(name) != "triton")))


def _kind(name: str) -> str:
    return name.partition("/")[2]


def stages(device: str) -> list[Stage]:
    """All stages on a card."""
    every = cuda_variants()

    def of(*definitions: str) -> tuple[str, ...]:
        return tuple(name for name in every if name.partition("/")[0] in definitions)

    def shapes(tokens: Sequence[int], causal: Sequence[bool] = (True,), **fields: object) -> tuple[Problem, ...]:
        options = {"heads": 16, "head_dim": 128, "dtype": "bfloat16", "device": device} | fields
        return tuple(Problem.of_length(length, causal=mask, **options) for length in tokens for mask in causal)  # type: ignore[arg-type]  # fields are checked at construction

    trains = [name for name in every if "training" in load(name).modes]
    # Whole curves first: a choice needs the lengths of one shape rather than one length of every shape.
    landscape = [
        problem
        for causal in (True, False)
        for mode in ("forward", "decode", "training")
        for head_dim in (128, 64)
        for problem in shapes(parse_lengths("256:131072"), (causal,), head_dim=head_dim, mode=mode)
    ]
    slow = [name for name in trains if _kind(name) in TUNING_THEMSELVES]
    proven = [name for name in trains if name not in slow]
    own = tuple(name for name in proven if load(name).devices == ("cuda",))
    fused = of("memory_efficient")
    rivals = tuple(name for name in fused if name not in NO_RIVALS)
    windows = tuple(name for name in of("local_window") if name not in WITH_A_DENSE_MASK)
    crossing = tuple(
        name for name in of("linear_scan", "retention", "blockwise_low_rank") if not name.endswith(STEP_BY_STEP)
    )
    # Seventeen seconds for each: the named speeds' own first.
    first = ("memory_efficient/sdpa_cudnn", "local_window/triton", "memory_efficient/sdpa_flash")
    drawing = (*first, *(name for name in (*rivals, *windows) if name not in first))
    scans = tuple(name for name in of(*SCANS) if not name.endswith(STEP_BY_STEP))
    with_gradients, forward = (proof_problems(device, mode) for mode in ("training", "forward"))

    def proof(name: str, share: float, variants: tuple[str, ...], problems: tuple[Problem, ...]) -> Stage:
        return Stage(name, share, variants, problems, (PROOF_INPUTS,), PROOF_TIMEOUT_SECONDS)

    return [
        proof("right: the card's own", 0.10, own, chosen_problems(device, FIRST_PROOFS)),
        proof("right, with gradients", 0.15, tuple(proven), with_gradients),
        proof("right", 0.03, tuple(name for name in every if name not in trains), forward),
        proof("right: other packages", 0.09, tuple(slow), chosen_problems(device, FEW_PROOFS)),
        proof("right: further shapes", 0.03, tuple(proven), further_problems(device)),
        Stage("exact", 0.10, fused, shapes([16384, 4096])),
        Stage("window", 0.10, (*windows, *rivals), shapes([32768]), parameters=window_of(2048)),
        Stage("crossing", 0.20, (*crossing, *rivals), shapes([4096, 8192, 16384])),
        Stage("scans", 0.05, scans, shapes([16384])),
        # Without a mask: a row of `crossing` has the same length, and would be measured again apart from its rivals.
        Stage("energy", 0.08, drawing, shapes([8192], (False,)), energy=True),
        Stage("landscape", 0.07, every, tuple(landscape)),
    ]


def window_of(width: int) -> dict[str, int]:
    """The window's parameter, as the definition calls it."""
    definition: Definition = load("local_window/tiled").definition
    (parameter,) = definition.parameters
    return {parameter.name: width}


def proof_problems(device: str, mode: str) -> tuple[Problem, ...]:
    """Head sizes, lengths that are no multiple of a tile, grouped heads, other lengths of keys, both masks, half types.

    Mode `training` proves the forward pass too.
    """
    sizes = [{"head_dim": size, "tokens": 333} for size in (32, 64, 128, 256)]
    others = [{"tokens": 1}, {"tokens": 1000, "kv_heads": 2}, {"head_dim": 128, "tokens": 130, "kv_tokens": 700}]
    by_type = {"bfloat16": [*sizes, *others], "float16": sizes[1:3]}
    return tuple(
        Problem(heads=4, dtype=dtype, device=device, causal=causal, mode=mode, **shape)
        for dtype, shapes in by_type.items()
        for shape in shapes
        for causal in (True, False)
    )


def further_problems(device: str) -> tuple[Problem, ...]:
    """Grouped heads with gradients, at a size that is no power of two and, in float16, at the largest, by both masks.

    Apart from `proof_problems`, since each costs a variant seconds of compiling.
    """
    shapes = ({"head_dim": 96, "dtype": "bfloat16"}, {"head_dim": 256, "dtype": "float16"})
    return tuple(
        Problem(heads=4, kv_heads=2, tokens=333, device=device, causal=causal, mode="training", **shape)  # type: ignore[arg-type]  # fields are checked at construction
        for shape in shapes
        for causal in (True, False)
    )


def chosen_problems(device: str, chosen: Sequence[tuple[int, int, bool]]) -> tuple[Problem, ...]:
    """Of the problems that prove gradients those in bfloat16 with this head size, length and mask, in that order."""
    found = {
        (problem.head_dim, problem.tokens, problem.causal): problem
        for problem in proof_problems(device, "training")
        if problem.dtype == "bfloat16"
    }
    return tuple(found[shape] for shape in chosen)


def run_suite(
    out: Path,
    device: str,
    seconds: float,
    progress: Callable[[str], Progress],
    chosen: Sequence[Stage] | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> list[tuple[Stage, Outcome]]:
    """Run the stages in about `seconds`, starting included; what one leaves of its share goes to the next.

    After the proofs one kernel is profiled, which `tell` gets a line about.

    Raises `InvalidRequest` without such a card, and `StoreError`.
    """
    require_device(device)
    planned = list(stages(device) if chosen is None else chosen)
    proofs = [stage for stage in planned if stage.inputs == (PROOF_INPUTS,)]
    done: list[tuple[Stage, Outcome]] = []
    end, weight = monotonic() + seconds, sum(stage.share for stage in planned)
    with Workers() as workers:
        for stage in planned:
            share = max(0.0, end - monotonic()) * stage.share / weight
            how = Settings(
                seconds=share,
                threads=usable_threads(),
                timeout_seconds=stage.timeout_seconds,
                stop_after_seconds=share,
                energy=stage.energy,
                longest_call_seconds=LONGEST_CALL_SECONDS,
                proofs_at_once=max(1, min(PROOFS_AT_ONCE, usable_threads() // 2)),
                keep_workers=True,
            )
            machine = done[-1][1].machine if done else None
            outcome = run_campaign(
                stage.request(), out, how, progress(stage.name), machine_device=device, machine=machine, workers=workers
            )
            done.append((stage, outcome))
            weight -= stage.share
            if outcome.interrupted:
                break
            if proofs and stage is proofs[-1]:
                time = min(PROFILE_SECONDS, max(0.0, end - monotonic()))
                tell(profile_own(proofs[0].problems[0], workers, outcome.machine, out, usable_threads(), time))
    return done
