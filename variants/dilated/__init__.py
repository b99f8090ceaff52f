"""Dilated attention (LongNet): ever longer segments of ever fewer rows, mixed by their softmax denominators."""

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
    segment: int,
    levels: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """A dense softmax in which a pair counts once for each level that holds it.

    Mixing outputs in the proportion of their denominators is dividing the sum of their numerators
    by the sum of their denominators. Raises `ValueError` for tokens != kv_tokens.
    """
    if q.shape[2] != k.shape[2]:
        raise ValueError(SELF_ATTENTION.reason)
    head = torch.arange(q.shape[1], device=q.device)[:, None, None]
    query, key = rows[:, None], torch.arange(k.shape[2], device=k.device)[None, :]
    times = torch.zeros(q.shape[1], len(rows), k.shape[2], dtype=q.dtype, device=q.device)
    for level in range(levels):
        rate = 2**level
        chosen = (query % rate == head % rate) & (key % rate == head % rate)
        times += chosen & (query // (segment * rate) == key // (segment * rate))
    if causal:
        times = times.masked_fill(key > query, 0.0)
    scores = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) / q.shape[-1] ** 0.5
    return torch.einsum("bhij,bhje->bhie", (scores + times.log()).softmax(-1), v)


def visible_pairs(problem: Problem, *, segment: int, levels: int) -> int:
    """Pairs of all levels, those of several levels counted as often; the mean over the heads, rounded down."""
    count = 0
    for head in range(problem.heads):
        for level in range(levels):
            # A segment of w rows holds w / r of each residue: always `segment`.
            whole, rest = divmod(len(range(head % 2**level, problem.tokens, 2**level)), segment)
            squares = (segment, whole), (rest, 1)
            count += sum(n * (size * (size + 1) // 2 if problem.causal else size * size) for size, n in squares)
    return count // problem.heads


DEFINITION = Definition(
    name="dilated",
    title="Dilated attention (LongNet)",
    formula=(
        "Σ_l Σ_{j ∈ M_l} e^{s_ij} v_j / Σ_l Σ_{j ∈ M_l} e^{s_ij};  M_l: i and j in one segment of w·2^l tokens, "
        "both ≡ h (mod 2^l), h the head;  causal: j ≤ i"
    ),
    source="arXiv:2307.02486, sections 2.2 and 2.3; the gradient goes through the mixing weights too",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="dilated/merged",
    parameters=(
        Parameter("segment", 256, 1, 1 << 20, "tokens of a segment of the lowest level, all of which it holds"),
        Parameter("levels", 5, 1, 20, "from level to level segments are twice as long and rows twice as rare"),
    ),
)
