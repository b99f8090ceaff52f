"""Top-k attention: each query keeps the k keys with the largest scores."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition, Parameter
from variants.problem import Problem


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
    kept: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """Dense softmax over the first `kept` keys in order of score; a row that sees no key is zero.

    The sort is stable, so that of equal scores the earlier key comes first.
    """
    scores = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) / q.shape[-1] ** 0.5
    if causal:
        position = rows + (k.shape[2] - q.shape[2])
        hidden = torch.arange(k.shape[2], device=k.device)[None, :] > position[:, None]
        scores = scores.masked_fill(hidden, -torch.inf)
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    dropped = torch.ones_like(scores, dtype=torch.bool).scatter(-1, order[..., :kept], value=False)
    scores = scores.masked_fill(dropped, -torch.inf)
    top = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min) if k.shape[2] else scores
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True)
    return torch.einsum("bhij,bhje->bhie", weights, v) / torch.where(total > 0, total, 1.0)


def scored_pairs(problem: Problem) -> int:
    """Pairs whose score has to be known: all that the mask lets through."""
    if not problem.causal:
        return problem.tokens * problem.kv_tokens
    positions = range(max(0, problem.offset), problem.offset + problem.tokens)
    return sum(position + 1 for position in positions)


def visible_pairs(problem: Problem, *, kept: int) -> int:
    """Kept keys, or all that the mask lets through where they are fewer."""
    if not problem.causal:
        return problem.tokens * min(kept, problem.kv_tokens)
    positions = range(max(0, problem.offset), problem.offset + problem.tokens)
    return sum(min(kept, position + 1) for position in positions)


def flops_per_head(problem: Problem, *, kept: int) -> int:
    """2 d for each score, and 2 d for each kept value."""
    return 2 * problem.head_dim * (scored_pairs(problem) + visible_pairs(problem, kept=kept))


DEFINITION = Definition(
    name="top_k",
    title="Top-k attention",
    formula="softmax over the k keys j with the largest s_ij; of equal scores the earlier key",
    source="arXiv:1912.11637, section 3; arXiv:2106.06899, section 2",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="top_k/chunked",
    parameters=(Parameter("kept", 64, 1, 1 << 20, "keys that a query keeps"),),
    flops_per_head=flops_per_head,
)
