"""The gated delta rule: a state that decays as a whole before each correction."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition
from variants.drawn_gates import by_head, by_position, uniform
from variants.problem import Problem
from variants.token_walk import walk


def rates(heads: int, tokens: int) -> Float64[Tensor, "heads tokens"]:
    """β of each head and position, in (0, 1): the sigmoid of a seeded normal draw, alike for every batch item."""
    return torch.sigmoid(by_position(2412_06464, heads, tokens)[..., 0])


def log_decays(heads: int, tokens: int) -> Float64[Tensor, "heads tokens"]:
    """log α of each head and position, below 0: −A·Δ with A from U(1, 16) by head and log Δ uniform from .001 to .1.

    The ranges with which Mamba-2's models begin, and the gated delta rule's after them. A model
    computes Δ from its token; here, where only q, k and v are given, it is drawn.
    """
    strength = 1 + 15 * uniform(by_head(2412_06465, heads))
    return -strength * 0.001 * 100 ** uniform(by_position(2412_06466, heads, tokens)[..., 0])


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
        raise ValueError("the gated delta rule is causal only, with as many queries as keys")
    beta = rates(k.shape[1], k.shape[2])[..., None].to(k.device)
    alpha = log_decays(k.shape[1], k.shape[2])[..., None].exp().to(k.device)
    length = torch.linalg.vector_norm(k, dim=3, keepdim=True)
    unit = k / torch.where(length > 0, length, 1.0)

    def step(state: Tensor, unit: Tensor, value: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        state = alpha[:, :, None] * state
        recalled = torch.einsum("bhd,bhde->bhe", unit, state)
        return torch.addcmul(state, unit[..., None], (beta * (value - recalled))[:, :, None])

    state = k.new_zeros(*k.shape[:2], k.shape[3], v.shape[3])
    return walk(q, rows, state, step, unit, v, alpha, beta)


def visible_pairs(problem: Problem) -> int:
    """Each query reads, and each key reads and writes, the d rows of the state."""
    return (problem.tokens + 2 * problem.kv_tokens) * problem.head_dim // 2


def flops_per_head(problem: Problem) -> int:
    """For each key d² for the decay, 2 d² for what it recalls, 2 d² for its outer product, for each query 2 d²."""
    return (5 * problem.kv_tokens + 2 * problem.tokens) * problem.head_dim**2


DEFINITION = Definition(
    name="gated_delta_rule",
    title="Gated delta rule (Gated DeltaNet)",
    formula=(
        "o_i = S_iᵀq_i,  S_i = α_i (I − β_i κ_i κ_iᵀ) S_{i−1} + β_i κ_i v_iᵀ,  κ = k/‖k‖,  α_i, β_i ∈ (0, 1) drawn"
    ),
    source="arXiv:2412.06464, equation 10",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="gated_delta_rule/chunked",
    normalised=False,
    flops_per_head=flops_per_head,
    by_token=True,
)
