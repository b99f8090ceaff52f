"""FAVOR+: softmax's kernel by its expectation over random positive features."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition, Parameter
from variants.problem import Problem


def projection(head_dim: int, features: int) -> Float64[Tensor, "features head_dim"]:
    """ω, seeded, alike for all heads and batch items.

    Blocks of head_dim orthogonal rows, each as long as a row of normal draws.
    """
    generator = torch.Generator().manual_seed(2009_14794)
    blocks = []
    for _ in range(-(-features // head_dim)):
        normal = torch.randn(head_dim, head_dim, dtype=torch.float64, generator=generator)
        basis, upper = torch.linalg.qr(normal)
        lengths = torch.randn(head_dim, head_dim, dtype=torch.float64, generator=generator).norm(dim=1)
        # The signs make the basis uniform over the rotations and reflections.
        blocks.append((basis * upper.diagonal().sign()).T * lengths[:, None])
    return torch.cat(blocks)[:features]


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
    features: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """The weights φ(q_i)·φ(k_j), densely, over their row sum; a row that sees no key is zero.

    Each φ is divided by its largest entry and the weights are kept as logarithms until the row is
    normalised: in exact arithmetic that changes nothing.
    """
    omega = projection(q.shape[3], features).to(q.device)
    a, b = (torch.einsum("bhid,rd->bhir", x / x.shape[3] ** 0.25, omega) for x in (q[:, :, rows], k))
    b = b - (k * k).sum(-1, keepdim=True) / (2 * k.shape[3] ** 0.5)
    top = b.detach().amax(-1)
    alike = torch.einsum("bhir,bhjr->bhij", (a - a.detach().amax(-1, keepdim=True)).exp(), (b - top[..., None]).exp())
    logits = alike.log() + top[:, :, None, :]
    if causal:
        position = rows + (k.shape[2] - q.shape[2])
        hidden = torch.arange(k.shape[2], device=k.device)[None, :] > position[:, None]
        logits = logits.masked_fill(hidden, -torch.inf)
    weights = torch.exp(logits - logits.detach().amax(-1, keepdim=True).clamp(min=-1e300)) if k.shape[2] else logits
    total = weights.sum(-1, keepdim=True)
    return torch.einsum("bhij,bhje->bhie", weights, v) / torch.where(total > 0, total, 1.0)


def visible_pairs(problem: Problem, *, features: int) -> int:
    """Each query reads, and each key writes, the rows of the state, one for each feature."""
    return (problem.tokens + problem.kv_tokens) * features // 2


def flops_per_head(problem: Problem, *, features: int) -> int:
    """For each token 2 d for each feature and 2 d for its row of the state; 2 more for the normaliser."""
    return (problem.tokens + problem.kv_tokens) * features * (4 * problem.head_dim + 2)


DEFINITION = Definition(
    name="favor",
    title="FAVOR+ (Performer)",
    formula=(
        "o_i = φ(q_i)ᵀS_i / φ(q_i)ᵀz_i,  φ(x) = e^{ωx' − ‖x'‖²/2}/√m,  x' = x d^{−¼},  "
        "ω: m random rows, orthogonal by blocks of d"
    ),
    source="arXiv:2009.14794, lemma 1 and section 2.4",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="favor/chunked",
    parameters=(Parameter("features", 256, 1, 1 << 16, "random features m"),),
    flops_per_head=flops_per_head,
)
