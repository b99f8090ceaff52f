"""Errors against the oracles: of the implementation, of the approximation, and the mean-of-V floor."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from benchmarks.call_contract import require_gradients
from variants import Problem
from variants.definition import Definition, Parameters
from variants.full import DEFINITION as EXACT

ALL_ROWS_UP_TO = 1024
SAMPLED_ROWS = 256
PIECE_ROWS = 64

Inputs = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative Frobenius errors on the checked rows; `row_*` are quantiles of `row_errors`."""

    implementation: float
    row_p50: float
    row_p99: float
    row_max: float
    approximation: float
    mean_of_v: float
    rows: int
    finite: bool


def checked_rows(problem: Problem, seed: int = 0) -> Int64[Tensor, " rows"]:
    """All query rows of a short problem; of a long one the first and last eight and a seeded sample.

    The oracle of all rows of a long problem would be larger than the problem itself.
    """
    if problem.tokens <= ALL_ROWS_UP_TO:
        return torch.arange(problem.tokens, device=problem.device)
    edges = torch.cat((torch.arange(8), torch.arange(problem.tokens - 8, problem.tokens)))
    inner = torch.randperm(problem.tokens - 16, generator=torch.Generator().manual_seed(seed))
    chosen = torch.cat((edges, inner[: SAMPLED_ROWS - 16] + 8))
    return chosen.sort().values.to(problem.device)


def measure_errors(
    out: Float[Tensor, "batch heads tokens head_dim"],
    inputs: Inputs,
    problem: Problem,
    definition: Definition,
    parameters: Parameters,
) -> Errors:
    """Both errors of one output, against float64 oracles on the same inputs."""
    exact = exact_of(inputs, problem)
    own = oracle_rows(inputs, problem, definition, parameters, exact)
    return errors_of(out, Expected(own, relative_error(own, exact.rows), exact.mean_of_v), checked_rows(problem))


@dataclass(frozen=True, slots=True)
class Exact:
    """Exact attention on the checked rows, and the mean of V's error against it."""

    rows: Float64[Tensor, "batch heads rows head_dim"]
    mean_of_v: float


@dataclass(frozen=True, slots=True)
class Expected:
    """What an output is held against: its definition's oracle on the checked rows, and that oracle's own error."""

    own: Float64[Tensor, "batch heads rows head_dim"]
    approximation: float
    mean_of_v: float
    plain: float = math.nan
    """The error of the formula in the problem's own half type, where it was asked for."""


def exact_of(inputs: Inputs, problem: Problem) -> Exact:
    """What all definitions are held against, on these inputs."""
    rows = checked_rows(problem)
    exact = formula_rows(inputs, problem, EXACT, {})
    return Exact(exact, relative_error(mean_of_values(inputs[2], rows, problem), exact))


def oracle_rows(
    inputs: Inputs, problem: Problem, definition: Definition, parameters: Parameters, exact: Exact
) -> Float64[Tensor, "batch heads rows head_dim"]:
    """The definition's oracle on the checked rows; where it is exact attention, what is there already."""
    if definition.oracle is EXACT.oracle:
        return exact.rows
    return formula_rows(inputs, problem, definition, parameters)


def errors_of(
    out: Float[Tensor, "batch heads tokens head_dim"], expected: Expected, rows: Int64[Tensor, " rows"]
) -> Errors:
    """Both errors of one output, of which those rows are checked."""
    got = out.detach()[:, :, rows].to(torch.float64)
    by_row = row_errors(got, expected.own)
    return Errors(
        implementation=relative_error(got, expected.own),
        row_p50=float(by_row.quantile(0.5)),
        row_p99=float(by_row.quantile(0.99)),
        row_max=float(by_row.max()),
        approximation=expected.approximation,
        mean_of_v=expected.mean_of_v,
        rows=len(rows),
        finite=bool(torch.isfinite(out).all()),
    )


def row_errors(got: Tensor, want: Tensor) -> Tensor:
    """Each row's error over its own norm, or over a tenth of the typical norm where a row is nearly nought."""
    norms: Tensor = want.norm(dim=-1).flatten()
    if not norms.numel():
        return norms.new_zeros(1)
    floor = 0.1 * float(norms.square().mean().sqrt())
    strayed: Tensor = (got - want).norm(dim=-1).flatten()
    return strayed / norms.clamp(min=max(floor, 1e-300))


