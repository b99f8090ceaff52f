"""Two levels: the own block exactly, every other block through its mean."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition, Parameter
from variants.problem import Problem
from variants.requirement import Limit

SELF_ATTENTION = Limit(lambda problem: problem.tokens == problem.kv_tokens, "needs tokens = kv_tokens")


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
    block: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """One dense softmax in which a key of another block has the logit of that block's mean.

    Raises `ValueError` for tokens != kv_tokens.
    """
    if q.shape[2] != k.shape[2]:
        raise ValueError(SELF_ATTENTION.reason)
    key = torch.arange(k.shape[2], device=k.device)
    means = k.clone()
    for index in (key // block).unique():
        members = key // block == index
        means[:, :, members] = k[:, :, members].mean(2, keepdim=True)
    exact, coarse = (torch.einsum("bhid,bhjd->bhij", q[:, :, rows], x) for x in (k, means))
    logits = torch.where(rows[:, None] // block == key[None, :] // block, exact, coarse) / q.shape[3] ** 0.5
    if causal:
        logits = logits.masked_fill(key[None, :] > rows[:, None], -torch.inf)
    return torch.einsum("bhij,bhje->bhie", torch.softmax(logits, -1), v)


def visible_pairs(problem: Problem, *, block: int) -> int:
    """The tokens of the own block and one summary of each other block; causal, those before."""
    count = 0
    blocks = -(-problem.tokens // block)
    for own in range(blocks):
        size = min(block, problem.tokens - own * block)
        count += size * own + size * (size + 1) // 2 if problem.causal else size * (size + blocks - 1)
    return count


DEFINITION = Definition(
    name="two_level",
    title="Two levels: blocks and their summaries",
    formula=(
        "o_i = [Σ_{own block} e^{s_ij} v_j + Σ_{other blocks b} g_b e^{q_i·k̄_b/√d} v̄_b] / [the same with v → 1], "
        "g_b tokens with means k̄_b and v̄_b;  causal: j ≤ i, and blocks before the own one"
    ),
    source="this project's definition; near and block-mean keys as in arXiv:2107.11906, one level of them",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="two_level/joint",
    parameters=(Parameter("block", 64, 1, 1 << 16, "tokens of a block; about √N costs least"),),
)
