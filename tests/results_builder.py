"""Builds synthetic results folders, line by line, from plain dicts with the field names of `benchmarks.measurement`."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from reports.records import Row

MACHINE = "a1b2c3d4"
BASELINE = "memory_efficient/sdpa_flash"

# name: (definition, exact, parameters, seconds of 1024 tokens, exponent, extra bytes per token, approximation error)
VARIANTS: dict[str, tuple[str, bool, dict[str, int], float, float, float, float]] = {
    "full/matmul": ("full", True, {}, 0.040, 2.0, 32768.0, 0.0),
    "memory_efficient/chunked": ("full", True, {}, 0.016, 2.0, 9000.0, 0.0),
    "memory_efficient/sdpa_flash": ("full", True, {}, 0.010, 2.0, 300.0, 0.0),
    "local_window/tiled": ("local_window", False, {"window": 256}, 0.006, 1.05, 4000.0, 1.4),
    "linear_scan/chunked": ("linear_scan", False, {}, 0.0055, 1.0, 5000.0, 0.72),
    "blockwise_low_rank/merged": ("blockwise_low_rank", False, {"block": 128, "rank": 4}, 0.007, 1.2, 6000.0, 0.29),
}
IMPLEMENTATION_ERROR = {"float64": 3e-16, "float32": 3.1e-7, "bfloat16": 4.2e-3, "float16": 5.3e-4}
INPUT_FACTORS = {"normal": 1.0, "smooth": 0.4, "peaky": 1.1, "sink": 0.8, "local": 0.5, "captured": 0.6}


def case(variant: str, tokens: int, **fields: Any) -> dict[str, Any]:
    """One case of the default problem; in mode `decode`, `tokens` is the length of the cache."""
    made: dict[str, Any] = {
        "variant": variant,
        "parameters": VARIANTS[variant][2] if variant in VARIANTS else {},
        "batch": 1,
        "heads": 8,
        "kv_heads": fields.get("heads", 8),
        "tokens": 1 if fields.get("mode") == "decode" else tokens,
        "kv_tokens": tokens,
        "head_dim": 64,
        "dtype": "float32",
        "device": "cpu",
        "causal": False,
        "mode": "forward",
        "inputs": "normal",
        "seed": 0,
    }
    return made | fields


def line(a_case: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """One measurement without figures: status `ok` and the fields that every line has."""
    definition, exact = VARIANTS.get(a_case["variant"], (a_case["variant"].partition("/")[0], True))[:2]
    made: dict[str, Any] = {
        "schema": 1,
        "run": "2026-01-05T10:00:00Z",
        "machine": MACHINE,
        "measured_at": "2026-01-05T10:00:07Z",
        "code": "c0de",
        "commit": "0123456789abcdef",
        "dirty": False,
        "definition": definition,
        "exact": exact,
        "case": a_case,
        "status": "ok",
        "reason": "",
    }
    made |= fields
    return {"key": json.dumps([made["machine"], a_case], sort_keys=True)} | made


def measured(variant: str, tokens: int, *, figures: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A line with the figures that `VARIANTS` declares; errors only where the inputs are not normal."""
    a_case = case(variant, tokens, **fields)
    _, exact, _, seconds, exponent, extra, approximation = VARIANTS[variant]
    made = {
        "implementation_error": IMPLEMENTATION_ERROR[a_case["dtype"]],
        "approximation_error": 0.0 if exact else approximation * INPUT_FACTORS[a_case["inputs"]],
        "mean_of_v_error": 0.8 * INPUT_FACTORS[a_case["inputs"]],
        "checked_rows": tokens,
        "kernel": "flash" if variant == BASELINE else "eager",
    }
    pairs = declared_pairs(variant, a_case)
    made |= {"visible_pairs": pairs, "useful_flops": 4 * a_case["head_dim"] * a_case["batch"] * a_case["heads"] * pairs}
    if a_case["inputs"] == "normal":
        made |= _speed(seconds * (tokens / 1024) ** exponent * (0.55 if a_case["causal"] else 1.0), tokens)
        made |= _memory(a_case, extra * tokens)
    return line(a_case, **made | (figures or {}))


