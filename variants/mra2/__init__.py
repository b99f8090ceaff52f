"""MRA-2: attention by block means, but for the blocks of the matrix with the largest of them, which are exact."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition, Parameter
from variants.problem import Problem
from variants.requirement import Limit

ENCODERS_ONLY = Limit(lambda problem: not problem.causal, "no causal form: a block's mean holds later tokens")


def refined_blocks(rows: int, columns: int, refined: int) -> int:
    """How many blocks of the matrix are exact: `refined` for each row of blocks on average, or all."""
    return min(rows * refined, rows * columns)


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
    block: int,
    refined: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """One dense softmax of exact logits in the refined blocks and block-mean logits in the others.

    Raises `ValueError` for a causal mask, which the paper does not define.
    """
    if causal:
        raise ValueError(ENCODERS_ONLY.reason)
    if not q.shape[2] or not k.shape[2]:
        return torch.einsum("bhid,bhjd,bhje->bhie", q[:, :, rows], k, v)
    homes = [torch.arange(x.shape[2], device=x.device) // block for x in (q, k)]
    means = []
    for x, home in zip((q, k), homes, strict=True):
        size = torch.bincount(home).double()
        empty = torch.zeros(*x.shape[:2], len(size), x.shape[3], dtype=x.dtype, device=x.device)
        means.append(empty.index_add(2, home, x) / size[:, None])
    coarse = torch.einsum("bhxd,bhyd->bhxy", *means) / q.shape[3] ** 0.5
    rank = ((coarse - coarse.amax(-1, keepdim=True)).detach() * 2**20).round().flatten(2)
    order = rank.argsort(dim=-1, descending=True, stable=True)
    exact = torch.zeros_like(rank, dtype=torch.bool)
    exact.scatter_(2, order[:, :, : refined_blocks(coarse.shape[2], coarse.shape[3], refined)], True)
    exact, coarse = (x[:, :, homes[0][rows]][..., homes[1]] for x in (exact.view(coarse.shape), coarse))
    logits = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) / q.shape[3] ** 0.5
    return torch.einsum("bhij,bhje->bhie", torch.softmax(torch.where(exact, logits, coarse), -1), v)


def visible_pairs(problem: Problem, *, block: int, refined: int) -> int:
    """Tokens of the refined blocks, as if all blocks were whole or alike cut, and each other block one pair."""
    if not problem.tokens or not problem.kv_tokens:
        return 0
    rows, columns = (-(-tokens // block) for tokens in (problem.tokens, problem.kv_tokens))
    exact = refined_blocks(rows, columns, refined)
    return exact * problem.tokens * problem.kv_tokens // (rows * columns) + rows * columns - exact


DEFINITION = Definition(
    name="mra2",
    title="Multi-resolution analysis attention (MRA-2)",
    formula=(
        "softmax over all j of s_ij in the refined blocks of the matrix and of q̄_x·k̄_y/√d elsewhere, x and y the "
        "blocks of i and j, q̄ and k̄ their means;  refined: the r for each block of queries on average with the "
        "largest q̄_x·k̄_y/√d − max_y' q̄_x·k̄_y'/√d, to multiples of 2⁻²⁰, of equal ones the earlier, rows first"
    ),
    source="arXiv:2207.10284; the row's largest taken off before the ranking as in its authors' code",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="mra2/refined",
    parameters=(
        Parameter("block", 32, 1, 1 << 20, "tokens of a block"),
        Parameter("refined", 4, 1, 1 << 16, "exact blocks for each block of queries, on average over a head"),
    ),
)
