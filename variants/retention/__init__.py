"""Retention: linear attention whose memory of a key fades by a constant factor with each token."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition
from variants.problem import Problem


def decays(heads: int) -> Float64[Tensor, " heads"]:
    """γ of each head: 1 − 2^{−5−h} (arXiv:2307.08621, equation 8)."""
    return 1.0 - 2.0 ** (-5.0 - torch.arange(heads, dtype=torch.float64))


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """The scores times γ to the power of the distance, densely; `ValueError` where not causal."""
    if not causal:
        raise ValueError("retention is causal only")
    heads = q.shape[1]
    gamma = torch.tensor([1 - 1 / (32 * 2**head) for head in range(heads)], dtype=torch.float64, device=q.device)
    distance = (rows + (k.shape[2] - q.shape[2]))[:, None] - torch.arange(k.shape[2], device=k.device)[None, :]
    fading = torch.where(distance >= 0, gamma[:, None, None] ** distance.clamp(min=0), 0.0)
    scores = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) / q.shape[3] ** 0.5
    return torch.einsum("bhij,bhje->bhie", scores * fading, v)


def visible_pairs(problem: Problem) -> int:
    """Each query reads, and each key writes, the d rows of the state."""
    return (problem.tokens + problem.kv_tokens) * problem.head_dim // 2


def flops_per_head(problem: Problem) -> int:
    """For each key 2 d² for its outer product and d² for the decay, for each query 2 d² for its read."""
    return (3 * problem.kv_tokens + 2 * problem.tokens) * problem.head_dim**2


DEFINITION = Definition(
    name="retention",
    title="Retention (RetNet)",
    formula="o_i = Σ_{j≤i} γ_h^{i−j} (q_i·k_j)/√d v_j,  γ_h = 1 − 2^{−5−h},  h = 0, 1, …",
    source="arXiv:2307.08621, equations 5, 6 and 8; 1/√d: its section on retention score normalisation",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="retention/chunked",
    normalised=False,
    flops_per_head=flops_per_head,
)