def declared_pairs(variant: str, a_case: dict[str, Any]) -> int:
    """Every pair, half of them where causal; of an approximation 256 for each query."""
    queries, keys = a_case["tokens"], a_case["kv_tokens"]
    if not VARIANTS[variant][1]:
        return int(queries * min(256, keys))
    return int(keys * (keys + 1) // 2 if a_case["causal"] and queries == keys else queries * keys)


def failed(variant: str, tokens: int, status: str, reason: str, **fields: Any) -> dict[str, Any]:
    """A line that holds a reason instead of figures."""
    return line(case(variant, tokens, **fields), status=status, reason=reason)


def landscape(lengths: Iterable[int] = (256, 1024, 4096, 16384), **fields: Any) -> list[dict[str, Any]]:
    """Every variant on every length and input, with a matrix that does not fit and a kernel that needs a GPU."""
    lengths = sorted(lengths)
    lines = list(_landscape(lengths, fields))
    lines += [
        failed("memory_efficient/xformers", at, "unsupported", "needs CUDA; no float32", **fields) for at in lengths
    ]
    return lines


def as_rows(lines: Iterable[dict[str, Any]]) -> list[Row]:
    """The lines as rows, without a file."""
    return [msgspec.convert(one, Row) for one in lines]


def write(folder: Path, lines: Iterable[dict[str, Any]], machine: dict[str, Any] | None = None) -> Path:
    """Write a results folder, as `attnscape run` does, and return it."""
    (folder / "machines").mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(one) + "\n" for one in lines)
    (folder / "measurements.jsonl").write_text(text, encoding="utf-8")
    described = DESCRIPTION if machine is None else machine
    (folder / "machines" / f"{MACHINE}.json").write_text(json.dumps(described), encoding="utf-8")
    return folder


DESCRIPTION: dict[str, Any] = {
    "cpu": "Example CPU at 2.60 GHz",
    "cores": 2,
    "threads": 2,
    "memory_bytes": 8 * 2**30,
    "torch": "2.13.0+cpu",
    "python": "3.11.7",
    "kernel": "Linux 6.1",
    "allocator": {"MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_MMAP_MAX_": "0"},
    "load": [0.1, 0.2, 0.3],
    "gpu": None,
    "ceilings": {"matmul_flops": {"float32": 3.13e11, "bfloat16": 1.2e12}, "copy_bytes_per_second": 1.9e10},
}


def _landscape(lengths: list[int], fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for variant in VARIANTS:
        for tokens in lengths:
            if variant == "full/matmul" and tokens == lengths[-1]:
                yield failed(variant, tokens, "out_of_memory", "predicted 16.1 GiB, 7.2 GiB free", **fields)
                continue
            for inputs in INPUT_FACTORS:
                if inputs != "captured" or tokens <= 512:
                    yield measured(variant, tokens, inputs=inputs, **fields)


def _speed(seconds: float, tokens: int) -> dict[str, Any]:
    base = VARIANTS[BASELINE][3] * (tokens / 1024) ** 2
    return {
        "seconds": seconds,
        "seconds_low": seconds * 0.98,
        "seconds_high": seconds * 1.02,
        "cpu_seconds": seconds * 1.9,
        "wall_samples": [seconds * 0.99, seconds, seconds * 1.01],
        "cpu_samples": [seconds * 1.9] * 3,
        "involuntary_switches": [0, 1, 0],
        "minor_faults": [0, 0, 0],
        "calls_per_sample": 1,
        "clean_share": 0.97,
        "noisy": tokens == 256,
        "timer": "perf_counter",
        "baseline": BASELINE,
        "baseline_causal": False,
        "ratio": seconds / base,
        "ratio_low": seconds / base * 0.99,
        "ratio_high": seconds / base * 1.01,
        "twin_ratio": 1.004,
        "threads": 2,
    }


def _memory(a_case: dict[str, Any], extra: float) -> dict[str, Any]:
    width = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}[a_case["dtype"]]
    rows = a_case["heads"] * a_case["tokens"] + a_case["kv_heads"] * a_case["kv_tokens"]
    inputs_outputs = 2 * a_case["batch"] * rows * a_case["head_dim"] * width
    return {
        "input_output_bytes": inputs_outputs,
        "extra_bytes": int(extra),
        "predicted_bytes": inputs_outputs + int(extra * 1.1),
        "total_bytes": inputs_outputs + int(extra),
    }
