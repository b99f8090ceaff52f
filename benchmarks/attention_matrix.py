"""The attention matrix that a definition realises on a real head: its oracle, fed with the columns of the identity."""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float64
from torch import Tensor

from benchmarks.drawn_inputs import QKV
from benchmarks.error_table import oracle_output
from benchmarks.inputs import CAPTURED_HEAD_DIM, CAPTURED_TOKENS, make_inputs
from variants import Problem
from variants.definition import Definition, InvalidParameter
from variants.full import DEFINITION as EXACT

CAPTURED_HEADS: Final = 12
CAPTURED_HEAD: Final = 5
"""Of the captured heads one of the middle layer, with a diagonal, bands beside it and much that is nearly nought."""
HEADS: Final = 8
HEAD: Final = 4
"""Where a definition has slopes or masks of the heads' own, this one's are shown: the first of the second half."""
SHRUNK_FROM: Final = 64
SHRINKING: Final = 4
GRADIENT_ROWS: Final = 32
LINEARITY: Final = 1e-9
"""Relative difference from which on a function is not one matrix, the same for every channel of V."""

Matrix = Float64[Tensor, "tokens tokens"]


@dataclass(frozen=True, slots=True)
class Realised:
    """What a definition makes of one captured head beside exact attention with the same mask.

    `derivative` where no one matrix serves all channels of V: then it is that of the output's first
    channel by V's, at the captured V.
    """

    matrix: Matrix
    exact: Matrix
    causal: bool
    parameters: dict[str, int]
    derivative: bool


def realised_matrix(definition: Definition) -> Realised:
    """The matrix without a mask, or the causal one where the formula has no other form.

    Raises `ValueError` where it has neither.
    """
    parameters = picture_parameters(definition)
    try:
        matrix, derivative = _matrix(definition, parameters, causal=False)
        causal = False
    except ValueError:
        matrix, derivative = _matrix(definition, parameters, causal=True)
        causal = True
    exact = matrix if definition.exact else _matrix(EXACT, {}, causal=causal)[0]
    return Realised(matrix, exact, causal, parameters, derivative)


def picture_parameters(definition: Definition) -> dict[str, int]:
    """A quarter of every size from 64 on, so that 512 tokens show what the defaults make of 2048.

    The defaults themselves where the quarters do not go together.
    """
    usual = definition.resolve()
    shrunk = {name: value // SHRINKING if value >= SHRUNK_FROM else value for name, value in usual.items()}
    try:
        return definition.resolve(shrunk)
    except InvalidParameter:
        return usual


def _matrix(definition: Definition, parameters: dict[str, int], *, causal: bool) -> tuple[Matrix, bool]:
    q, k, v = _captured_head(HEADS)
    if not _one_matrix(definition, parameters, (q, k, v), causal=causal):
        return _derivative(definition, parameters, causal=causal), True
    identity = torch.eye(CAPTURED_TOKENS, dtype=torch.float64).expand(1, HEADS, -1, -1)
    return oracle_output(definition, (q, k, identity), causal=causal, parameters=parameters)[0, HEAD], False


def _one_matrix(definition: Definition, parameters: dict[str, int], inputs: QKV, *, causal: bool) -> bool:
    """Whether V's channels, turned by one place and tripled, come out turned and tripled: then one matrix does it."""
    q, k, v = inputs
    out, turned = (
        oracle_output(definition, (q, k, x), causal=causal, parameters=parameters) for x in (v, 3 * v.roll(1, -1))
    )
    return float((3 * out.roll(1, -1) - turned).norm()) <= LINEARITY * float(out.norm())


def _derivative(definition: Definition, parameters: dict[str, int], *, causal: bool) -> Matrix:
    """The gradients of the first channel of a single head, some queries at a time."""
    q, k, v = _captured_head(1)
    moved = v.clone().requires_grad_()
    gradients = []
    for rows in torch.arange(CAPTURED_TOKENS).split(GRADIENT_ROWS):
        out = definition.reference(q, k, moved, causal=causal, rows=rows, parameters=parameters)[0, 0, :, 0]
        each = torch.eye(len(rows), dtype=torch.float64)
        gradients.append(torch.autograd.grad(out, moved, each, is_grads_batched=True)[0][:, 0, 0, :, 0])
    return torch.cat(gradients)


def _captured_head(heads: int) -> QKV:
    """q, k, v of the captured head in the place of every head."""
    problem = Problem(tokens=CAPTURED_TOKENS, heads=CAPTURED_HEADS, head_dim=CAPTURED_HEAD_DIM, dtype="float64")
    q, k, v = (x[:, CAPTURED_HEAD].unsqueeze(1).expand(-1, heads, -1, -1) for x in make_inputs(problem, "captured"))
    return q, k, v
