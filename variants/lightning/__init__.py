"""Lightning attention: as retention, with slopes that fall faster from head to head, and without the scale."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition
from variants.problem import Problem


def rates(heads: int) -> Float64[Tensor, " heads"]:
    """How much each head forgets in a token: 2^{−8(h+1)/H}, the slopes that the paper's code builds for its heads.

    That code has another rule where H is no power of two, and lowers the slopes from layer to layer; this is the first.
    """
    return 2.0 ** (-8.0 * torch.arange(1, heads + 1, dtype=torch.float64) / heads)


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """The scores times λ to the power of the distance, densely; `ValueError` where not causal."""
    if not causal:
        raise ValueError("lightning attention is causal only")
    heads = q.shape[1]
    slope = torch.tensor([256 ** (-(head + 1) / heads) for head in range(heads)], dtype=torch.float64, device=q.device)
    distance = (rows + (k.shape[2] - q.shape[2]))[:, None] - torch.arange(k.shape[2], device=k.device)[None, :]
    fading = torch.where(distance >= 0, torch.exp(-slope[:, None, None] * distance.clamp(min=0)), 0.0)
    scores = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k)
    return torch.einsum("bhij,bhje->bhie", scores * fading, v)


def visible_pairs(problem: Problem) -> int:
    """Each query reads, and each key writes, the d rows of the state."""
    return (problem.tokens + problem.kv_tokens) * problem.head_dim // 2


def flops_per_head(problem: Problem) -> int:
    """For each key 2 d² for its outer product and d² for the decay, for each query 2 d² for its read."""
    return (3 * problem.kv_tokens + 2 * problem.tokens) * problem.head_dim**2


DEFINITION = Definition(
    name="lightning",
    title="Lightning attention",
    formula="o_i = Σ_{j≤i} λ_h^{i−j} (q_i·k_j) v_j,  λ_h = e^{−2^{−8(h+1)/H}},  h = 0, …, H − 1",
    source="arXiv:2401.04658; λ as in its published code",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="lightning/chunked",
    normalised=False,
    flops_per_head=flops_per_head,
)
