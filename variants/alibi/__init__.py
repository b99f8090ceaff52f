"""ALiBi: a penalty on each score that grows linearly with the distance, at a slope of the head's own."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition
from variants.full import visible_pairs
from variants.problem import Problem


def slopes(heads: int) -> list[float]:
    """The geometric sequence that starts at 2^(-8/H) and has that as its ratio (section 3)."""
    return [2.0 ** (-8.0 * (head + 1) / heads) for head in range(heads)]


def distance_bias(problem: Problem, ahead: Tensor, dtype: torch.dtype) -> Tensor:
    """The penalty of each head for a key that lies `ahead` of the query; -inf where the mask hides it."""
    slope = torch.tensor(slopes(problem.heads), dtype=dtype, device=problem.device)
    bias = slope.view(-1, *[1] * ahead.dim()) * -ahead.abs().to(dtype)
    return bias.masked_fill_(ahead > 0, -torch.inf) if problem.causal else bias


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """Dense softmax of q k^T / sqrt(d) - m_h |i - j|; a row that sees no key is zero."""
    heads, keys = q.shape[1], k.shape[2]
    number = torch.arange(1, heads + 1, dtype=torch.float64, device=q.device)
    slope = torch.exp2(-8 * number / heads)[:, None, None]
    back = (rows + keys - q.shape[2])[:, None] - torch.arange(keys, device=k.device)[None, :]
    scores = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) / q.shape[-1] ** 0.5 - slope * back.abs()
    if causal:
        scores = torch.where(back < 0, -torch.inf, scores)
    top = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min) if keys else scores
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True)
    return torch.einsum("bhij,bhje->bhie", weights, v) / torch.where(total > 0, total, 1.0)


DEFINITION = Definition(
    name="alibi",
    title="Attention with linear biases (ALiBi)",
    formula="softmax of q_i·k_j/√d − m_h |i − j|,  m_h = 2^{−8h/H}, h = 1 … H;  causal: j ≤ i",
    source="arXiv:2108.12409, section 3; both sides alike where not causal: its authors' code",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="alibi/chunked",
)
