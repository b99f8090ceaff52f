"""cosFormer: rectified queries and keys, weighed by the cosine of their distance."""

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
    """The weights relu(q_i)·relu(k_j) cos(π(i−j)/2M), densely, over their row sum; a row without weight is zero.

    M is the number of tokens. `ValueError` where there are not as many queries as keys.
    """
    if q.shape[2] != k.shape[2]:
        raise ValueError("cosFormer is defined here for as many queries as keys")
    apart = rows[:, None] - torch.arange(k.shape[2], device=k.device)[None, :]
    weights = torch.einsum("bhid,bhjd->bhij", q[:, :, rows].clamp(min=0), k.clamp(min=0))
    weights = weights * torch.cos(torch.pi / 2 * apart.double() / max(1, k.shape[2]))
    if causal:
        weights = weights * (apart >= 0)
    total = weights.sum(-1, keepdim=True)
    return torch.einsum("bhij,bhje->bhie", weights, v) / torch.where(total > 0, total, 1.0)


def visible_pairs(problem: Problem) -> int:
    """Each query reads, and each key writes, the 2 d rows of the state."""
    return (problem.tokens + problem.kv_tokens) * problem.head_dim


def flops_per_head(problem: Problem) -> int:
    """4 d² for each key's outer product and for each query's read, 2 d for each in features and normaliser."""
    size = problem.head_dim
    return (problem.tokens + problem.kv_tokens) * (4 * size * size + 4 * size)


DEFINITION = Definition(
    name="cosformer",
    title="cosFormer",
    formula="o_i = Σ_j w_ij v_j / Σ_j w_ij,  w_ij = relu(q_i)·relu(k_j) cos(π(i−j)/2M),  M = the number of tokens",
    source="arXiv:2202.08791; M as in its published code",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="cosformer/chunked",
    flops_per_head=flops_per_head,
)
