"""What a declaration must be: each fault is one line that names the file and says what would be right."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from variants.definition import Definition, InvalidParameter
from variants.problem import DTYPE_BYTES, MODES, Problem
from variants.requirement import Requirement

DEVICES: Final = ("cpu", "cuda")
LAYOUTS: Final = ("bhnd", "bnhd")


class RegistryError(ImportError):
    """A declaration that contradicts its file, or cannot be; the message names the file."""


def require_words(where: str, **words: object) -> None:
    """That devices, dtypes and modes are tuples or lists of such. Raises `RegistryError`, beginning with `where`."""
    known = {"devices": DEVICES, "dtypes": tuple(DTYPE_BYTES), "modes": MODES}
    for name, given in words.items():
        if not isinstance(given, tuple | list) or not given:
            raise RegistryError(f"{where}: {name} must be a tuple, such as {known[name][:1]!r}, not {given!r}")
        for word in given:
            if word not in known[name]:
                raise RegistryError(f"{where}: {name} must be among {', '.join(known[name])}, not {word!r}")


def require_layout(where: str, layout: str) -> None:
    """Raises `RegistryError`."""
    if layout not in LAYOUTS:
        raise RegistryError(f"{where}: layout must be one of {', '.join(LAYOUTS)}, not {layout!r}")


def require_requirements(where: str, requires: object) -> None:
    """That it is a tuple or a list of what says when it is unmet. Raises `RegistryError`."""
    such = 'such as (Package("xformers", "0.0.35"),)'
    if not isinstance(requires, tuple | list):
        raise RegistryError(f"{where}: requires must be a tuple of requirements, {such}, not {requires!r}")
    for need in requires:
        if isinstance(need, type) or not callable(getattr(need, "unmet", None)):
            raise RegistryError(f"{where}: requires must hold requirements, {such}, not {need!r}")


def require_builder(where: str, build: Callable[..., Any], definition: Definition) -> None:
    """That it takes a problem, and by keyword the definition's parameters. Raises `RegistryError`."""
    found = inspect.signature(build).parameters.values()
    asked = {one.name for one in found if one.kind is one.KEYWORD_ONLY}
    declared = {parameter.name for parameter in definition.parameters}
    if undeclared := asked - declared:
        raise RegistryError(f"{where}: undeclared parameter {', '.join(sorted(undeclared))} of {definition.name}")
    by_place = [one.name for one in found if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    if misplaced := [name for name in by_place[1:] if name in declared]:
        raise RegistryError(
            f"{where}: the builder must take {', '.join(misplaced)} by keyword: {_call('build', declared)}"
        )
    if ignored := declared - asked:
        raise RegistryError(f"{where}: the builder leaves out parameter {', '.join(sorted(ignored))}")
    if len(by_place) != 1:
        raise RegistryError(f"{where}: the builder must take the problem: {_call('build', declared)}")


def require_costs(where: str, definition: Definition, **costs: object) -> None:
    """That each is a function of the problem and the definition's parameters. Raises `RegistryError`."""
    names = [parameter.name for parameter in definition.parameters]
    for name, cost in costs.items():
        if not callable(cost):
            raise RegistryError(f"{where}: {name} must be a function, {_call(name, names)}, not {cost!r}")
        try:
            inspect.signature(cost).bind(Problem(tokens=1), **dict.fromkeys(names, 0))
        except TypeError as error:
            raise RegistryError(f"{where}: {name} must be called as {_call(name, names)}: {error}") from error
    try:
        definition.resolve()
    except InvalidParameter as error:
        raise RegistryError(f"{where}: its definition's own values are wrong: {error}") from error


def counted(where: str, name: str, cost: Callable[..., int], problem: Problem, chosen: Mapping[str, int]) -> int:
    """A declared cost. Raises `RegistryError` where it is no whole number of at least nought, or raises anything."""
    try:
        found = cost(problem, **chosen)
    except Exception as error:  # a function of anyone's may raise anything
        raise RegistryError(f"{where}: {name} raises {raised(error)}") from error
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise RegistryError(f"{where}: {name} must return a whole number of at least 0, not {found!r}")
    return found


def unmet_reasons(where: str, requires: Sequence[Requirement], problem: Problem) -> list[str]:
    """Why each requirement is not met, those left out that are. Raises `RegistryError` where one raises anything."""
    reasons = []
    for need in requires:
        try:
            reason = need.unmet(problem)
        except Exception as error:
            raise RegistryError(f"{where}: its {type(need).__name__} raises {raised(error)}") from error
        if reason is not None:
            reasons.append(reason)
    return reasons


def raised(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['without a word'])[0]}"


def _call(name: str, parameters: Collection[str]) -> str:
    return (
        f"{name}(problem{''.join(f', *, {one}' if not i else f', {one}' for i, one in enumerate(sorted(parameters)))})"
    )