def measure_gradient_error(
    run: Callable[[], tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tensor]],
    problem: Problem,
    definition: Definition,
    parameters: Parameters,
) -> float:
    """The largest error of the gradients of q, k and v against the oracle's.

    `run` returns the output, its inputs (which require gradients) and the output's gradient,
    all batch-heads-tokens-dim. Only checked rows carry a gradient, so that the oracle's is small.
    """
    out, inputs, grad = run()
    got = checked_gradients(out, inputs, grad, checked_rows(problem))
    return gradient_error(got, oracle_gradients(inputs, grad, problem, definition, parameters))


def checked_gradients(out: Tensor, inputs: Inputs, grad: Tensor, rows: Int64[Tensor, " rows"]) -> tuple[Tensor, ...]:
    """The gradients of q, k and v, where only those rows of the output carry one. Raises `BrokenContract`."""
    picked = torch.zeros_like(grad)
    picked[:, :, rows] = grad[:, :, rows]
    found = torch.autograd.grad(out, inputs, picked, allow_unused=True)
    require_gradients(found)
    return found


def oracle_gradients(
    inputs: Inputs, grad: Tensor, problem: Problem, definition: Definition, parameters: Parameters
) -> tuple[Tensor, ...]:
    """The oracle's gradients of q, k and v in float64, where only the checked rows of the output carry one."""
    wide = [x.detach().to(torch.float64).requires_grad_() for x in inputs]
    want = [torch.zeros_like(x) for x in wide]
    for piece in pieces(checked_rows(problem), definition):
        own = definition.reference(*wide, causal=problem.causal, rows=piece, parameters=parameters)
        parts = torch.autograd.grad(own, wide, grad[:, :, piece].to(torch.float64))
        want = [total + part for total, part in zip(want, parts, strict=True)]
    return tuple(want)


def gradient_error(got: tuple[Tensor, ...], want: list[Tensor] | tuple[Tensor, ...]) -> float:
    """The largest relative Frobenius error of several gradients; NaN where one holds NaN.

    A gradient that is nought by the formula (softmax over one key) has no scale of its own, so
    none is divided by less than 1 % of the largest.
    """
    norms = [float(x.norm()) for x in want]
    floor = max(1e-2 * max(norms, default=0.0), 1e-300)
    errors = [
        float((a.to(torch.float64) - b).norm()) / max(norm, floor) for a, b, norm in zip(got, want, norms, strict=True)
    ]
    return math.nan if any(map(math.isnan, errors)) else max(errors, default=0.0)  # max would pass over a NaN


def formula_rows(
    inputs: Inputs, problem: Problem, definition: Definition, parameters: Parameters
) -> Float64[Tensor, "batch heads rows head_dim"]:
    """The oracle on the checked rows, a few at a time, so that its scores stay small; the inputs are widened once."""
    wide = [x.detach().to(torch.float64) for x in inputs]
    parts = [
        definition.reference(*wide, causal=problem.causal, rows=piece, parameters=parameters)
        for piece in pieces(checked_rows(problem), definition)
    ]
    return torch.cat(parts, dim=2)


def pieces(
    rows: Int64[Tensor, " rows"], definition: Definition, size: int = PIECE_ROWS
) -> Sequence[Int64[Tensor, " piece"]]:
    """Rows of which an oracle is asked together: so many, where it computes with all keys for each of them."""
    by_token = getattr(definition, "by_token", False)  # under asv, a commit's may not say
    return (rows,) if by_token else rows.split(size)


def mean_of_values(
    v: Float[Tensor, "batch kv_heads kv_tokens dim"], rows: Int64[Tensor, " rows"], problem: Problem
) -> Float[Tensor, "batch heads rows dim"]:
    """The mean of the visible values of each row: what an approximation must beat to be worth anything."""
    v = v.detach().to(torch.float64).repeat_interleave(problem.group, 1)
    if not problem.causal:
        return v.mean(2, keepdim=True).expand(-1, -1, len(rows), -1)
    seen = (rows + problem.offset + 1).clamp(min=0)
    sums = torch.nn.functional.pad(v.cumsum(2), (0, 0, 1, 0))
    return sums[:, :, seen] / seen.clamp(min=1)[:, None]


def relative_error(got: Tensor, want: Tensor) -> float:
    """‖got − want‖ / ‖want‖; 0 where both are empty or zero."""
    scale = float(want.norm())
    distance = float((got - want).norm())
    return distance / scale if scale > 0 else distance
