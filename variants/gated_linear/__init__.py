"""Gated linear attention: every channel of the state decays at a rate of its own."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition
from variants.drawn_gates import by_position
from variants.problem import Problem
from variants.token_walk import walk


def log_decays(heads: int, tokens: int, head_dim: int) -> Float64[Tensor, "heads tokens head_dim"]:
    """log α of each head, position and channel, below 0: log σ(x)/16 of a seeded normal draw x, alike for every item.

    A model computes x from its token; here, where only q, k and v are given, it is drawn.
    """
    return torch.nn.functional.logsigmoid(by_position(2312_06635, heads, tokens, head_dim)) / 16


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """The recurrence on the state, token after token; `ValueError` where it is not defined."""
    if not causal or q.shape[2] != k.shape[2]:
        raise ValueError("gated linear attention is causal only, with as many queries as keys")
    alpha = log_decays(k.shape[1], k.shape[2], k.shape[3]).exp().to(k.device)

    def step(state: Tensor, key: Tensor, value: Tensor, alpha: Tensor) -> Tensor:
        return torch.addcmul(alpha[..., None] * state, key[..., None], value[:, :, None])

    state = k.new_zeros(*k.shape[:2], k.shape[3], v.shape[3])
    return walk(q, rows, state, step, k, v, alpha)


def visible_pairs(problem: Problem) -> int:
    """Each query reads, and each key writes, the d rows of the state."""
    return (problem.tokens + problem.kv_tokens) * problem.head_dim // 2


def flops_per_head(problem: Problem) -> int:
    """For each key 2 d² for its outer product and d² for the decay, for each query 2 d² for its read."""
    return (3 * problem.kv_tokens + 2 * problem.tokens) * problem.head_dim**2


DEFINITION = Definition(
    name="gated_linear",
    title="Gated linear attention (GLA)",
    formula="o_i = S_iᵀq_i,  S_i = diag(α_i) S_{i−1} + k_i v_iᵀ,  α_i = σ(x_i)^{1/16} ∈ (0, 1)^d, x_i drawn",
    source="arXiv:2312.06635, section 4",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="gated_linear/chunked",
    normalised=False,
    flops_per_head=flops_per_head,
    by_token=True,
)
