"""Softmax with a temperature: scores over tau before the softmax."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition, Parameter
from variants.full import visible_pairs as all_pairs
from variants.problem import Problem


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
    percent: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """softmax(q k^T / (tau sqrt(d))) v with tau = percent / 100, densely; a row that sees no key is zero."""
    tau = percent / 100
    scores = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) / (tau * q.shape[-1] ** 0.5)
    if causal:
        position = rows + (k.shape[2] - q.shape[2])
        scores = scores.masked_fill(torch.arange(k.shape[2], device=k.device) > position[:, None], -torch.inf)
    top = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min) if k.shape[2] else scores
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True)
    return torch.einsum("bhij,bhje->bhie", weights, v) / torch.where(total > 0, total, 1.0)


def visible_pairs(problem: Problem, *, percent: int) -> int:
    """All pairs, or those with key position <= query position."""
    return all_pairs(problem)


DEFINITION = Definition(
    name="temperature",
    title="Softmax with a temperature",
    formula="softmax of q_i·k_j/(τ√d),  τ = percent/100;  causal: j ≤ i",
    source="arXiv:1503.02531, equation 1",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="temperature/scaled",
    parameters=(Parameter("percent", 50, 1, 10000, "temperature in hundredths"),),
)
