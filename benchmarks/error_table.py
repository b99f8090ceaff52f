"""How far definitions stray from exact attention, on kinds of inputs, over seeds: their oracles alone, no variant."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import torch
from jaxtyping import Float64
from torch import Tensor

from benchmarks.accuracy import mean_of_values, pieces, relative_error
from benchmarks.campaign import InvalidRequest
from benchmarks.definition_sources import sources_hash
from benchmarks.drawn_inputs import QKV
from benchmarks.inputs import ALL_KINDS, UnavailableInputs, inputs_refusal, make_inputs
from benchmarks.lengths import parse_lengths
from benchmarks.request_options import words_of
from variants import Problem
from variants.catalogue import load, select
from variants.definition import Definition
from variants.full import DEFINITION as EXACT

USUAL_METHODS: Final[tuple[tuple[str, dict[str, int]], ...]] = (
    *(("blockwise_low_rank", {"block": 64, "rank": rank}) for rank in (1, 4, 16)),
    ("nystrom", {"landmarks": 64}),
    ("monarch", {"block": 32, "steps": 2}),
    ("favor", {"features": 256}),
    ("local_window", {"window": 256}),
    ("top_k", {"kept": 64}),
)
"""What the table compares unless others are asked for."""

USUAL_INPUTS: Final = ("normal", "smooth", "mixed", "peaky_smooth")
SOURCES: Final = ("error_table", "drawn_inputs", "structured_inputs")
"""Modules of this room that decide the table, beside the definitions."""
PIECE_ROWS: Final = 128
"""Query rows that an oracle computes at a time: its scores stay small, and little is computed twice."""


@dataclass(frozen=True, slots=True)
class Method:
    """A definition with the values of all its parameters."""

    definition: Definition
    parameters: dict[str, int]


@dataclass(frozen=True, slots=True)
class Approximation:
    """Errors of one method against exact attention, one for each seed, beside those of the mean of V.

    Without errors the reason says why there are none.
    """

    definition: str
    title: str
    exact: bool
    parameters: dict[str, int]
    inputs: str
    tokens: int
    causal: bool
    errors: tuple[float, ...]
    mean_of_v_errors: tuple[float, ...]
    reason: str = ""


Show = Callable[[int, int, str], None]
"""Told how many of how many evaluations are done, and which comes next."""


def usual_table(show: Show) -> list[Approximation]:
    """What the command compares without options."""
    return measure_approximations(table_methods((), ()), table_problems("1024", heads=2), USUAL_INPUTS, 3, show)


def usual_fingerprint() -> str:
    """A hash of the sources that decide the usual table."""
    return sources_hash([method.definition for method in table_methods((), ())], SOURCES)


def table_methods(variants: Sequence[str], settings: Sequence[str]) -> list[Method]:
    """The methods that the options name: every combination of the parameters' values, or the usual methods.

    A parameter counts where a definition has it. Raises `InvalidRequest`, `InvalidParameter` or `UnknownVariant`.
    """
    values = parameter_values(settings)
    if variants:
        chosen = {definition.name: definition for definition in map(_definition_of, select(list(variants)))}
        base = [(definition, dict[str, int]()) for definition in chosen.values()]
    else:
        base = [(_definition_of(select([name])[0]), parameters) for name, parameters in USUAL_METHODS]
    known = {parameter.name for definition, _ in base for parameter in definition.parameters}
    if unknown := sorted(values.keys() - known):
        raise InvalidRequest(f"none of the definitions has a parameter {unknown[0]!r}; there are {_listed(known)}")
    found: list[Method] = []
    for definition, given in base:
        own = {parameter.name: values.get(parameter.name, ()) for parameter in definition.parameters}
        for combination in _combinations({name: many for name, many in own.items() if many}):
            method = Method(definition, definition.resolve(given | combination))
            found += [method] if method not in found else []
    return found


def parameter_values(settings: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """`rank=1,4,16` as a name with its values. Raises `InvalidRequest`."""
    chosen = {}
    for setting in settings:
        name, equals, values = setting.partition("=")
        numbers = words_of(values)
        if not equals or not numbers or not all(number.isdecimal() for number in numbers):
            raise InvalidRequest(f"--set takes a parameter and whole numbers, such as rank=1,4,16, not {setting!r}")
        chosen[name.strip()] = tuple(dict.fromkeys(map(int, numbers)))
    return chosen


def table_problems(tokens: str, **fields: Any) -> list[Problem]:
    """The float64 problems of the wanted lengths. Raises `InvalidLengths` or `InvalidProblem`."""
    return [Problem(tokens=length, dtype="float64", **fields) for length in parse_lengths(tokens)]


def table_inputs(words: str | None) -> list[str]:
    """The kinds of drawn or captured inputs that an option names. Raises `InvalidRequest`."""
    kinds = list(ALL_KINDS) if words == "all" else words_of(words) or list(USUAL_INPUTS)
    for kind in kinds:
        if kind not in ALL_KINDS:
            raise InvalidRequest(f"inputs must be of {', '.join(ALL_KINDS)}, not {kind!r}")
    return list(dict.fromkeys(kinds))


def measure_approximations(
    methods: Sequence[Method], problems: Sequence[Problem], kinds: Sequence[str], seeds: int, show: Show
) -> list[Approximation]:
    """Every method on every kind of inputs, in the order of problems, kinds and methods."""
    total, done, found = len(problems) * len(kinds) * seeds * len(methods), 0, list[Approximation]()
    for problem, kind in product(problems, kinds):
        runs: list[list[tuple[float, float]]] = [[] for _ in methods]
        reasons = [inputs_refusal(problem, kind) or ""] * len(methods)
        for seed in range(seeds):
            drawn = None if reasons and all(reasons) else _drawn(problem, kind, seed)
            for place, method in enumerate(methods):
                show(done, total, f"{method.definition.name}, {kind}, {problem.tokens} tokens")
                done += 1
                if drawn is None or reasons[place]:
                    continue
                inputs, exact, floor = drawn
                outcome = own_error(method, problem, inputs, exact)
                if isinstance(outcome, str):
                    reasons[place] = outcome
                else:
                    runs[place].append((outcome, floor))
        found += [_approximation(*entry, problem, kind) for entry in zip(methods, runs, reasons, strict=True)]
    show(total, total, "done")
    return found


def own_error(method: Method, problem: Problem, inputs: QKV, exact: Tensor) -> float | str:
    """The relative Frobenius error of a method's oracle against exact attention, or why there is none.

    An oracle says by `ValueError` what its formula has no form for.
    """
    try:
        own = oracle_output(method.definition, inputs, causal=problem.causal, parameters=method.parameters)
    except ValueError as refusal:
        return str(refusal)
    return relative_error(own, exact)


def oracle_output(
    definition: Definition, inputs: QKV, *, causal: bool, parameters: Mapping[str, int] | None = None
) -> Float64[Tensor, "batch heads tokens value_dim"]:
    """All rows of an oracle's output, some at a time. Raises `ValueError` where the formula has no such form."""
    parts = [
        definition.reference(*inputs, causal=causal, rows=piece, parameters=parameters)
        for piece in pieces(torch.arange(inputs[0].shape[2]), definition, PIECE_ROWS)
    ]
    return torch.cat(parts, dim=2)


def _drawn(problem: Problem, kind: str, seed: int) -> tuple[QKV, Tensor, float] | None:
    """Inputs, exact attention on them, and the error of the mean of V."""
    try:
        inputs = make_inputs(problem, kind, seed)
    except UnavailableInputs:  # pragma: no cover  # a refusal is known before; a file that vanished meanwhile is not
        return None
    exact = oracle_output(EXACT, inputs, causal=problem.causal)
    mean = mean_of_values(inputs[2], torch.arange(problem.tokens), problem)
    return inputs, exact, relative_error(mean, exact)


def _approximation(
    method: Method, runs: list[tuple[float, float]], reason: str, problem: Problem, kind: str
) -> Approximation:
    return Approximation(
        definition=method.definition.name,
        title=method.definition.title,
        exact=method.definition.exact,
        parameters=method.parameters,
        inputs=kind,
        tokens=problem.tokens,
        causal=problem.causal,
        errors=tuple(error for error, _ in runs),
        mean_of_v_errors=tuple(floor for _, floor in runs),
        reason=reason,
    )


def _definition_of(name: str) -> Definition:
    return load(name).definition


def _combinations(values: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
