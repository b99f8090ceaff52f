"""Blockwise low-rank attention: near blocks exactly, each far block through the means of its segments."""

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
    rank: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """One dense softmax in which a far key's logit is that of its segment's mean.

    A segment of g tokens then contributes g e^{q·mean(k)/√d} mean(v), as the formula says.
    """
    keys = k.shape[2]
    segment = torch.arange(keys, device=k.device) // (block // rank)
    means = k.clone()
    for index in segment.unique():
        members = segment == index
        means[:, :, members] = k[:, :, members].mean(2, keepdim=True)
    position = rows + (keys - q.shape[2])
    blocks_apart = position[:, None] // block - torch.arange(keys, device=k.device)[None, :] // block
    exact = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k)
    coarse = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], means)
    logits = torch.where(blocks_apart.abs() <= 1, exact, coarse) / q.shape[3] ** 0.5
    if causal:
        logits = logits.masked_fill(torch.arange(keys, device=k.device)[None, :] > position[:, None], -torch.inf)
    top = logits.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).min) if keys else logits
    weights = torch.exp(logits - top)
    total = weights.sum(-1, keepdim=True)
    return torch.einsum("bhij,bhje->bhie", weights, v) / torch.where(total > 0, total, 1.0)


def visible_pairs(problem: Problem, *, block: int, rank: int) -> int:
    """Near tokens and far segments, summed over the queries."""
    segment = block // rank
    count = 0
    for own, rows in _rows_by_block(problem, block):
        first = max(0, own - 1) * block
        if problem.causal:
            last = min(problem.kv_tokens, own * block)
            count += sum(max(0, position + 1 - first) for position in rows) + len(rows) * (first // segment)
        else:
            last = min(problem.kv_tokens, max(0, own + 2) * block)
            count += len(rows) * (max(0, last - first) + first // segment)
            count += len(rows) * -(-(problem.kv_tokens - last) // segment)
    return count


def _rows_by_block(problem: Problem, block: int) -> list[tuple[int, range]]:
    """Blocks that hold query positions, with those positions; queries before the first key are left out."""
    first = problem.offset if not problem.causal else max(0, problem.offset)
    stop = problem.offset + problem.tokens
    return [
        (own, range(max(first, own * block), min(stop, (own + 1) * block)))
        for own in range(first // block, -(-stop // block))
    ]


def unequal_segments(*, block: int, rank: int) -> str | None:
    """Why the two parameters do not go together, or None."""
    return f"rank must divide block: {rank} does not divide {block}" if block % rank else None


DEFINITION = Definition(
    name="blockwise_low_rank",
    title="Blockwise low-rank attention",
    formula=(
        "o_i = [Σ_near e^{s_ij} v_j + Σ_far a g_a e^{q_i·k̄_a/√d} v̄_a] / [the same with v → 1];  "
        "near: blocks at most one apart; far: r segments a block, by their means"
    ),
    source="this project's definition; landmarks by segment means as in arXiv:2102.03902, section 3.2",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="blockwise_low_rank/merged",
    parameters=(
        Parameter("block", 128, 1, 1 << 20, "tokens of a block; neighbouring blocks are exact"),
        Parameter("rank", 4, 1, 1 << 20, "segments, and so the rank, of a far block; divides block"),
    ),
    constraint=unequal_segments,
)
