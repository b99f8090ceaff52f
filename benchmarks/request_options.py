"""The request that a command line's words describe."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.campaign import TIMED_INPUTS, InvalidRequest, Request, problems_of
from benchmarks.inputs import ALL_KINDS, KINDS
from benchmarks.lengths import parse_lengths
from benchmarks.recorded import read_recording, recorded_problems


def request_of(
    variants: Sequence[str],
    tokens: str,
    modes: Sequence[str],
    masks: Sequence[bool],
    inputs: str | None,
    settings: Sequence[str] | None,
    *,
    dtype: str,
    timed: bool,
    skip_compiled: bool = False,
    **fields: Any,
) -> Request:
    """The request that the options describe; a room's refusals pass through."""
    found = _request_of(variants, tokens, modes, masks, inputs, settings, dtype=dtype, timed=timed, **fields)
    return replace(found, skip_compiled=skip_compiled)


def _request_of(
    variants: Sequence[str],
    tokens: str,
    modes: Sequence[str],
    masks: Sequence[bool],
    inputs: str | None,
    settings: Sequence[str] | None,
    *,
    dtype: str,
    timed: bool,
    **fields: Any,
) -> Request:
    if files := [word for word in words_of(inputs) if word.endswith(".safetensors")]:
        others = [word for word in words_of(inputs) if word not in files]
        return request_on_recorded(files, others, variants, modes, settings, device=fields["device"], timed=timed)
    lengths = parse_lengths(tokens)
    problems = tuple(
        problem
        for length in lengths
        for name in words_of(dtype)
        for causal in masks
        for problem in problems_of([length], modes, dtype=name, causal=causal, **fields)
    )
    kinds = tuple(ALL_KINDS) if inputs == "all" else tuple(words_of(inputs)) or tuple(KINDS)
    return Request(tuple(variants), problems, kinds, parameters_of(settings or ()))


def request_on_recorded(
    files: Sequence[str],
    others: Sequence[str],
    variants: Sequence[str],
    modes: Sequence[str],
    settings: Sequence[str] | None,
    *,
    device: str,
    timed: bool,
) -> Request:
    """The problems that files of recorded calls hold, timed on normal inputs, their errors on what was recorded."""
    recorded = []
    for file in files:
        recording = read_recording(Path(file))
        for call in recording.calls:
            if call.problem is None:
                sys.stderr.write(f"attnscape: skipped {call.describe()}\n")
        recorded += recorded_problems(recording, device, modes)
    kinds = tuple(dict.fromkeys([*([TIMED_INPUTS] if timed else []), *others]))
    problems = tuple(dict.fromkeys(problem for problem, _ in recorded)) if kinds else ()
    return Request(tuple(variants), problems, kinds, parameters_of(settings or ()), recorded=tuple(recorded))


def words_of(text: str | None) -> list[str]:
    """The words of a comma-separated option."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def parameters_of(settings: Sequence[str]) -> dict[str, int]:
    """Parameters as `name=value` words give them. Raises `InvalidRequest`."""
    chosen = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not value.strip().isdecimal():
            raise InvalidRequest(f"--set takes a parameter and a whole number, such as window=128, not {setting!r}")
        chosen[name.strip()] = int(value)
    return chosen
