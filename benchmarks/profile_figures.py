"""The figures of a profile that are not in its trace: times from samples, and what a kernel hides, as declared."""

from collections.abc import Sequence
from statistics import median
from typing import Any, Final

from benchmarks.clock import Sample
from benchmarks.intervals import median_interval
from benchmarks.measurement import Case
from variants.catalogue import load

CLEAN: Final = 0.9
"""Of the threads that the best sample kept busy, what a sample keeps busy that no other process disturbed."""

SEEN: Final = 0.25
"""Less than this part of the declared FLOPs is counted only where a kernel, or arithmetic by elements, hides them."""


def times_of(samples: Sequence[Sample], case: Case, calls: int, threads: int) -> dict[str, Any]:
    """The times of a call in seconds; of a card what the host waits, of a CPU how much of it the call had."""
    seconds, low, high = median_interval([sample.wall_seconds for sample in samples])
    found: dict[str, Any] = {"seconds": seconds, "seconds_low": low, "seconds_high": high}
    found["cpu_seconds"] = median(sample.cpu_seconds for sample in samples)
    if case.device != "cpu":
        latencies = [sample.latency_seconds for sample in samples if sample.latency_seconds is not None]
        late = [sample.host_bound_share for sample in samples if sample.host_bound_share is not None]
        return found | {"latency_seconds": median(latencies), "host_bound_share": sum(late) / len(late)}
    busy = [sample.cpu_seconds / sample.wall_seconds for sample in samples]
    most = min(float(threads), max(1.0, *busy))
    return found | {
        "faults_per_call": median(sample.minor_faults for sample in samples) / calls,
        "clean_share": sum(share >= CLEAN * most for share in busy) / len(busy),
    }


def declared_where_unseen(case: Case, flops: int, moved_bytes: int) -> dict[str, Any]:
    """Useful FLOPs; the executed ones and the traffic as they were counted, or as declared where a kernel hides them.

    Traffic that is declared is inputs and outputs, read and written once.
    """
    problem, variant = case.problem(), load(case.variant)
    executed = variant.flops(problem, case.parameters)
    figures: dict[str, Any] = {
        "useful_flops": variant.definition.useful_flops(problem, variant.definition.resolve(case.parameters)),
        "declared": [],
    }
    if flops < SEEN * executed:
        figures |= {"flops": executed, "declared": ["flops"]}
        results = problem.input_output_bytes // 2 if problem.mode == "training" else problem.query_bytes
        if moved_bytes < results:
            figures |= {"moved_bytes": problem.input_output_bytes, "declared": ["flops", "moved_bytes"]}
    return figures
