"""Sparsemax attention: the scores of a row projected onto the simplex, which leaves most keys no weight."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition
from variants.full import visible_pairs


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """max(s - tau, 0), tau from the sorted scores (algorithm 1); a row that sees no key is zero."""
    if not k.shape[2]:
        return torch.einsum("bhid,bhjd,bhje->bhie", q[:, :, rows], k, v)
    scores = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) / q.shape[-1] ** 0.5
    hidden = torch.zeros(len(rows), k.shape[2], dtype=torch.bool, device=k.device)
    if causal:
        position = rows + (k.shape[2] - q.shape[2])
        hidden = torch.arange(k.shape[2], device=k.device)[None, :] > position[:, None]
    # The projection is the same for scores that are shifted; hidden ones lie below any threshold.
    scores = scores - scores.masked_fill(hidden, -torch.inf).amax(-1, keepdim=True).clamp(min=-1e300).detach()
    scores = scores.masked_fill(hidden, -2.0)
    ordered = scores.sort(-1, descending=True).values
    number = torch.arange(1, k.shape[2] + 1, dtype=scores.dtype, device=k.device)
    sums = ordered.cumsum(-1) - 1
    support = (number * ordered > sums).sum(-1, keepdim=True)
    threshold = sums.gather(-1, support - 1) / support
    weights = (scores - threshold).clamp(min=0).masked_fill(hidden, 0.0)
    return torch.einsum("bhij,bhje->bhie", weights, v)


DEFINITION = Definition(
    name="sparsemax",
    title="Sparsemax attention",
    formula="o_i = Σ_j max(s_ij − τ_i, 0) v_j,  τ_i such that the weights sum to one;  causal: j ≤ i",
    source="arXiv:1602.02068, algorithm 1; in attention: arXiv:1909.00015, section 3",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="sparsemax/chunked",
)
