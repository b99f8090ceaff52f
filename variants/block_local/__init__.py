"""Block-local attention: each query sees its own block of tokens and the neighbouring ones."""

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
    block: int,
    look_back: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """Dense softmax over the keys of the blocks in reach; a row that sees no key is zero."""
    scores = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) / q.shape[-1] ** 0.5
    position = rows + (k.shape[2] - q.shape[2])
    key = torch.arange(k.shape[2], device=k.device)
    blocks_back = torch.div(position, block, rounding_mode="floor")[:, None] - key[None, :] // block
    hidden = blocks_back.abs() > look_back
    if causal:
        hidden = hidden | (key[None, :] > position[:, None])
    scores = scores.masked_fill(hidden, -torch.inf)
    top = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min) if k.shape[2] else scores
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True)
    return torch.einsum("bhij,bhje->bhie", weights, v) / torch.where(total > 0, total, 1.0)


def visible_pairs(problem: Problem, *, block: int, look_back: int) -> int:
    """Keys of the blocks in reach, up to the query's own where causal."""
    count = 0
    for position in range(problem.offset, problem.offset + problem.tokens):
        own = position // block
        first = max(0, (own - look_back) * block)
        last = position + 1 if problem.causal else (own + look_back + 1) * block
        count += max(0, min(last, problem.kv_tokens) - first)
    return count


DEFINITION = Definition(
    name="block_local",
    title="Block-local attention with look-back",
    formula="softmax over |⌊i/B⌋ − ⌊j/B⌋| ≤ L, i counted from the last key back;  causal: j ≤ i",
    source="arXiv:2003.05997, section 4.1; arXiv:1802.05751, section 3.3",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="block_local/tiled",
    parameters=(
        Parameter("block", 128, 1, 1 << 20, "tokens of a block"),
        Parameter("look_back", 1, 0, 1 << 20, "blocks in reach before its own, and after it where not causal"),
    ),
)
