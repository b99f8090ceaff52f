"""A gated recurrent unit over the values of each head, for comparison."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition
from variants.problem import Problem
from variants.requirement import Limit

CAUSAL_ONLY = Limit(lambda problem: problem.causal, "causal only: a state knows what came before")
SELF_ATTENTION = Limit(lambda problem: problem.tokens == problem.kv_tokens, "needs tokens = kv_tokens")
SEED = 1406_1078


def weights(channels: int) -> tuple[Float64[Tensor, "gates channels"], Float64[Tensor, "gates channels"]]:
    """W and U of the gates r, z and n, one below the other, from U(−1/√d, 1/√d); shared by all heads."""
    generator = torch.Generator().manual_seed(SEED)
    drawn = torch.rand(2, 3 * channels, channels, generator=generator, dtype=torch.float64)
    w, u = (2 * drawn - 1) * channels**-0.5
    return w, u


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """The recurrence, token by token.

    Raises `ValueError` where not causal or tokens != kv_tokens, which the operator does not have.
    """
    if not causal or q.shape[2] != k.shape[2]:
        raise ValueError(SELF_ATTENTION.reason if causal else CAUSAL_ONLY.reason)
    channels = v.shape[3]
    (w_r, w_z, w_n), (u_r, u_z, u_n) = (x.to(v.device).split(channels) for x in weights(channels))
    state = torch.zeros_like(v[:, :, 0]) if v.shape[2] else v.sum(2)
    states = []
    for value in v.unbind(2):
        reset = torch.sigmoid(value @ w_r.T + state @ u_r.T)
        update = torch.sigmoid(value @ w_z.T + state @ u_z.T)
        fresh = torch.tanh(value @ w_n.T + reset * (state @ u_n.T))
        state = update * state + (1 - update) * fresh
        states.append(state)
    out = torch.stack(states, 2)[:, :, rows] if states else v
    return out + 0.0 * (q.sum() + k.sum())


def visible_pairs(problem: Problem) -> int:
    """Each token meets one state."""
    return problem.tokens


def flops_per_head(problem: Problem) -> int:
    """Six products of d by d for each token, and some ten operations a channel."""
    return problem.tokens * problem.head_dim * (12 * problem.head_dim + 10)


DEFINITION = Definition(
    name="gru",
    title="Not attention: gated recurrent unit",
    formula=(
        "h_i = z ∘ h_{i−1} + (1 − z) ∘ tanh(W_n v_i + r ∘ U_n h_{i−1}),  r = σ(W_r v_i + U_r h_{i−1}), z likewise;  "
        "o_i = h_i, W and U ∈ R^{d×d} frozen, from U(−1/√d, 1/√d);  q and k are not read"
    ),
    source="arXiv:1406.1078, section 2.3, the reset gate after the product as in torch",
    exact=False,
    attention=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="gru/library",
    normalised=False,
    flops_per_head=flops_per_head,
    by_token=True,
)
