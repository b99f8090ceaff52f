"""How near samplers come to the cheapest parameters within a limit: their regret on spaces that were tabulated whole.

`python -m benchmarks.sampler_trials` prints it as a table. The errors are of float64 oracles and the cost is the
declared work, so that nothing is timed and every machine finds the same, but for the last digits of a sum.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

from benchmarks.parameter_errors import ErrorMeter
from benchmarks.parameter_search import Limits, search
from benchmarks.parameter_space import Point, Space, space_of
from variants import Problem
from variants.catalogue import load

SAMPLERS: Final = ("gp", "tpe", "pso", "random")
SHARES: Final = (0.05, 0.1)
"""Limits are what these shares of the points, the cheapest, can keep: few points are better than what is sought."""
SLACK: Final = 1.1
TOKENS: Final = 512
INPUTS: Final = "mixed"


@dataclass(frozen=True, slots=True)
class Grid:
    """A space with the cost and the error of every point."""

    name: str
    space: Space
    costs: Mapping[Point, float]
    errors: Mapping[Point, float | str]

    def limit(self, share: float) -> float:
        """A tenth more than the smallest error of this share of the points, the cheapest ones."""
        order = sorted(self.costs, key=lambda point: self.costs[point])
        errors = [self.errors[point] for point in order[: max(1, math.ceil(share * len(order)))]]
        return SLACK * min(error for error in errors if not isinstance(error, str))

    def cheapest(self, limit: float) -> float:
        """The cost of the cheapest point within a limit."""
        return min(
            self.costs[point] for point, error in self.errors.items() if not isinstance(error, str) and error <= limit
        )


@dataclass(frozen=True, slots=True)
class Regret:
    """By how much the best found points cost more than the cheapest one, over seeds; `missed` found none."""

    grid: str
    points: int
    limit: float
    sampler: str
    evaluations: int
    regrets: tuple[float, ...]
    missed: int


def tabulated(name: str, variant: str, problem: Problem, inputs: str, space: Space) -> Grid:
    """Every point of a space, with its declared work and its error."""
    found, meter = load(variant), ErrorMeter(problem, [inputs])
    methods = {point: space.parameters(point) for point in space.points}
    costs = {point: float(found.flops(problem, parameters)) for point, parameters in methods.items()}
    return Grid(name, space, costs, {point: meter.error(found.definition, methods[point]) for point in methods})


def usual_grids(tokens: int = TOKENS) -> Iterator[Grid]:
    """Blocks in every multiple of 16 with every rank that divides them; and NSA's five parameters."""
    plain = Problem(tokens=tokens, heads=2, head_dim=32)
    yield tabulated("blockwise_low_rank", "blockwise_low_rank/merged", plain, INPUTS, fine_blocks(tokens))
    causal = plain.with_(causal=True)
    yield tabulated("nsa", "nsa/branched", causal, INPUTS, few_of_nsa(tokens))


def fine_blocks(tokens: int) -> Space:
    """Finer than tuning needs: so fine that an exhaustive search is no longer cheap."""
    blocks = tuple(range(16, tokens + 1, 16))
    ranks = tuple(rank for rank in range(1, tokens + 1) if any(block % rank == 0 for block in blocks))
    points = tuple((block, rank) for block, rank in product(blocks, ranks) if block % rank == 0)
    return Space(("block", "rank"), (blocks, ranks), points, {})


def few_of_nsa(tokens: int) -> Space:
    """One in 23 points of the space that is tuned, so that tabulating it takes a minute."""
    whole = space_of(load("nsa/branched").definition, tokens, heads=2)
    return Space(whole.names, whole.levels, whole.points[::23], whole.held)


def regret_of(grid: Grid, share: float, sampler: str, evaluations: int, seeds: Sequence[int]) -> Regret:
    """One sampler on one grid under one limit, once for each seed."""
    limit = grid.limit(share)
    cheapest = grid.cheapest(limit)
    best = []
    for seed in seeds:
        limits = Limits(limit, evaluations)
        best.append(search(grid.space, grid.costs.__getitem__, grid.errors.__getitem__, limits, sampler, seed).best)
    regrets = tuple(found[0].cost / cheapest - 1 for found in best if found)
    return Regret(grid.name, len(grid.space.points), limit, sampler, evaluations, regrets, len(best) - len(regrets))


def line_of(found: Regret) -> str:
    """One line of a Markdown table: mean, median and worst regret in percent."""
    figures: tuple[str, ...] = ("–", "–", "–")
    if found.regrets:
        values = statistics.fmean(found.regrets), statistics.median(found.regrets), max(found.regrets)
        figures = tuple(f"{100 * value:.1f}" for value in values)
    cells = (found.grid, found.points, f"{found.limit:.2g}", found.sampler, found.evaluations, *figures, found.missed)
    return f"| {' | '.join(map(str, cells))} |"


HEADER: Final = (
    "| definition | points | limit | sampler | evaluations | regret, %: mean | median | worst | nothing found |\n"
    "|---|--:|--:|---|--:|--:|--:|--:|--:|"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, a line as soon as it is known."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    asked = parser.parse_args(arguments)
    sys.stdout.write(f"{HEADER}\n")
    for grid in usual_grids():
        for share, sampler in product(SHARES, asked.samplers.split(",")):
            found = regret_of(grid, share, sampler, asked.evaluations, range(asked.seeds))
            sys.stdout.write(f"{line_of(found)}\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
