"""Full attention: every query sees every key (or, causal, every key up to its own)."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition
from variants.problem import Problem


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """softmax(q k^T / sqrt(d)) v, densely; a row that sees no key is zero."""
    scores = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) / q.shape[-1] ** 0.5
    if not causal:
        return torch.einsum("bhij,bhje->bhie", torch.softmax(scores, dim=-1), v)
    position = rows + (k.shape[2] - q.shape[2])
    hidden = torch.arange(k.shape[2], device=k.device)[None, :] > position[:, None]
    weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
    weights = weights.masked_fill(hidden.all(-1, keepdim=True), 0.0)
    return torch.einsum("bhij,bhje->bhie", weights, v)


def visible_pairs(problem: Problem) -> int:
    """All pairs, or those with key position <= query position."""
    nq, nk = problem.tokens, problem.kv_tokens
    if not problem.causal:
        return nq * nk
    seeing = min(nq, nk)  # with more queries than keys, the first ones see nothing
    return seeing * (nk - seeing) + seeing * (seeing + 1) // 2


DEFINITION = Definition(
    name="full",
    title="Full softmax attention",
    formula="o_i = Σ_j e^{s_ij} v_j / Σ_j e^{s_ij},  s_ij = q_i·k_j/√d;  causal: j ≤ i + (Nk − Nq)",
    source="arXiv:1706.03762, section 3.2.1",
    exact=True,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="memory_efficient/sdpa_flash",
)
