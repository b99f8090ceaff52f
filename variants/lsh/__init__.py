"""Locality-sensitive hashing (Reformer): a query sees keys that a random rotation puts into its own bucket."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition, Parameter
from variants.problem import Problem

SEED = 2001_04451


def bucket_count(kv_tokens: int, chunk: int) -> int:
    """Buckets of a round, of half a chunk each where they are even; always an even number."""
    return 2 * max(1, -(-kv_tokens // chunk))


def rotations(rounds: int, head_dim: int, buckets: int) -> Float64[Tensor, "rounds head_dim half"]:
    """The frozen N(0,1) rotations onto half as many directions as there are buckets, the same for every head."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(rounds, head_dim, buckets // 2, generator=generator, dtype=torch.float64)


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
    chunk: int,
    rounds: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """Dense softmax over the union of what the rounds let a query see; a row that sees no key is zero."""
    keys = k.shape[2]
    position = rows + (keys - q.shape[2])
    place = torch.arange(keys, device=k.device)
    earlier = place[None, :] <= position[:, None]
    seen = torch.zeros(*q.shape[:2], len(rows), keys, dtype=torch.bool, device=q.device)
    for rotation in rotations(rounds, q.shape[3], bucket_count(keys, chunk)).to(q.device):
        turned = (torch.einsum("bhnd,dm->bhnm", x, rotation) for x in (q[:, :, rows], k))
        of_query, of_key = (torch.cat((x, -x), -1).argmax(-1) for x in turned)
        ordered = of_key.sort(dim=-1, stable=True)
        rank = ordered.indices.argsort(-1) - torch.searchsorted(ordered.values, of_key)
        shared = of_query[..., :, None] == of_key[..., None, :]
        last = ((shared & earlier).sum(-1) - 1).clamp(min=0)
        apart = last[..., None] // chunk - rank[..., None, :] // chunk
        seen |= shared & ((apart == 0) | (apart == 1))
    if causal:
        seen &= earlier
    seen |= ~seen.any(-1, keepdim=True) & (place[None, :] == position[:, None])
    scores = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~seen, -torch.inf)
    top = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min) if keys else scores
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True)
    return torch.einsum("bhij,bhje->bhie", weights, v) / torch.where(total > 0, total, 1.0)


def visible_pairs(problem: Problem, *, chunk: int, rounds: int) -> int:
    """Keys of the query's own buckets where all are even, one at least; what hashing costs is left out."""
    buckets = bucket_count(problem.kv_tokens, chunk)
    if not problem.kv_tokens:
        return 0
    if not problem.causal:
        return problem.tokens * min(problem.kv_tokens, max(1, rounds * problem.kv_tokens // buckets))
    positions = range(max(0, problem.offset), problem.offset + problem.tokens)
    return sum(min(i + 1, max(1, rounds * (i + 1) // buckets)) for i in positions)


DEFINITION = Definition(
    name="lsh",
    title="LSH attention (Reformer)",
    formula=(
        "softmax over ∪_r {j : h_r(k_j) = h_r(q_i), j in the chunk of i or the one before}, a pair of several rounds "
        "counted once; h_r(x) = argmax[xR_r; −xR_r] over 2⌈N/m⌉ buckets, R_r frozen;  the keys of a bucket lie in "
        "chunks of m in order of position, and i stands with the last of them at or before it;  causal: j ≤ i;  "
        "where nothing is seen, the own key"
    ),
    source=(
        "arXiv:2001.04451, section 2 and appendix A (log N_ij: once each). Here q and k are apart, hashed by the same "
        "rotations, and the own key has no penalty; chunks are cut within each bucket rather than across the sorted "
        "sequence, so that no later token decides what an earlier query sees"
    ),
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="lsh/sorted",
    parameters=(
        Parameter("chunk", 64, 1, 1 << 20, "keys of a chunk, twice those of an even bucket"),
        Parameter("rounds", 4, 1, 64, "rounds of hashing"),
    ),
)
