"""Additive attention: the score of a pair is a small network of the query and the key."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition, Parameter
from variants.full import visible_pairs as all_pairs
from variants.problem import Problem

SEED = 1409_0473


def alignment(
    head_dim: int, hidden: int
) -> tuple[Float64[Tensor, "hidden dim"], Float64[Tensor, "hidden dim"], Float64[Tensor, " hidden"]]:
    """W1 and W2 from N(0, 1/d) and w from N(0, 1), in place of learned ones; shared by all heads."""
    generator = torch.Generator().manual_seed(SEED)
    w1, w2 = torch.randn(2, hidden, head_dim, generator=generator, dtype=torch.float64) * head_dim**-0.5
    return w1, w2, torch.randn(hidden, generator=generator, dtype=torch.float64)


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
    hidden: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """The scores unit by unit, then a dense softmax; a row that sees no key is zero."""
    w1, w2, w = (x.to(q.device) for x in alignment(q.shape[3], hidden))
    queries = torch.einsum("nd,bhid->nbhi", w1, q[:, :, rows])
    keys = torch.einsum("nd,bhjd->nbhj", w2, k)
    units = zip(w, queries, keys, strict=True)
    scores = sum((weight * torch.tanh(a[..., :, None] + b[..., None, :]) for weight, a, b in units), torch.zeros(()))
    if not causal:
        return torch.einsum("bhij,bhje->bhie", torch.softmax(scores, dim=-1), v)
    position = rows + (k.shape[2] - q.shape[2])
    hidden_pairs = torch.arange(k.shape[2], device=k.device)[None, :] > position[:, None]
    weights = torch.softmax(scores.masked_fill(hidden_pairs, -torch.inf), dim=-1)
    weights = weights.masked_fill(hidden_pairs.all(-1, keepdim=True), 0.0)
    return torch.einsum("bhij,bhje->bhie", weights, v)


def visible_pairs(problem: Problem, *, hidden: int) -> int:
    """Those of full attention."""
    return all_pairs(problem)


def flops_per_head(problem: Problem, *, hidden: int) -> int:
    """Both projections; of each pair a sum, a tanh, a product and a sum for each unit, and 2 d for its value."""
    projections = 2 * problem.head_dim * hidden * (problem.tokens + problem.kv_tokens)
    return projections + all_pairs(problem) * (4 * hidden + 2 * problem.head_dim)


DEFINITION = Definition(
    name="additive",
    title="Additive attention (Bahdanau)",
    formula=(
        "softmax_j(wᵀ tanh(W₁q_i + W₂k_j)) V,  W₁, W₂ ∈ R^{h×d} frozen, from N(0, 1/d), w from N(0, 1);  "
        "causal: j ≤ i + (Nk − Nq)"
    ),
    source="arXiv:1409.0473, section 3.1 and appendix A.1.2",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="additive/chunked",
    parameters=(Parameter("hidden", 16, 1, 1 << 12, "units of the network that scores a pair"),),
    flops_per_head=flops_per_head,
)
