"""What `attnscape check` tries besides the problems that were asked for: grouped heads, more keys, other parameters."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from benchmarks.campaign import TIMED_INPUTS, Request
from benchmarks.measurement import Case
from variants import Problem
from variants.catalogue import load
from variants.definition import Definition, InvalidParameter, Parameter
from variants.variant import Variant

FEWEST_HEADS: Final = 4
"""Two groups of two: with one group, or groups of one, every order of the heads is the right one."""


def further_cases(request: Request) -> list[Case]:
    """For each variant one grouped problem, one of more keys than queries, and one other value of each parameter.

    On normal inputs, with a causal mask where the request has one and the variant too. A shape that a variant refuses
    is left out, and a parameter that the request holds. Recorded calls bring their own shapes: there is nothing to add.
    Raises what `Request.cases` raises.
    """
    if request.recorded or not request.problems:
        return []
    usual = min(request.problems, key=lambda problem: (problem.length, not problem.causal))
    return [case for name in request.check_names() for case in _of_variant(load(name), usual, request)]


def _of_variant(variant: Variant, usual: Problem, request: Request) -> Iterator[Case]:
    own = {parameter.name for parameter in variant.definition.parameters}
    held = {key: value for key, value in request.parameters.items() if key in own}
    chosen = variant.definition.resolve(held)
    tried = [(problem, chosen) for problem in (grouped(usual), oblong(usual)) if problem is not None]
    tried += [(usual, other) for other in other_parameters(variant.definition, held, usual.length)]
    for problem, parameters in tried:
        if (runs := _that_runs(variant, problem, request)) is not None:
            yield Case.of(variant.name, parameters, runs, TIMED_INPUTS, request.seed)


def grouped(problem: Problem) -> Problem | None:
    """The problem with two query heads for each key-value head; None where it has groups already."""
    if problem.kv_heads != problem.heads:
        return None
    heads = problem.heads if problem.heads >= FEWEST_HEADS and problem.heads % 2 == 0 else FEWEST_HEADS
    return problem.with_(heads=heads, kv_heads=heads // 2)


def oblong(problem: Problem) -> Problem | None:
    """The problem with half as many keys again; None where it has more or fewer keys than queries already."""
    if problem.kv_tokens != problem.tokens:
        return None
    return replace(problem, kv_tokens=problem.tokens + problem.tokens // 2 + 1)


def other_parameters(definition: Definition, held: Mapping[str, int], length: int) -> list[dict[str, int]]:
    """For each parameter that is not held all of them, with that one not at its default; none where none fits."""
    free = (parameter for parameter in definition.parameters if parameter.name not in held)
    return [other for one in free if (other := _with_another(definition, held, one, length)) is not None]


def _with_another(
    definition: Definition, held: Mapping[str, int], parameter: Parameter, length: int
) -> dict[str, int] | None:
    for value in _candidates(parameter, length):
        try:
            return definition.resolve({**held, parameter.name: value})
        except InvalidParameter:
            continue
    return None


def _candidates(parameter: Parameter, length: int) -> Iterator[int]:
    """Values beside the default, first those that a sequence of that length is long enough for to tell."""
    usual = parameter.default
    near = (min(usual, length) // 2 + 1, usual // 2, 2 * usual, usual + 1, usual - 1, parameter.low, parameter.high)
    yield from (value for value in near if value != usual)


def _that_runs(variant: Variant, problem: Problem, request: Request) -> Problem | None:
    """The problem, or the one with the other mask where the request has both and the variant this one only."""
    masks = dict.fromkeys((problem.causal, *(one.causal for one in request.problems)))
    return next((one for one in (problem.with_(causal=mask) for mask in masks) if not variant.refusals(one)), None)
