"""1.5-entmax attention: between softmax and sparsemax, with weights that reach zero smoothly."""

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
    """max(s/2 - tau, 0)^2, tau from the sorted scores (algorithm 2); a row that sees no key is zero."""
    if not k.shape[2]:
        return torch.einsum("bhid,bhjd,bhje->bhie", q[:, :, rows], k, v)
    half = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) / (2 * q.shape[-1] ** 0.5)
    hidden = torch.zeros(len(rows), k.shape[2], dtype=torch.bool, device=k.device)
    if causal:
        position = rows + (k.shape[2] - q.shape[2])
        hidden = torch.arange(k.shape[2], device=k.device)[None, :] > position[:, None]
    # Scores may be shifted; what lies one below the largest has no weight, so that -2 may stand for the hidden.
    half = half - half.masked_fill(hidden, -torch.inf).amax(-1, keepdim=True).clamp(min=-1e300).detach()
    half = half.clamp(min=-2.0).masked_fill(hidden, -2.0)
    ordered = half.sort(-1, descending=True).values
    number = torch.arange(1, k.shape[2] + 1, dtype=half.dtype, device=k.device)
    mean = ordered.cumsum(-1) / number
    spread = (ordered**2).cumsum(-1) - number * mean**2
    candidates = mean - ((1 - spread) / number).clamp(min=1e-300).sqrt()
    support = (candidates <= ordered).sum(-1, keepdim=True)
    weights = (half - candidates.gather(-1, support - 1)).clamp(min=0).square().masked_fill(hidden, 0.0)
    return torch.einsum("bhij,bhje->bhie", weights, v)


DEFINITION = Definition(
    name="entmax15",
    title="1.5-entmax attention",
    formula="o_i = Σ_j max(s_ij/2 − τ_i, 0)² v_j,  τ_i such that the weights sum to one;  causal: j ≤ i",
    source="arXiv:1905.05702, section 3.2 and algorithm 2; in attention: arXiv:1909.00015, section 3",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="entmax15/chunked",
)
