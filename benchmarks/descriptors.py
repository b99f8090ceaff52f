"""Descriptors of inputs: the figures that tell which approximations can be near exact attention on them."""

import math
from collections.abc import Callable
from typing import Final

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from benchmarks.drawn_inputs import QKV
from variants import Problem

DESCRIBED_ROWS: Final = 64
PIECE_ROWS: Final = 16
TOP_KEYS: Final = 64
LOCAL_DISTANCE: Final = 128
SINK_KEYS: Final = 4
NOTHING_LEFT: Final = -1e4
"""A logit so far below the largest has no weight in float64."""

Logits = Float64[Tensor, "batch heads rows kv_tokens"]


def describe_inputs(inputs: QKV, problem: Problem) -> dict[str, float]:
    """What is known of q, k and v, in float64 on a seeded sample of rows; what is not defined is left out.

    `row_entropy`: mean of H / log(visible keys). `logit_std`: deviation of the logits within a row,
    root mean square over the rows. `top64_mass`, `local128_mass` (keys at most 128 away) and
    `sink4_mass` (the first four keys): mean share of a row's weights. `k_stable_rank`: ‖K‖_F² / ‖K‖_2²,
    mean over the heads. `v_lag1_correlation`: of each channel of V with itself one token on, pooled.
    """
    figures = {
        **_row_figures(inputs, problem),
        "k_stable_rank": stable_rank(inputs[1]),
        "v_lag1_correlation": lag1_correlation(inputs[2]),
    }
    return {name: value for name, value in figures.items() if value is not None and math.isfinite(value)}


def described_rows(problem: Problem) -> Int64[Tensor, " rows"]:
    """The queries that are looked at: 64 at most, the last always, without those that see fewer than two keys."""
    first = max(0, 1 - problem.offset) if problem.causal else 0
    count = problem.tokens - first
    if problem.kv_tokens < 2 or count <= 0:
        return torch.arange(0)
    chosen = torch.randperm(count - 1, generator=torch.Generator().manual_seed(0))[: DESCRIBED_ROWS - 1]
    return torch.cat((chosen.sort().values, torch.tensor([count - 1]))) + first


def row_entropy(inputs: QKV, problem: Problem) -> float | None:
    """Mean of the rows' entropy over the logarithm of their visible keys; None where no row sees two."""
    by_scale = entropy_by_scale(inputs, problem)
    return None if by_scale is None else by_scale(1.0)


def entropy_by_scale(inputs: QKV, problem: Problem) -> Callable[[float], float] | None:
    """The row entropy that q times a number would have, the products taken once; None where no row sees two keys."""
    rows = described_rows(problem)
    if not problem.batch or not len(rows):
        return None
    pieces = [_logits(inputs, piece, problem) for piece in rows.split(PIECE_ROWS)]
    return lambda scale: float(torch.cat([_entropy(logits * scale, seen) for logits, seen in pieces], -1).mean())


def stable_rank(k: Tensor) -> float | None:
    """‖K‖_F² / ‖K‖_2², mean over batch and heads that are not zero; None where all are, or one is not finite."""
    wide = k.detach().to(torch.float64)
    if not wide.isfinite().all():
        return None
    squares = torch.linalg.eigvalsh(wide.mT @ wide)
    ranks = (squares.sum(-1) / squares[..., -1])[squares[..., -1] > 0]
    return float(ranks.mean()) if ranks.numel() else None


def lag1_correlation(v: Tensor) -> float | None:
    """Correlation of V with itself one token on, its channels centred, pooled; None where V is constant."""
    wide = v.detach().to(torch.float64)
    if wide.shape[2] < 2 or not wide.numel():
        return None
    before, after = (x - x.mean(2, keepdim=True) for x in (wide[:, :, :-1], wide[:, :, 1:]))
    scale = float(before.norm() * after.norm())
    # Centring a constant leaves its rounding, which would correlate with itself.
    return float((before * after).sum()) / scale if scale > 1e-24 * float(wide.norm()) ** 2 else None


def _row_figures(inputs: QKV, problem: Problem) -> dict[str, float]:
    rows = described_rows(problem)
    if not problem.batch or not len(rows):
        return {}
    sums: dict[str, float] = {}
    for piece in rows.split(PIECE_ROWS):
        logits, seen = _logits(inputs, piece, problem)
        for name, value in _piece_figures(logits, seen, piece + problem.offset).items():
            sums[name] = sums.get(name, 0.0) + float(value.sum())
    means = {name: total / (problem.batch * problem.heads * len(rows)) for name, total in sums.items()}
    return {**means, "logit_std": means["logit_std"] ** 0.5}


def _piece_figures(logits: Logits, seen: Bool[Tensor, "rows kv_tokens"], position: Tensor) -> dict[str, Tensor]:
    """By row; under `logit_std` still the variance, whose mean is wanted."""
    weights = torch.softmax(logits, dim=-1)
    key = torch.arange(logits.shape[-1], device=logits.device)
    near = (key - position.to(key.device)[:, None]).abs() <= LOCAL_DISTANCE
    count = seen.sum(-1)
    mean = logits.masked_fill(~seen, 0.0).sum(-1) / count
    away = (logits - mean[..., None]).masked_fill(~seen, 0.0)
    return {
        "row_entropy": _entropy(logits, seen),
        "logit_std": (away * away).sum(-1) / count,
        "top64_mass": weights.topk(min(TOP_KEYS, weights.shape[-1]), dim=-1).values.sum(-1),
        "local128_mass": (weights * near).sum(-1),
        "sink4_mass": weights[..., :SINK_KEYS].sum(-1),
    }


def _entropy(logits: Logits, seen: Bool[Tensor, "rows kv_tokens"]) -> Tensor:
    """log Σ e^x − Σ x e^x / Σ e^x, x the logits below their row's largest: one exponential and no logarithm each."""
    below = (logits - logits.amax(-1, keepdim=True)).clamp(min=NOTHING_LEFT)
    mass = below.exp()
    total = mass.sum(-1)
    entropies = total.log() - (mass * below).sum(-1) / total
    return entropies / seen.sum(-1).to(torch.float64).log()


def _logits(inputs: QKV, rows: Tensor, problem: Problem) -> tuple[Logits, Bool[Tensor, "rows kv_tokens"]]:
    """The rows' logits, hidden ones at minus infinity, and which keys are visible."""
    q, k, _ = inputs
    rows = rows.to(q.device)
    wide_q = q.detach()[:, :, rows].to(torch.float64).unflatten(1, (problem.kv_heads, problem.group))
    wide_k = k.detach().to(torch.float64)[:, :, None]
    logits = (wide_q @ wide_k.mT).flatten(1, 2) / problem.head_dim**0.5
    key = torch.arange(problem.kv_tokens, device=q.device)
    last = rows + problem.offset if problem.causal else torch.full_like(rows, problem.kv_tokens)
    seen = key[None, :] <= last[:, None]
    return logits.masked_fill(~seen, -torch.inf), seen
