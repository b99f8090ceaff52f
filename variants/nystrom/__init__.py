"""Nyströmformer: attention through landmarks, with an iterated pseudo-inverse between them."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition, Parameter
from variants.problem import Problem
from variants.requirement import Limit

ENCODERS_ONLY = Limit(lambda problem: not problem.causal, "no causal form: a landmark is a mean over its segment")
SELF_ATTENTION = Limit(lambda problem: problem.tokens == problem.kv_tokens, "needs tokens = kv_tokens")


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
    landmarks: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """The three softmax matrices and the six steps of the pseudo-inverse, densely.

    Raises `ValueError` for a causal mask or tokens != kv_tokens, which the method does not have.
    """
    tokens = k.shape[2]
    if causal or q.shape[2] != tokens:
        raise ValueError(ENCODERS_ONLY.reason if causal else SELF_ATTENTION.reason)
    count = min(landmarks, tokens)
    averages = torch.zeros(count, tokens, dtype=q.dtype, device=q.device)
    start = 0
    for index in range(count):
        size = tokens // count + (index < tokens % count)
        averages[index, start : start + size] = 1 / size
        start += size
    short_q, short_k = (torch.einsum("mj,bhjd->bhmd", averages, x) for x in (q, k))

    def weights(a: Tensor, b: Tensor) -> Tensor:
        return torch.softmax(torch.einsum("bhid,bhjd->bhij", a, b) / q.shape[-1] ** 0.5, dim=-1)

    inner = weights(short_q, short_k)
    # Equation 13 takes both norms of each matrix; all rows of a softmax sum to one.
    scale = inner.sum(-2).amax(-1) * inner.sum(-1).amax(-1) if tokens else inner.sum((-2, -1))
    inverse = inner.mT / scale[..., None, None]
    eye = torch.eye(count, dtype=q.dtype, device=q.device)
    for _ in range(6):
        product = inner @ inverse
        inverse = inverse @ (13 * eye - product @ (15 * eye - product @ (7 * eye - product))) / 4
    return weights(q[:, :, rows], short_k) @ (inverse @ (weights(short_q, k) @ v))


def visible_pairs(problem: Problem, *, landmarks: int) -> int:
    """Each query meets every landmark key, and each key every landmark query."""
    return 2 * problem.tokens * min(landmarks, problem.tokens)


def flops_per_head(problem: Problem, *, landmarks: int) -> int:
    """4 d for each such pair, and between landmarks the scores, 24 products of six steps and Z's with the values."""
    count = min(landmarks, problem.tokens)
    pairs = 4 * problem.head_dim * visible_pairs(problem, landmarks=landmarks)
    return pairs + 2 * count**2 * (2 * problem.head_dim + 24 * count)


DEFINITION = Definition(
    name="nystrom",
    title="Nyströmformer",
    formula=(
        "softmax(QK̃ᵀ/√d) · Z · softmax(Q̃Kᵀ/√d) V;  Q̃, K̃: means of m segments, the first N mod m one token longer;  "
        "Z ← ¼Z(13I − AZ(15I − AZ(7I − AZ))) six times from Aᵀ/(‖A‖₁‖A‖∞), A = softmax(Q̃K̃ᵀ/√d)"
    ),
    source="arXiv:2102.03902, section 3 and equation 11; the scale of each head and item its own",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="nystrom/landmarks",
    parameters=(Parameter("landmarks", 64, 1, 1 << 12, "segments; as many as tokens where those are fewer"),),
    normalised=False,
    flops_per_head=flops_per_head,
)
