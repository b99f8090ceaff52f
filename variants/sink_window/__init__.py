"""Attention sinks and a window: the first few keys stay visible beside the latest ones."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition, Parameter
from variants.problem import Problem
from variants.requirement import Limit

STREAMS_ONLY = Limit(lambda problem: problem.causal, "causal only: sinks and a window of the past describe a stream")


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
    window: int,
    sinks: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """Dense softmax over the first `sinks` keys and the `window` latest; a row that sees no key is zero.

    Raises `ValueError` without a causal mask, which the paper does not define.
    """
    if not causal:
        raise ValueError(STREAMS_ONLY.reason)
    scores = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) / q.shape[-1] ** 0.5
    age = (rows + (k.shape[2] - q.shape[2]))[:, None] - torch.arange(k.shape[2], device=k.device)[None, :]
    sink = torch.arange(k.shape[2], device=k.device) < sinks
    seen = (age >= 0) & ((age < window) | sink)
    scores = scores.masked_fill(~seen, -torch.inf)
    top = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min) if k.shape[2] else scores
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True)
    return torch.einsum("bhij,bhje->bhie", weights, v) / torch.where(total > 0, total, 1.0)


def visible_pairs(problem: Problem, *, window: int, sinks: int) -> int:
    """Keys of the window, and sinks that have left it."""
    positions = range(max(0, problem.offset), problem.offset + problem.tokens)
    return sum(min(position + 1, window) + min(sinks, max(0, position + 1 - window)) for position in positions)


DEFINITION = Definition(
    name="sink_window",
    title="Attention sinks with a window",
    formula="softmax over j < s or i − W < j ≤ i, i counted from the last key back",
    source="arXiv:2309.17453, section 3.2 (StreamingLLM; four sinks suffice: section 3.1)",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="sink_window/merged",
    parameters=(
        Parameter("window", 256, 1, 1 << 24, "latest keys in reach, the query's own included"),
        Parameter("sinks", 4, 0, 1 << 16, "first keys, always in reach"),
    ),
)
