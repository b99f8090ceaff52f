"""A hybrid over the heads: some see every key, the others a window."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition, Parameter
from variants.full import visible_pairs as all_pairs
from variants.local_window import visible_pairs as window_pairs
from variants.problem import Problem


def count_full(heads: int, full_heads: int) -> int:
    """How many heads see every key: so many in a thousand, to the nearest, halves upwards."""
    return (heads * full_heads + 500) // 1000


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
    full_heads: int,
    window: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """Dense softmax with a mask of each head's own; a row that sees no key is zero."""
    distance = torch.arange(k.shape[2], device=k.device)[None, :] - (rows + k.shape[2] - q.shape[2])[:, None]
    near = distance > -window if causal else distance.abs() <= window // 2
    head = torch.arange(q.shape[1], device=q.device)[:, None, None]
    seen = near | (head < count_full(q.shape[1], full_heads))
    if causal:
        seen = seen & (distance <= 0)
    scores = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~seen, -torch.inf)
    weights = torch.softmax(scores, -1).masked_fill(~seen.any(-1, keepdim=True), 0.0)
    return torch.einsum("bhij,bhje->bhie", weights, v)


def visible_pairs(problem: Problem, *, full_heads: int, window: int) -> int:
    """Those of full attention and of the window; the mean over the heads, rounded down."""
    full = count_full(problem.heads, full_heads)
    pairs = full * all_pairs(problem) + (problem.heads - full) * window_pairs(problem, window=window)
    return pairs // problem.heads


DEFINITION = Definition(
    name="hybrid",
    title="Full and window heads",
    formula=(
        "head h < ⌊F·H/1000 + ½⌋: softmax over all keys;  the others: |i − j| ≤ W/2;  "
        "causal: j ≤ i, and of the others i − W < j"
    ),
    source="this project's mixture; full and streaming heads as in arXiv:2410.10819, section 3",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="hybrid/by_heads",
    parameters=(
        Parameter("full_heads", 250, 0, 1000, "heads in a thousand that see every key: the first ones"),
        Parameter("window", 256, 1, 1 << 24, "keys in reach of the others; causal counts the query's own"),
    ),
)
