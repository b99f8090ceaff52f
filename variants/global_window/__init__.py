"""A window with global tokens: the first few see all and are seen by all."""

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
    window: int,
    global_tokens: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """Dense softmax over window, global columns and global rows; a row that sees no key is zero."""
    scores = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) / q.shape[-1] ** 0.5
    position = (rows + (k.shape[2] - q.shape[2]))[:, None]
    key = torch.arange(k.shape[2], device=k.device)[None, :]
    near = (position - key < window) if causal else ((position - key).abs() <= window // 2)
    is_global = ((position >= 0) & (position < global_tokens)) | (key < global_tokens)
    seen = near | is_global
    if causal:
        seen = seen & (key <= position)
    scores = scores.masked_fill(~seen, -torch.inf)
    top = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min) if k.shape[2] else scores
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True)
    return torch.einsum("bhij,bhje->bhie", weights, v) / torch.where(total > 0, total, 1.0)


def visible_pairs(problem: Problem, *, window: int, global_tokens: int) -> int:
    """Whole rows of global queries; the window and the global keys outside it of the others."""
    before, after = (window - 1, 0) if problem.causal else (window // 2, window // 2)
    keys = problem.kv_tokens
    seen_by_all = min(global_tokens, keys)
    count = 0
    for position in range(problem.offset, problem.offset + problem.tokens):
        if problem.causal and position < 0:
            continue
        if 0 <= position < global_tokens:
            count += min(keys, position + 1) if problem.causal else keys
            continue
        first = min(max(0, position - before), keys)
        last = max(first, min(keys, position + after + 1))
        count += last - first + min(seen_by_all, first) + max(0, seen_by_all - last)
    return count


DEFINITION = Definition(
    name="global_window",
    title="Window with global tokens (Longformer)",
    formula=(
        "softmax over |i − j| ≤ W/2 (causal: W keys up to i) or j < g or 0 ≤ i < g, i counted from the last key back"
    ),
    source="arXiv:2004.05150, section 3.1; the first g tokens are the global ones",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="global_window/merged",
    parameters=(
        Parameter("window", 256, 1, 1 << 24, "keys in reach; causal counts the query's own"),
        Parameter("global_tokens", 16, 0, 1 << 16, "first tokens, which see all and are seen by all"),
    ),
)
