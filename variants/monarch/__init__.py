"""Monarch attention: two block-diagonal factors of softmax attention, fitted by turns."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.nn import functional

from variants.definition import Definition, Parameter
from variants.problem import Problem
from variants.requirement import Limit

ENCODERS_ONLY = Limit(lambda problem: not problem.causal, "no causal form: the fit of each factor mixes all tokens")
SELF_ATTENTION = Limit(lambda problem: problem.tokens == problem.kv_tokens, "needs tokens = kv_tokens")
EPSILON = 1e-12


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
    block: int,
    steps: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """The two factors after so many steps, then their product as a dense matrix.

    Raises `ValueError` for a causal mask or tokens != kv_tokens, which the method does not have.
    """
    tokens = k.shape[2]
    if causal or q.shape[2] != tokens:
        raise ValueError(ENCODERS_ONLY.reason if causal else SELF_ATTENTION.reason)
    blocks = -(-tokens // block)
    # m and j number blocks of keys and queries, i and b the places within them.
    query, key = (functional.pad(x, (0, 0, 0, -tokens % block)).unflatten(2, (blocks, block)) for x in (q, k))
    real = torch.arange(blocks * block, device=q.device).view(blocks, block) < tokens
    means, right, left = query, torch.empty(0), torch.empty(0)
    for _ in range(steps):
        scores = torch.einsum("zhmbd,zhmid->zhmbi", means, key) / q.shape[3] ** 0.5
        logs = scores.masked_fill(~real[:, None, :], -torch.inf).log_softmax(-1)
        right = logs.exp()
        entropy = (right * logs.masked_fill(~real[:, None, :], 0.0)).sum(-1)
        targets = torch.einsum("zhmbi,zhmid->zhmbd", right, key) / q.shape[3] ** 0.5
        left = (torch.einsum("zhmbd,zhjbd->zhbmj", targets, query) - entropy.mT[..., None]).softmax(-2)
        left = left * real.mT[:, None, :]
        mass = left.sum(-1).mT[..., None]
        means = torch.einsum("zhbmj,zhjbd->zhmbd", left, query) / (mass + EPSILON)
    if not tokens:
        return torch.einsum("zhid,zhjd,zhje->zhie", q[:, :, rows], k, v)
    chosen = left[:, :, rows % block, :, rows // block]  # indexing apart puts the rows first
    weights = torch.einsum("rzhm,zhmri->zhrmi", chosen, right[:, :, :, rows % block])
    return torch.einsum("zhrn,zhne->zhre", weights.flatten(3)[..., :tokens], v)


def visible_pairs(problem: Problem, *, block: int, steps: int) -> int:
    """In every step each token meets the tokens of its block, and its place in every block."""
    return steps * problem.tokens * (min(block, problem.tokens) + -(-problem.tokens // block))


DEFINITION = Definition(
    name="monarch",
    title="Monarch attention",
    formula=(
        "o_jb = Σ_m L_bmj Σ_i R_mbi v_mi, token n = (block, place);  T times R_mbi = softmax_i(ā_mb·k_mi/√d), "
        "L_bmj = softmax_m(Σ_i R_mbi (k_mi·q_jb/√d − log R_mbi)), ā_mb = Σ_j L_bmj q_jb / (Σ_j L_bmj + 10⁻¹²), "
        "at first q_mb"
    ),
    source="arXiv:2505.18698, section 3 and algorithm 1; padding and 10⁻¹² as in the authors' code",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="monarch/alternating",
    parameters=(
        Parameter("block", 64, 1, 1 << 16, "tokens of a block; about √N costs least"),
        Parameter("steps", 2, 1, 64, "times that each factor is fitted"),
    ),
)
