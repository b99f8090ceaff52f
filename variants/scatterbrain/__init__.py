"""Scatterbrain: exact weights within a window, and outside it their expectation over random positive features."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition, Parameter
from variants.favor import projection
from variants.problem import Problem


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
    window: int,
    features: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """Dense weights, e^{s_ij} inside the window and φ(q_i)·φ(k_j) outside it, over their row sum.

    Each φ is divided by its largest entry and the weights are kept as logarithms until the row is
    normalised: in exact arithmetic that changes nothing.
    """
    omega = projection(q.shape[3], features).to(q.device)
    logs = [
        torch.einsum("bhid,rd->bhir", x, omega) - (x * x).sum(-1, keepdim=True) / 2
        for x in (q[:, :, rows] / q.shape[3] ** 0.25, k / k.shape[3] ** 0.25)
    ]
    tops = [x.detach().amax(-1, keepdim=True) for x in logs]
    alike = torch.einsum("bhir,bhjr->bhij", *((x - top).exp() for x, top in zip(logs, tops, strict=True))) / features
    outside = torch.where(alike > 0, alike, 1.0).log().masked_fill(alike == 0, -torch.inf) + tops[0] + tops[1].mT
    inside = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) / q.shape[3] ** 0.5
    distance = torch.arange(k.shape[2], device=k.device)[None, :] - (rows + (k.shape[2] - q.shape[2]))[:, None]
    near = distance.abs() < window if causal else 2 * distance.abs() <= window
    logits = torch.where(near, inside, outside)
    if causal:
        logits = logits.masked_fill(distance > 0, -torch.inf)
    weights = torch.exp(logits - logits.detach().amax(-1, keepdim=True).clamp(min=-1e300)) if k.shape[2] else logits
    total = weights.sum(-1, keepdim=True)
    return torch.einsum("bhij,bhje->bhie", weights, v) / torch.where(total > 0, total, 1.0)


def near_pairs(problem: Problem, window: int) -> int:
    """Pairs within the window."""
    before, after = (window - 1, 0) if problem.causal else (window // 2, window // 2)
    positions = range(problem.offset, problem.offset + problem.tokens)
    return sum(max(0, min(p + after + 1, problem.kv_tokens) - max(p - before, 0)) for p in positions)


def far_tokens(problem: Problem, window: int) -> int:
    """Queries with a key outside their window, and keys outside the window of a query."""
    before, after = (window - 1, 0) if problem.causal else (window // 2, window // 2)
    first, last = problem.offset, problem.kv_tokens - 1
    positions = range(first, last + 1)
    queries = sum(p > before or (not problem.causal and p + after < last) for p in positions)
    keys = sum(last - j > before or (not problem.causal and j - first > after) for j in range(problem.kv_tokens))
    return queries + keys if problem.tokens and problem.kv_tokens else 0


def visible_pairs(problem: Problem, *, window: int, features: int) -> int:
    """Pairs within the window; each query and key with one outside reads or writes the rows of the state."""
    return near_pairs(problem, window) + far_tokens(problem, window) * features // 2


def flops_per_head(problem: Problem, *, window: int, features: int) -> int:
    """4 d for each pair in the window; else as FAVOR+: for each token and feature 4 d, and 2 for the normaliser."""
    near = 4 * problem.head_dim * near_pairs(problem, window)
    return near + far_tokens(problem, window) * features * (4 * problem.head_dim + 2)


DEFINITION = Definition(
    name="scatterbrain",
    title="Scatterbrain",
    formula=(
        "o_i = [Σ_{j in W_i} e^{s_ij} v_j + Σ_{other j} φ(q_i)·φ(k_j) v_j] / [the same with v → 1],  W_i: "
        "i − W < j ≤ i (causal) or |i − j| ≤ W/2,  φ(x) = e^{ωx' − ‖x'‖²/2}/√m,  x' = x d^{−¼},  ω as in FAVOR+"
    ),
    source="arXiv:2110.15343, with a window as the sparse part and FAVOR+ (arXiv:2009.14794) as the low-rank one",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="scatterbrain/merged",
    parameters=(
        Parameter("window", 256, 1, 1 << 24, "keys with exact weights; causal counts the query's own"),
        Parameter("features", 256, 1, 1 << 16, "random features m"),
    ),
    flops_per_head=flops_per_head,
)
