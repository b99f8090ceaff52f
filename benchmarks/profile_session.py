"""Profiles of cases, each in a worker of its own, stored as files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import msgspec

from benchmarks.campaign import TIMED_INPUTS, InvalidRequest, Request, read_machine
from benchmarks.clock import Sample
from benchmarks.measurement import Case
from benchmarks.profile_figures import declared_where_unseen, times_of
from benchmarks.profiled_call import commands
from benchmarks.workers import Fault, Workers
from variants import Problem
from variants.catalogue import load, select

PROFILED_SAMPLES: Final = 10
STEPS: Final = PROFILED_SAMPLES + 2
"""Of each case: it is prepared, sampled, and traced."""


class Step(NamedTuple):
    """What is at work, as the display of progress takes it."""

    case: Case


Progress = Callable[[int, int, Step | None], None]
"""Is told the steps done, the steps in all, and what is at work."""


def cases_of(names: Sequence[str], problem: Problem, parameters: dict[str, int]) -> list[Case]:
    """One case for each variant, in that order; raises `InvalidRequest`, `UnknownVariant` or `InvalidParameter`."""
    for name in names:
        if (found := select([name])) != [name]:
            raise InvalidRequest(f"a profile is of one variant, such as {found[0]}, not of {name}")
    timed, _ = Request(tuple(names), (problem,), (TIMED_INPUTS,), parameters).cases()
    by_name = {case.variant: case for case in timed}
    return [by_name[name] for name in names]


def profile_cases(
    cases: Sequence[Case], out: Path, threads: int, timeout_seconds: float, progress: Progress
) -> list[Path]:
    """Profile each case and write `NAME.json` and `NAME.trace.json.gz` into `out`; returns the former.

    `progress` is told of every step. Raises `InvalidRequest` where a case is refused, fails its oracle, crashes or
    hangs.
    """
    for case in cases:
        if reasons := load(case.variant).refusals(case.problem()):
            raise InvalidRequest(f"{case.variant} does not run here: {'; '.join(reasons)}")
    out.mkdir(parents=True, exist_ok=True)
    total, done = STEPS * len(cases), 0
    progress(0, total, None)

    def step(case: Case, steps: int = 1) -> None:
        nonlocal done
        done += steps
        progress(done, total, Step(case))

    with Workers() as workers:
        machine = read_machine(workers, cases[0].device, threads)
        return [profile_case(Asked(case, workers, timeout_seconds), machine, out, threads, step) for case in cases]


class Asked:
    """A worker of one case, which has so many seconds for all that it is asked; a context manager that ends it."""

    def __init__(self, case: Case, workers: Workers, timeout_seconds: float) -> None:
        """The time runs from here on entering."""
        self.case, self._workers, self.timeout_seconds = case, workers, timeout_seconds

    def __enter__(self) -> Self:
        """Start the worker."""
        self._worker, self._deadline = self._workers.start(), monotonic() + self.timeout_seconds
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self._worker.end()

    def __call__(self, method: str, *arguments: Any) -> dict[str, Any]:
        """The answer; raises `InvalidRequest` where there is none, or a failure."""
        try:
            answer = self._worker.ask(method, arguments, self._deadline - monotonic())
        except Fault as fault:
            slow = f"not done within {self.timeout_seconds:g} s; --timeout grants more"
            raise InvalidRequest(
                f"{self.case.variant}: {slow if fault.status == 'timeout' else fault.reason}"
            ) from fault
        if answer.pop("status") != "ok":
            raise InvalidRequest(f"{self.case.variant}: {answer['reason']}")
        return answer


def profile_case(asked: Asked, machine: dict[str, Any], out: Path, threads: int, step: Callable[..., None]) -> Path:
    """Profile one case into the folder `out` on a machine that was read; raises `InvalidRequest` where it fails."""
    case, stem = asked.case, file_stem(asked.case)
    step(case, 0)
    with asked as ask:
        prepared = ask("prepare", case, threads, True)
        step(case)
        samples: list[Sample] = []
        for _ in range(PROFILED_SAMPLES):
            samples.append(ask("sample")["sample"])
            step(case)
        traced = ask("profile", case, out / f"{stem}.trace.json.gz")
        step(case)
    gpu = machine["gpu"]
    described = {name: prepared[name] for name in ("kernel", "extra_bytes", "implementation_error")}
    document = described | times_of(samples, case, prepared["calls_per_sample"], threads) | traced
    document |= declared_where_unseen(case, traced["flops"], traced["moved_bytes"]) | commands(case)
    document |= {
        "case": msgspec.to_builtins(case),
        "machine": machine["key"],
        "processor": gpu["name"] if gpu else machine["cpu"],
        "threads": threads,
        "input_output_bytes": case.problem().input_output_bytes,
        "ceilings": machine["ceilings"],
    }
    file = out / f"{stem}.json"
    file.write_bytes(msgspec.json.encode(document))
    return file


def file_stem(case: Case) -> str:
    """A name for the files of a case: the same case, the same files."""
    words = [case.variant.replace("/", "-"), *(f"{name}{value}" for name, value in sorted(case.parameters.items()))]
    words += [case.mode, "causal" if case.causal else "full", str(max(case.tokens, case.kv_tokens)), case.dtype]
    return "-".join([*words, case.device.replace(":", "")])
