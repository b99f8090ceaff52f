"""Neighbourhood attention in one dimension: a window of constant size that shifts inwards at the edges."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition, Parameter
from variants.problem import Problem
from variants.requirement import Limit

SELF_ATTENTION = Limit(lambda problem: problem.tokens == problem.kv_tokens, "needs tokens = kv_tokens")


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
    window: int,
    dilation: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """Dense softmax over the neighbourhood of each query among the tokens of its own residue class.

    Raises `ValueError` for tokens != kv_tokens, which the method does not have.
    """
    tokens = k.shape[2]
    if q.shape[2] != tokens:
        raise ValueError(SELF_ATTENTION.reason)
    query, key = rows[:, None], torch.arange(tokens, device=k.device)[None, :]
    step = key // dilation  # the place within the class
    if causal:
        inside = (step <= query // dilation) & (step > query // dilation - window)
    else:
        size = (tokens - 1 - query % dilation) // dilation + 1
        first = torch.minimum(query // dilation - window // 2, size - window).clamp(min=0)
        inside = (step >= first) & (step < first + window)
    inside &= key % dilation == query % dilation
    scores = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) / q.shape[-1] ** 0.5
    return torch.einsum("bhij,bhje->bhie", scores.masked_fill(~inside, -torch.inf).softmax(-1), v)


def visible_pairs(problem: Problem, *, window: int, dilation: int) -> int:
    """The whole neighbourhood of each query; causal, what there is of it."""
    count = 0
    for residue in range(min(dilation, problem.tokens)):
        size = (problem.tokens - 1 - residue) // dilation + 1
        wide = min(window, size)
        count += size * wide - (wide * (wide - 1) // 2 if problem.causal else 0)
    return count


DEFINITION = Definition(
    name="neighborhood",
    title="Neighbourhood attention (1-D)",
    formula=(
        "softmax over s ≤ p_j < s + W among the n tokens with i ≡ j (mod δ), p = ⌊i/δ⌋, "
        "s = max(0, min(p_i − ⌊W/2⌋, n − W));  causal: p_i − W < p_j ≤ p_i"
    ),
    source=(
        "arXiv:2204.07143, section 3.1; dilated: arXiv:2209.15001, section 3.1; "
        "causal: arXiv:2403.04690; edges and causal form as in NATTEN"
    ),
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="neighborhood/tiled",
    parameters=(
        Parameter("window", 255, 1, 1 << 24, "keys of a neighbourhood; of an even one, one more before than after"),
        Parameter("dilation", 1, 1, 1 << 20, "distance of neighbouring keys of a neighbourhood"),
    ),
)
