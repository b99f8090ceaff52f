"""RWKV-7: a delta rule whose decay, removal and replacement differ from channel to channel."""

import math

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition
from variants.drawn_gates import by_head, by_position, uniform
from variants.problem import Problem
from variants.token_walk import walk


def log_decays(heads: int, tokens: int, head_dim: int) -> Float64[Tensor, "heads tokens head_dim"]:
    """log w of each head, position and channel, between −e^{−½} and 0: −e^{−½} σ(x), x drawn from N(−2, 1.5²).

    A model computes x from its token; here, where only q, k and v are given, it is drawn, alike for
    every batch item.
    """
    return -math.exp(-0.5) * torch.sigmoid(1.5 * by_position(2503_14456, heads, tokens, head_dim) - 2)


def learning_rates(heads: int, tokens: int, head_dim: int) -> Float64[Tensor, "heads tokens head_dim"]:
    """a of each head, position and channel, in (0, 1): the sigmoid of a normal draw."""
    return torch.sigmoid(by_position(2503_14457, heads, tokens, head_dim))


def key_scales(heads: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """ξ and α of each head and channel, (heads, head_dim) in float64, which a model learns: from U(½, 1)."""
    removal, mixing = (uniform(by_head(seed, heads, head_dim)) for seed in (2503_14458, 2503_14459))
    return 0.5 + removal / 2, 0.5 + mixing / 2


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
        raise ValueError("RWKV-7 is causal only, with as many queries as keys")
    w = log_decays(*k.shape[1:]).exp().to(k.device)
    a = learning_rates(*k.shape[1:]).to(k.device)
    xi, alpha = (x.to(k.device)[:, None] for x in key_scales(k.shape[1], k.shape[3]))
    length = torch.linalg.vector_norm(k * xi, dim=3, keepdim=True)
    unit = k * xi / torch.where(length > 0, length, 1.0)
    replacement = k * (1 + (a - 1) * alpha)

    def step(state: Tensor, unit: Tensor, added: Tensor, value: Tensor, w: Tensor, a: Tensor) -> Tensor:
        removed = torch.einsum("bhd,bhde->bhe", unit, state)
        state = torch.addcmul(w[..., None] * state, -(a * unit)[..., None], removed[:, :, None])
        return torch.addcmul(state, added[..., None], value[:, :, None])

    state = k.new_zeros(*k.shape[:2], k.shape[3], v.shape[3])
    return walk(q, rows, state, step, unit, replacement, v, w, a)


def visible_pairs(problem: Problem) -> int:
    """Each query reads, and each key reads and writes twice, the d rows of the state."""
    return (problem.tokens + 3 * problem.kv_tokens) * problem.head_dim // 2


def flops_per_head(problem: Problem) -> int:
    """For each key d² for the decay and 2 d² each for reading, removing and writing, for each query 2 d²."""
    return (7 * problem.kv_tokens + 2 * problem.tokens) * problem.head_dim**2


DEFINITION = Definition(
    name="rwkv7",
    title="RWKV-7",
    formula=(
        "o_i = S_iᵀq_i,  S_i = (diag(w_i) − (a_i⊙κ̂_i) κ̂_iᵀ) S_{i−1} + k̃_i v_iᵀ,  κ̂ = k⊙ξ / ‖k⊙ξ‖,  "
        "k̃ = k⊙(1 + (a − 1)⊙α);  w_i, a_i, ξ, α drawn"
    ),
    source="arXiv:2503.14456, section 4; without the bonus of the current token, which is no part of the state",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="rwkv7/chunked",
    normalised=False,
    flops_per_head=flops_per_head,
    by_token=True,
)
