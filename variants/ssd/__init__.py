"""State-space duality: a state that decays by one input-dependent factor and takes up its input in steps."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition
from variants.drawn_gates import by_head, by_position, uniform
from variants.problem import Problem


def step_sizes(heads: int, tokens: int) -> Float64[Tensor, "heads tokens"]:
    """Δ of each head and position: log-uniform from 0.001 to 0.1, where Mamba-2's models begin; alike for every item.

    A model computes Δ from its token; here, where only q, k and v are given, it is drawn.
    """
    return 0.001 * 100 ** uniform(by_position(2405_21060, heads, tokens)[..., 0])


def rates(heads: int) -> Float64[Tensor, " heads"]:
    """A of each head, below 0: −A from U(1, 16), where Mamba-2's models begin."""
    return -(1 + 15 * uniform(by_head(2405_21061, heads)[:, 0]))


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """The scores times Δ_j and the decays between j and i, densely; `ValueError` where it is not defined."""
    if not causal or q.shape[2] != k.shape[2]:
        raise ValueError("SSD is causal only, with as many queries as keys")
    step = step_sizes(k.shape[1], k.shape[2]).to(k.device)
    log_decay = rates(k.shape[1]).to(k.device)[:, None] * step
    weights = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) * step[:, None, :]
    mask = torch.zeros(k.shape[1], len(rows), k.shape[2], dtype=torch.float64, device=k.device)
    for index, i in enumerate(rows.tolist()):
        # Summed backwards from i, so that near keys keep all their digits.
        upto = log_decay[:, : i + 1].flip(1)
        mask[:, index, : i + 1] = (upto.cumsum(1) - upto).flip(1).exp()
    return torch.einsum("bhij,bhje->bhie", weights * mask, v)


def visible_pairs(problem: Problem) -> int:
    """Each query reads, and each key writes, the d rows of the state."""
    return (problem.tokens + problem.kv_tokens) * problem.head_dim // 2


def flops_per_head(problem: Problem) -> int:
    """For each key 2 d² for its outer product and d² for the decay, for each query 2 d² for its read."""
    return (3 * problem.kv_tokens + 2 * problem.tokens) * problem.head_dim**2


DEFINITION = Definition(
    name="ssd",
    title="State-space duality (Mamba-2)",
    formula="o_i = S_iᵀq_i,  S_i = e^{AΔ_i} S_{i−1} + Δ_i k_i v_iᵀ,  C = q, B = k, x = v,  A < 0 and Δ_i > 0 drawn",
    source="arXiv:2405.21060, section 6",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="ssd/chunked",
    normalised=False,
    flops_per_head=flops_per_head,
)
