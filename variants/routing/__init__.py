"""Routing attention: queries and keys that lie nearest to one centroid attend to one another."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition, Parameter
from variants.problem import Problem

SEED = 2003_05997


def cluster_count(kv_tokens: int, members: int) -> int:
    """As many clusters as share out the keys."""
    return -(-kv_tokens // members)


def centroids(clusters: int, head_dim: int) -> Float64[Tensor, "clusters head_dim"]:
    """The frozen centroids, even on the unit sphere, the same for every head."""
    generator = torch.Generator().manual_seed(SEED)
    drawn = torch.randn(clusters, head_dim, generator=generator, dtype=torch.float64)
    norms: Tensor = drawn.norm(dim=-1, keepdim=True)
    return drawn / norms


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
    members: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """Cluster after cluster, or with a causal mask one softmax; rows that no cluster holds or that see no key are zero.

    Sorts are stable, so that of tokens equally near the earlier comes first; of centroids the first.
    """
    tokens, keys = q.shape[2], k.shape[2]
    count = cluster_count(keys, members)
    near_q, near_k = (_nearness(x, count) for x in (q, k))
    scores = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) / q.shape[-1] ** 0.5
    if not count:
        return torch.einsum("bhij,bhje->bhie", scores, v)
    if causal:
        position = rows + (keys - tokens)
        alike = near_q[:, :, rows].argmax(-1)[..., :, None] == near_k.argmax(-1)[..., None, :]
        alike &= torch.arange(keys, device=k.device)[None, :] <= position[:, None]
        newer = alike.flip(-1).cumsum(-1).flip(-1)
        return _softmax_sum(scores.masked_fill(~alike | (newer > members), -torch.inf), v)
    total = torch.zeros(*q.shape[:2], len(rows), v.shape[3], dtype=q.dtype, device=q.device)
    held = torch.zeros(*q.shape[:2], len(rows), 1, dtype=q.dtype, device=q.device)
    for cluster in range(count):
        in_q, in_k = (_nearest(near[..., cluster], -(-near.shape[2] // count)) for near in (near_q, near_k))
        has = in_q[:, :, rows, None]
        total = total + has * _softmax_sum(scores.masked_fill(~in_k[:, :, None], -torch.inf), v)
        held += has
    return total / held.clamp(min=1)


def _nearness(
    x: Float64[Tensor, "batch heads tokens head_dim"], count: int
) -> Float64[Tensor, "batch heads tokens clusters"]:
    """Cosines with the centroids; nought for a vector of zeros."""
    norms = x.norm(dim=-1, keepdim=True)
    return torch.einsum("bhnd,cd->bhnc", x / torch.where(norms > 0, norms, 1.0), centroids(count, x.shape[3]).to(x))


def _nearest(near: Float64[Tensor, "batch heads tokens"], count: int) -> Tensor:
    """Which tokens are the `count` nearest."""
    order = near.sort(dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(near, dtype=torch.bool).scatter(-1, order[..., :count], value=True)


def _softmax_sum(scores: Tensor, v: Tensor) -> Tensor:
    """The values weighed by softmax; zero where every score is -inf."""
    weights = torch.exp(scores - scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min))
    total = weights.sum(-1, keepdim=True)
    return torch.einsum("bhij,bhje->bhie", weights, v) / torch.where(total > 0, total, 1.0)


def visible_pairs(problem: Problem, *, members: int) -> int:
    """All pairs of each cluster; causal, the keys of the own cluster up to the query where all clusters are even.

    The products with the centroids are left out.
    """
    count = cluster_count(problem.kv_tokens, members)
    if not count:
        return 0
    if not problem.causal:
        return count * -(-problem.tokens // count) * -(-problem.kv_tokens // count)
    positions = range(max(0, problem.offset), problem.offset + problem.tokens)
    return sum(min(members, (i + 1) // count) for i in positions)


DEFINITION = Definition(
    name="routing",
    title="Routing attention (Routing Transformer)",
    formula=(
        "C = ⌈N_k/w⌉ frozen centroids μ; cluster c: the ⌈N_q/C⌉ queries and ⌈N_k/C⌉ keys with the largest cos(x, μ_c), "
        "of equal ones the earlier; o_i: the mean, over the clusters that hold i, of softmax over the cluster's keys, "
        "zero where none does;  causal: softmax over the latest w of the keys j ≤ i with the nearest centroid of q_i"
    ),
    source=(
        "arXiv:2003.05997, section 4.1 and algorithm 1, with scores of q and k themselves. Causal it takes the "
        "clusters of the text, not of algorithm 1, whose w nearest of the whole sequence let later tokens decide"
    ),
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="routing/clustered",
    parameters=(Parameter("members", 128, 1, 1 << 20, "keys of a cluster; causal, at most as many"),),
    normalised=False,
)
