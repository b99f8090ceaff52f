"""Linear attention: the softmax kernel replaced by a feature map, so that a running state suffices."""

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
    """The weights φ(q_i)·φ(k_j), densely, over their row sum; a row that sees no key is zero."""

    def feature(x: Tensor) -> Tensor:
        return torch.where(x > 0, x + 1, torch.exp(x))

    weights = torch.einsum("bhid,bhjd->bhij", feature(q[:, :, rows]), feature(k))
    if causal:
        position = rows + (k.shape[2] - q.shape[2])
        weights = weights * (torch.arange(k.shape[2], device=k.device)[None, :] <= position[:, None])
    total = weights.sum(-1, keepdim=True)
    return torch.einsum("bhij,bhje->bhie", weights, v) / torch.where(total > 0, total, 1.0)


def visible_pairs(problem: Problem) -> int:
    """Each query reads, and each key writes, the d rows of the state."""
    return (problem.tokens + problem.kv_tokens) * problem.head_dim // 2


def flops_per_head(problem: Problem) -> int:
    """2 d² for each key's outer product and for each query's read, d for each in the normaliser."""
    size = problem.head_dim
    return (problem.tokens + problem.kv_tokens) * 2 * size * size + (2 * problem.tokens + problem.kv_tokens) * size


DEFINITION = Definition(
    name="linear_scan",
    title="Linear attention (elu + 1)",
    formula="o_i = φ(q_i)ᵀS_i / φ(q_i)ᵀz_i,  S_i = Σ_{j≤i} φ(k_j)v_jᵀ,  z_i = Σ_{j≤i} φ(k_j),  φ = elu + 1",
    source="arXiv:2006.16236, equations 7 and 9 to 12",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="linear_scan/chunked",
    flops_per_head=flops_per_head,
)
