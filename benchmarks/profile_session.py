"""Profiles of cases, each in a worker of its own, stored as files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.campaign import TIMED_INPUTS, InvalidRequest, Request, read_machine
from benchmarks.measurement import Case
from benchmarks.profiled_call import commands
from benchmarks.workers import Fault, Workers
from variants import Problem
from variants.catalogue import load, select


def cases_of(names: Sequence[str], problem: Problem, parameters: dict[str, int]) -> list[Case]:
    """One case for each variant, in that order; raises `InvalidRequest`, `UnknownVariant` or `InvalidParameter`."""
    for name in names:
        if (found := select([name])) != [name]:
            raise InvalidRequest(f"a profile is of one variant, such as {found[0]}, not of {name}")
    timed, _ = Request(tuple(names), (problem,), (TIMED_INPUTS,), parameters).cases()
    by_name = {case.variant: case for case in timed}
    return [by_name[name] for name in names]


def profile_cases(cases: Sequence[Case], out: Path, threads: int, timeout_seconds: float) -> list[Path]:
    """Profile each case and write `NAME.json` and `NAME.trace.json.gz` into `out`; returns the former.

    Raises `InvalidRequest` where a case is refused, fails its oracle, crashes or hangs.
    """
    for case in cases:
        if reasons := load(case.variant).refusals(case.problem()):
            raise InvalidRequest(f"{case.variant} does not run here: {'; '.join(reasons)}")
    out.mkdir(parents=True, exist_ok=True)
    with Workers() as workers:
        machine = read_machine(workers, cases[0].device, threads)
        return [_profile(case, workers, machine, out, threads, timeout_seconds) for case in cases]


def _profile(
    case: Case, workers: Workers, machine: dict[str, Any], out: Path, threads: int, timeout_seconds: float
) -> Path:
    stem = file_stem(case)
    worker = workers.start()
    try:
        figures = worker.ask("profile", (case, threads, out / f"{stem}.trace.json.gz"), timeout_seconds)
    except Fault as fault:
        raise InvalidRequest(f"{case.variant}: {fault.reason}") from fault
    finally:
        worker.end()
    if figures.pop("status") != "ok":
        raise InvalidRequest(f"{case.variant}: {figures['reason']}")
    problem, variant = case.problem(), load(case.variant)
    gpu = machine["gpu"]
    document = figures | {
        "case": msgspec.to_builtins(case),
        "machine": machine["key"],
        "processor": gpu["name"] if gpu else machine["cpu"],
        "threads": threads,
        "input_output_bytes": problem.input_output_bytes,
        "useful_flops": variant.definition.useful_flops(problem, variant.definition.resolve(case.parameters)),
        "ceilings": machine["ceilings"],
        **commands(case),
    }
    file = out / f"{stem}.json"
    file.write_bytes(msgspec.json.encode(document))
    return file


def file_stem(case: Case) -> str:
    """A name for the files of a case: the same case, the same files."""
    words = [case.variant.replace("/", "-"), *(f"{name}{value}" for name, value in sorted(case.parameters.items()))]
    words += [case.mode, "causal" if case.causal else "full", str(max(case.tokens, case.kv_tokens)), case.dtype]
    return "-".join([*words, case.device.replace(":", "")])
