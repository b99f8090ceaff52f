"""Softmax with a learned sink: one more logit of the head's own, which takes weight and gives no value."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition
from variants.full import visible_pairs

SEED = 2508_10925


def sink_logits(heads: int) -> Float64[Tensor, " heads"]:
    """The logit of each head, in place of a learned one: from N(0, 1)."""
    return torch.randn(heads, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """e^s / (e^c_h + sum of e^s), densely; a row that sees no key is zero."""
    scores = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) / q.shape[-1] ** 0.5
    if causal:
        position = rows + (k.shape[2] - q.shape[2])
        hidden = torch.arange(k.shape[2], device=k.device)[None, :] > position[:, None]
        scores = scores.masked_fill(hidden, -torch.inf)
    sink = sink_logits(q.shape[1]).to(q.device)[None, :, None, None]
    top = torch.maximum(scores.amax(-1, keepdim=True), sink) if k.shape[2] else sink
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True) + torch.exp(sink - top)
    return torch.einsum("bhij,bhje->bhie", weights / total, v)


DEFINITION = Definition(
    name="learned_sink",
    title="Softmax with a learned sink",
    formula="o_i = Σ_j e^{s_ij} v_j / (e^{c_h} + Σ_j e^{s_ij}),  c_h frozen, from N(0, 1);  causal: j ≤ i",
    source="a learned logit per head: arXiv:2508.10925 (gpt-oss); with c = 0: arXiv:2309.17453, section 3.3",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="learned_sink/fused",
    normalised=False,
)
