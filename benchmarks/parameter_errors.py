"""The approximation error of a definition at given parameters, on given inputs, by float64 oracles on sampled rows."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from benchmarks.accuracy import checked_rows, relative_error
from benchmarks.drawn_inputs import QKV
from benchmarks.inputs import make_inputs
from variants import Problem
from variants.definition import Definition
from variants.full import DEFINITION as EXACT

MOST_SCORES: Final = 2**22
"""Scores that an oracle computes at once for one evaluation: 32 MiB of float64."""
FEWEST_ROWS: Final = 16
MOST_HEADS: Final = 8

Method = tuple[str, tuple[tuple[str, int], ...]]


class ErrorMeter:
    """Errors of definitions on the kinds of inputs of one problem, each computed once.

    One item of the batch, eight heads at most, spread evenly, and of the rows that a measurement checks a seeded
    sample, so that one evaluation holds few scores. Where all of them are few enough, which eight heads of 512 tokens
    are, the error is the very one that a measurement finds. With several kinds the largest error counts.
    """

    def __init__(self, problem: Problem, kinds: Sequence[str], seed: int = 0) -> None:
        """Draw or read the inputs, and compute exact attention on them. Raises `UnavailableInputs`."""
        problem = problem.with_(device="cpu", mode="forward")
        self.causal = problem.causal
        self.rows = sampled_rows(problem, seed)
        self.inputs = [_sampled(make_inputs(problem, kind, seed), problem) for kind in kinds]
        self._exact = [EXACT.reference(*inputs, causal=self.causal, rows=self.rows) for inputs in self.inputs]
        self._known: dict[Method, float | str] = {}

    def error(self, definition: Definition, parameters: dict[str, int]) -> float | str:
        """The relative Frobenius error against exact attention, or why the formula has none here."""
        method = (definition.name, tuple(sorted(parameters.items())))
        if method not in self._known:
            self._known[method] = self._measured(definition, parameters)
        return self._known[method]

    def _measured(self, definition: Definition, parameters: dict[str, int]) -> float | str:
        errors = []
        for inputs, exact in zip(self.inputs, self._exact, strict=True):
            try:
                own = definition.reference(*inputs, causal=self.causal, rows=self.rows, parameters=parameters)
            except ValueError as refusal:  # an oracle says so what its formula has no form for
                return str(refusal)
            errors.append(relative_error(own, exact))
        return max(errors) if all(map(_is_number, errors)) else "its error is not a number"


def sampled_rows(problem: Problem, seed: int = 0) -> Tensor:
    """Of the rows that a measurement checks as many as keep the scores few, sixteen at least."""
    rows = checked_rows(problem)
    heads = min(problem.heads, max(MOST_HEADS, problem.group))
    most = max(FEWEST_ROWS, MOST_SCORES // max(1, heads * problem.kv_tokens))
    if len(rows) <= most:
        return rows
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:most]
    return rows[chosen.sort().values]


def _sampled(inputs: QKV, problem: Problem) -> QKV:
    """The first item of the batch, and whole groups of heads that share keys and values."""
    wanted = max(1, min(problem.kv_heads, MOST_HEADS // problem.group))
    groups = torch.arange(wanted) * problem.kv_heads // wanted
    heads = (groups[:, None] * problem.group + torch.arange(problem.group)).flatten()
    q, k, v = (x[:1] for x in inputs)
    return q[:, heads], k[:, groups], v[:, groups]


def _is_number(error: float) -> bool:
    return error == error  # noqa: PLR0124  # only NaN is not itself
