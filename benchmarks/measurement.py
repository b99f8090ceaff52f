"""The record of one measured point: what one JSON line of a results file holds."""

import hashlib
import json
from dataclasses import fields
from typing import Final, Self

import msgspec

from variants import Problem

SCHEMA: Final = 1
"""Raised with every change of meaning of a field; readers refuse what they do not know."""

PROBLEM_FIELDS: Final = tuple(field.name for field in fields(Problem))

STATUSES: Final = ("ok", "unsupported", "out_of_memory", "timeout", "wrong", "error")


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One point to measure: a variant with its parameters, on one problem and one kind of input."""

    variant: str
    parameters: dict[str, int]
    batch: int
    heads: int
    kv_heads: int
    tokens: int
    kv_tokens: int
    head_dim: int
    dtype: str
    device: str
    causal: bool
    mode: str
    inputs: str = "normal"
    seed: int = 0

    @classmethod
    def of(cls, variant: str, parameters: dict[str, int], problem: Problem, inputs: str, seed: int = 0) -> Self:
        """The case of a variant on a problem and a kind of input."""
        shape = {name: getattr(problem, name) for name in PROBLEM_FIELDS}
        return cls(variant=variant, parameters=parameters, inputs=inputs, seed=seed, **shape)

    def problem(self) -> Problem:
        """The problem, validated anew."""
        return Problem(**{name: getattr(self, name) for name in PROBLEM_FIELDS})

    def key(self, machine: str) -> str:
        """Content hash of the case on one machine: the same key is the same measurement."""
        content = json.dumps([SCHEMA, machine, msgspec.to_builtins(self)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:20]


class Measurement(msgspec.Struct, kw_only=True):
    """One row: a case, and either its figures (status `ok`) or the reason why there are none.

    Seconds are wall time per call unless a name says otherwise; bytes are bytes; errors are
    relative Frobenius errors; ratios are this variant over the baseline, paired by round, and one by one for
    each process that the case was timed in;
    descriptors are of the inputs, as `benchmarks.descriptors` names them. On CUDA `seconds` is the
    device's time with a flushed L2, `hot_seconds` that of a replayed graph, `latency_seconds` what
    the host waits, and `host_bound_share` the share of calls in whose device time the card waited for the host.
    `plain_error` and `plain_gradient_error` are those of the formula with every step rounded to the half type.
    `foretold_seconds` are those of a call that was not tried because of them.
    `reserved_bytes` is all that the allocator held of the card, inputs included.
    Energy is of one call, net of what the device draws idle; its spread is over trials.
    """

    schema: int = SCHEMA
    key: str
    run: str
    machine: str
    measured_at: str
    code: str
    commit: str
    dirty: bool
    definition: str
    exact: bool
    attention: bool = True
    case: Case
    status: str
    reason: str = ""

    foretold_seconds: float | None = None
    seconds: float | None = None
    seconds_low: float | None = None
    seconds_high: float | None = None
    cpu_seconds: float | None = None
    wall_samples: list[float] = []
    cpu_samples: list[float] = []
    involuntary_switches: list[int] = []
    minor_faults: list[int] = []
    calls_per_sample: int | None = None
    clean_share: float | None = None
    noisy: bool | None = None
    timer: str | None = None
    latency_seconds: float | None = None
    host_bound_share: float | None = None
    hot_seconds: float | None = None
    hot_reason: str = ""
    device_state: dict[str, float | str] = {}

    baseline: str | None = None
    baseline_causal: bool | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    cpu_ratio: float | None = None
    cpu_ratio_low: float | None = None
    cpu_ratio_high: float | None = None
    twin_ratio: float | None = None
    twin_cpu_ratio: float | None = None
    process_ratios: list[float] = []
    process_cpu_ratios: list[float] = []

    input_output_bytes: int | None = None
    predicted_bytes: int | None = None
    extra_bytes: int | None = None
    total_bytes: int | None = None
    reserved_bytes: int | None = None
    energy_joules: float | None = None
    energy_net_joules: float | None = None
    energy_spread: float | None = None
    idle_watts: float | None = None

    implementation_error: float | None = None
    implementation_row_p50: float | None = None
    implementation_row_p99: float | None = None
    implementation_row_max: float | None = None
    approximation_error: float | None = None
    mean_of_v_error: float | None = None
    gradient_error: float | None = None
    plain_error: float | None = None
    plain_gradient_error: float | None = None
    checked_rows: int | None = None
    descriptors: dict[str, float] = {}

    kernel: str | None = None
    useful_flops: int | None = None
    executed_flops: int | None = None
    traffic_bytes: int | None = None
    visible_pairs: int | None = None
    ceiling_seconds: float | None = None
    ceiling_share: float | None = None
    threads: int | None = None
