"""Linformer: keys and values projected along the sequence to a fixed length."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition, Parameter
from variants.problem import Problem
from variants.requirement import Limit

ENCODERS_ONLY = Limit(lambda problem: not problem.causal, "no causal form: the projection mixes all keys")
SEED = 2006_04768


def projections(
    kv_tokens: int, projected: int
) -> tuple[Float64[Tensor, "projected kv_tokens"], Float64[Tensor, "projected kv_tokens"]]:
    """E and F in place of learned ones, from N(0, 1/projected) as in the paper's proofs; shared by all heads."""
    generator = torch.Generator().manual_seed(SEED)
    both = torch.randn(2, projected, kv_tokens, generator=generator, dtype=torch.float64)
    e, f = (both * projected**-0.5).unbind()
    return e, f


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
    projected: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """softmax(q (E k)^T / sqrt(d)) F v, densely.

    Raises `ValueError` for a causal mask, which the method does not have.
    """
    if causal:
        raise ValueError(ENCODERS_ONLY.reason)
    e, f = (x.to(q.device) for x in projections(k.shape[2], projected))
    keys = torch.einsum("pj,bhjd->bhpd", e, k)
    values = torch.einsum("pj,bhje->bhpe", f, v)
    scores = torch.einsum("bhid,bhpd->bhip", q[:, :, rows], keys) / q.shape[-1] ** 0.5
    return torch.einsum("bhip,bhpe->bhie", torch.softmax(scores, dim=-1), values)


def visible_pairs(problem: Problem, *, projected: int) -> int:
    """Each query meets every projected key, and each key every row of the projections."""
    return (problem.tokens + problem.kv_tokens) * projected


def flops_per_head(problem: Problem, *, projected: int) -> int:
    """4 d for each pair of a query and a projected key, and as many for each key's part in both projections."""
    return 4 * problem.head_dim * visible_pairs(problem, projected=projected)


DEFINITION = Definition(
    name="linformer",
    title="Linformer",
    formula="softmax(Q(EK)ᵀ/√d) FV,  E, F ∈ R^{p×N} frozen, from N(0, 1/p)",
    source="arXiv:2006.04768, equation 7",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="linformer/projected",
    parameters=(Parameter("projected", 256, 1, 1 << 16, "length that keys and values are projected to"),),
    normalised=False,
    flops_per_head=flops_per_head,
)
