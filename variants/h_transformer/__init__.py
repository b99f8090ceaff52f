"""H-Transformer-1D: the farther apart a query and a key, the longer the stretches whose means stand for both."""

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
    half_block: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """One dense softmax whose logit of a pair is that of what stands for both at the pair's level.

    Raises `ValueError` for tokens != kv_tokens, for which the hierarchy is not defined.
    """
    if q.shape[2] != k.shape[2]:
        raise ValueError(SELF_ATTENTION.reason)
    key = torch.arange(k.shape[2], device=k.device)
    logits = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k)
    stretch, block = 1, 2 * half_block
    while True:
        beyond = (rows[:, None] // block - key[None, :] // block).abs() > 1
        if not bool(beyond.any()):
            break
        stretch, block = 2 * stretch, 2 * block
        group = key // stretch
        size = torch.bincount(group).double()[:, None]
        groups = torch.zeros(*k.shape[:2], len(size), k.shape[3], dtype=k.dtype, device=k.device)
        short_k = groups.index_add(2, group, k) / size
        short_q = q[:, :, ::stretch] if causal else groups.index_add(2, group, q) / size
        coarse = torch.einsum("bhid,bhjd->bhij", short_q[:, :, group[rows]], short_k[:, :, group])
        logits = torch.where(beyond, coarse, logits)
    logits = logits / q.shape[3] ** 0.5
    if causal:
        logits = logits.masked_fill(key[None, :] > rows[:, None], -torch.inf)
    return torch.einsum("bhij,bhje->bhie", torch.softmax(logits, -1), v)


def visible_pairs(problem: Problem, *, half_block: int) -> int:
    """Near pairs of tokens, and at each level pairs of stretches: what the products of the hierarchy hold."""
    length, causal = problem.tokens, problem.causal
    block, count = 2 * half_block, 0
    for first in range(0, length, block):
        own = min(block, length - first)
        before, after = min(first, block), min(block, max(0, length - first - block))
        count += own * before + (own * (own + 1) // 2 if causal else own * (own + after))
    while length > 2 * block:
        length = -(-length // 2)
        parts = [min(half_block, length - first) for first in range(0, length, half_block)]
        for own, size in enumerate(parts):
            neighbours = range(max(0, own // 2 * 2 - 2), min(len(parts), own // 2 * 2 + 4))
            far = [part for part in neighbours if abs(part - own) > 1 and (part < own or not causal)]
            count += size * sum(parts[part] for part in far)
    return count


DEFINITION = Definition(
    name="h_transformer",
    title="H-Transformer-1D",
    formula=(
        "o_i = Σ_j w_ij v_j / Σ_j w_ij,  w_ij = e^{q̃_i·k̃_j/√d},  q̃ and k̃ the means over the stretches of 2^l tokens "
        "that hold i and j;  l: the lowest level whose blocks, of 2h·2^l tokens, of i and j are at most one apart;  "
        "causal: q̃ is the first query of its stretch"
    ),
    source=(
        "arXiv:2107.11906, N_r = 2h; causal queries sampled as in its authors' code; "
        "a last, shorter stretch by the mean of its tokens"
    ),
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="h_transformer/merged",
    parameters=(
        Parameter("half_block", 32, 1, 1 << 20, "half of the block size N_r; blocks of 2h at most one apart are exact"),
    ),
)
