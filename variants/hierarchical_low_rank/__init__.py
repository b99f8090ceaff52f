"""Hierarchical blockwise low-rank attention: the farther a key, the longer the segment whose mean stands for it."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.blockwise_low_rank import unequal_segments
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
    """One dense softmax in which a key that is far at level l, but not above, has the logit of its segment's mean."""
    keys = k.shape[2]
    key = torch.arange(keys, device=k.device)
    position = (rows + (keys - q.shape[2]))[:, None]
    logits = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k)
    size = block
    while True:
        far = (position // size - key[None, :] // size).abs() > 1
        if not bool(far.any()):
            break
        means = k.clone()
        segment = key // (size // rank)
        for index in segment.unique():
            members = segment == index
            means[:, :, members] = k[:, :, members].mean(2, keepdim=True)
        logits = torch.where(far, torch.einsum("bhid,bhjd->bhij", q[:, :, rows], means), logits)
        size *= 2
    logits = logits / q.shape[3] ** 0.5
    if causal:
        logits = logits.masked_fill(key[None, :] > position, -torch.inf)
    top = logits.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).min) if keys else logits
    weights = torch.exp(logits - top)
    total = weights.sum(-1, keepdim=True)
    return torch.einsum("bhij,bhje->bhie", weights, v) / torch.where(total > 0, total, 1.0)


def visible_pairs(problem: Problem, *, block: int, rank: int) -> int:
    """Near tokens, and the far segments of every level, summed over the queries."""
    count = 0
    first = max(0, problem.offset) if problem.causal else problem.offset
    stop = problem.offset + problem.tokens
    for own in range(first // block, -(-stop // block)):
        rows = range(max(first, own * block), min(stop, (own + 1) * block))
        before = max(0, own - 1) * block
        if problem.causal:
            count += sum(max(0, position + 1 - before) for position in rows)
        else:
            count += len(rows) * max(0, min(problem.kv_tokens, (own + 2) * block) - before)
        count += len(rows) * _far_segments(problem, block, rank, own)
    return count


def _far_segments(problem: Problem, block: int, rank: int, own: int) -> int:
    """Segments of all levels that stand for the keys far from one block of queries."""
    count, size = 0, block
    near = max(0, (own - 1) * block), max(0, (own + 2) * block)
    while near[0] > 0 or (near[1] < problem.kv_tokens and not problem.causal):
        above = own * block // (2 * size)
        reach = max(0, (above - 1) * 2 * size), max(0, (above + 2) * 2 * size)
        count += len(range(reach[0], min(near[0], problem.kv_tokens), size // rank))
        if not problem.causal:
            count += len(range(near[1], min(reach[1], problem.kv_tokens), size // rank))
        size, near = 2 * size, reach
    return count


DEFINITION = Definition(
    name="hierarchical_low_rank",
    title="Hierarchical blockwise low-rank attention",
    formula=(
        "o_i = [Σ_near e^{s_ij} v_j + Σ_l Σ_{a far at l} g_a e^{q_i·k̄_a/√d} v̄_a] / [the same with v → 1];  "
        "blocks of level l hold B·2^l tokens; near: blocks of level 0 at most one apart; a: the r segments, by their "
        "means, of each block of level l that is more than one apart while its parent is not"
    ),
    source="this project's definition; levels as in arXiv:2107.11906, section 4",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="hierarchical_low_rank/merged",
    parameters=(
        Parameter("block", 128, 1, 1 << 20, "tokens of a block of the lowest level; neighbouring blocks are exact"),
        Parameter("rank", 4, 1, 1 << 20, "segments, and so the rank, of a far block of any level; divides block"),
    ),
    constraint=unequal_segments,
)
