"""The points that a definition's parameters can be tuned over: legal, few, and at sizes that hardware likes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from variants.definition import Definition, InvalidParameter, Parameter

SIZE_FROM: Final = 32
"""A parameter whose default is at least this is a size, and its values are multiples of 16; the others are counts."""
SIZE_STEP: Final = 16
MOST_POINTS: Final = 20_000
NEARNESS: Final = (None, 16, 8, 4, 2)
"""Factors about the default that keep the values of a large space, tried in turn when every 3·2^k is left out."""

OF_THE_DATA: Final = frozenset({"grid_width", "seed"})
"""Parameters that say what the inputs are or which numbers are drawn, and trade no work for error."""
OF_A_THOUSAND_HEADS: Final = frozenset({"full_heads"})
"""Parameters that count heads in a thousand: their values are the shares that whole heads make."""

Point = tuple[int, ...]


@dataclass(frozen=True)
class Space:
    """The legal points of the tuned parameters, in the order of `names`; `held` are the others with their values.

    `levels` are each parameter's values, rising: a step from one to the next is about the same factor everywhere.
    """

    names: tuple[str, ...]
    levels: tuple[tuple[int, ...], ...]
    points: tuple[Point, ...]
    held: Mapping[str, int]

    def parameters(self, point: Point) -> dict[str, int]:
        """Every parameter of the definition at a point."""
        return {**self.held, **dict(zip(self.names, point, strict=True))}

    def place(self, point: Point) -> tuple[int, ...]:
        """Which level of each parameter a point has."""
        return tuple(values.index(value) for values, value in zip(self.levels, point, strict=True))

    def nearest(self, place: Sequence[float], taken: set[int]) -> int:
        """The index of the legal point nearest to a place between the levels, of those not taken.

        Distances are in shares of each parameter's whole range; at equal ones the first point counts.
        """
        spans = np.array([max(1, len(values) - 1) for values in self.levels])
        distances = (np.abs(self._places - np.asarray(place)) / spans).sum(axis=1)
        distances[list(taken)] = np.inf
        return int(distances.argmin())

    @cached_property
    def _places(self) -> NDArray[np.float64]:
        return np.array([self.place(point) for point in self.points], dtype=np.float64)


def space_of(definition: Definition, length: int, heads: int, held: Mapping[str, int] | None = None) -> Space:
    """The space of a definition at a length; `held` fixes parameters of its own at values that are asked for.

    Without any parameter to tune, or without a legal point, it holds no point. Raises `InvalidParameter` where a held
    value is outside its range.
    """
    usual = {p.name: p.default for p in definition.parameters if p.name in OF_THE_DATA}
    own = {p.name: p.validate(held[p.name]) for p in definition.parameters if held and p.name in held}
    fixed = usual | own
    tuned = [parameter for parameter in definition.parameters if parameter.name not in fixed]
    levels = _levels(tuned, length, heads)
    names = tuple(parameter.name for parameter in tuned)
    points = tuple(_legal(definition, names, levels, fixed)) if tuned else ()
    return Space(names, levels, points, fixed)


def _levels(tuned: Sequence[Parameter], length: int, heads: int) -> tuple[tuple[int, ...], ...]:
    """Every parameter's values; where their combinations are too many, fewer of them, nearer to the defaults."""
    levels = tuple(_values(parameter, length, heads, halves=True, near=None) for parameter in tuned)
    for near in NEARNESS:
        if prod(map(len, levels)) <= MOST_POINTS:
            break
        levels = tuple(_values(parameter, length, heads, halves=False, near=near) for parameter in tuned)
    return levels


def _values(parameter: Parameter, length: int, heads: int, *, halves: bool, near: int | None) -> tuple[int, ...]:
    """Powers of two, with the halves between them if wanted; of a size only multiples of 16; and the default.

    None is longer than the sequence: beyond it most formulas have nothing left to gain.
    """
    low, high = parameter.low, min(parameter.high, max(parameter.low, length))
    if parameter.name in OF_A_THOUSAND_HEADS:
        values = {round(1000 * count / heads) for count in range(heads + 1)}
        high = parameter.high
    else:
        values = set(_doubling(high, halves=halves)) | {parameter.default}
        values |= {low} if low == 0 else set()
        if parameter.default >= SIZE_FROM:
            values = {value for value in values if value % SIZE_STEP == 0 or value == parameter.default}
    if near is not None:
        values = {value for value in values if parameter.default <= near * max(value, 1) <= near**2 * parameter.default}
    return tuple(sorted(value for value in values if low <= value <= high)) or (high,)


def _doubling(high: int, *, halves: bool) -> Iterator[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, then 32, 48, 64, 96 and so on: from 16 on multiples of 16 only."""
    power = 1
    while power <= high:
        yield power
        between = power + power // 2
        if halves and power > 1 and (between < SIZE_STEP or between % SIZE_STEP == 0):
            yield between
        power *= 2


def _legal(
    definition: Definition, names: tuple[str, ...], levels: Sequence[tuple[int, ...]], fixed: Mapping[str, int]
) -> Iterator[Point]:
    for point in product(*levels):
        try:
            definition.resolve({**fixed, **dict(zip(names, point, strict=True))})
        except InvalidParameter:
            continue
        yield point
