"""Local-window attention: each query sees the keys near its own position."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition, Parameter
from variants.problem import Problem


def reach(window: int, causal: bool) -> tuple[int, int]:
    """How many keys before and after its own position a query sees.

    Causal: the `window` latest keys, its own included (Mistral 7B, section 2). Otherwise
    window/2 on either side of its own (Longformer, section 3.1).
    """
    return (window - 1, 0) if causal else (window // 2, window // 2)


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
    window: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """Dense softmax over the keys within reach; a row that sees no key is zero."""
    scores = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) * q.shape[-1] ** -0.5
    distance = torch.arange(k.shape[2], device=k.device)[None, :] - (rows + k.shape[2] - q.shape[2])[:, None]
    inside = (distance > -window) & (distance <= 0) if causal else distance.abs() <= window // 2
    # The largest visible score, not the largest of all: else a row whose peak is hidden underflows.
    lowest = torch.finfo(scores.dtype).min
    top = torch.where(inside, scores, lowest).amax(-1, keepdim=True) if k.shape[2] else scores
    weights = torch.where(inside, scores - top, -torch.inf).exp()
    total = weights.sum(-1, keepdim=True)
    return torch.einsum("bhij,bhje->bhie", weights / torch.where(total > 0, total, 1.0), v)


def visible_pairs(problem: Problem, *, window: int) -> int:
    """Pairs within reach, those cut off at both ends of the keys left out."""
    before, after = reach(window, problem.causal)
    return sum(
        max(0, min(position + after, problem.kv_tokens - 1) - max(position - before, 0) + 1)
        for position in range(problem.offset, problem.offset + problem.tokens)
    )


DEFINITION = Definition(
    name="local_window",
    title="Local-window attention",
    formula="softmax over i − W < j ≤ i (causal, W keys) or |i − j| ≤ W/2, i counted from the last key back",
    source="arXiv:2004.05150, section 3.1; arXiv:2310.06825, section 2",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="local_window/tiled",
    parameters=(Parameter("window", 256, 1, 1 << 24, "keys in reach; causal counts the query's own"),),
)
