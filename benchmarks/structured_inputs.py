"""Further drawn inputs, one structure each: row entropies, outliers, a shift, ranks, clusters, a rough V, mixtures."""

from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from torch import Tensor

from benchmarks.descriptors import entropy_by_scale
from benchmarks.drawn_inputs import QKV, autoregress, normal, smooth
from variants import Problem

ENTROPIES: Final = (0.99, 0.9, 0.6, 0.3, 0.1)
RANKS: Final = (1, 4, 16)
BISECTIONS: Final = 24
OUTLIER_SHARE: Final = 0.01
OUTLIER_FACTOR: Final = 8.0
SHIFT: Final = 8.0
CLUSTERS: Final = 16
CLUSTER_LOGIT: Final = 6.0
CLUSTER_NOISE: Final = 0.5
ROUGHNESS: Final = -0.95
NOISE: Final = 2 / 3


def entropy(problem: Problem, generator: torch.Generator, target: float) -> QKV:
    """N(0,1) with q scaled so that the mean row entropy over log(visible keys) is the target.

    Bisected on the logarithm of the scale, since entropy falls with it; where no row sees two
    keys there is no entropy, and q stays as it is.
    """
    q, k, v = normal(problem, generator)
    by_scale = entropy_by_scale((q, k, v), problem)
    if by_scale is None:
        return q, k, v
    low, high = -10.0, 10.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if by_scale(2.0**middle) > target else (low, middle)
    return q * 2.0 ** ((low + high) / 2), k, v


def outliers(problem: Problem, generator: torch.Generator) -> QKV:
    """One token in a hundred, at least one, has a key and a value eight times as long."""
    q, k, v = normal(problem, generator)
    count = min(problem.kv_tokens, max(1, round(OUTLIER_SHARE * problem.kv_tokens)))
    rare = torch.randperm(problem.kv_tokens, generator=generator)[:count]
    k[:, :, rare] *= OUTLIER_FACTOR
    v[:, :, rare] *= OUTLIER_FACTOR
    return q, k, v


def channel_shift(problem: Problem, generator: torch.Generator) -> QKV:
    """A sixteenth of K's channels, at least one, lies around 8 (as in arXiv:2402.02750).

    Softmax attention does not see it, since a shift of K adds one number to all logits of a row;
    feature maps, hashes, centroids and low precision do.
    """
    q, k, v = normal(problem, generator)
    shifted = torch.randperm(problem.head_dim, generator=generator)[: max(1, problem.head_dim // 16)]
    k[..., shifted] += SHIFT
    return q, k, v


def low_rank(problem: Problem, generator: torch.Generator, rank: int) -> QKV:
    """q and k of each head in one random subspace of that dimension; logits of deviation 1, V of full rank."""
    q, k, v = normal(problem, generator)
    scale = (problem.head_dim / rank) ** 0.25
    basis = torch.linalg.qr(_noise(problem, generator, problem.head_dim, rank)).Q.mT * scale
    return q[..., :rank] @ _for_queries(basis, problem), k[..., :rank] @ basis, v


def clusters(problem: Problem, generator: torch.Generator) -> QKV:
    """Tokens of sixteen groups: a query meets logits of about 6 in its own group, and of about 0 elsewhere.

    Which group a token is of does not depend on its place; q and k of one token are of the same.
    """
    noise_q, noise_k, v = normal(problem, generator)
    centre = _noise(problem, generator, CLUSTERS, problem.head_dim)
    length = (CLUSTER_LOGIT * problem.head_dim**0.5) ** 0.5
    centre = centre / centre.norm(dim=-1, keepdim=True) * length
    longest = max(problem.tokens, problem.kv_tokens)
    group = torch.randint(CLUSTERS, (longest,), generator=generator)
    of_query, of_key = group[longest - problem.tokens :], group[longest - problem.kv_tokens :]
    q = _for_queries(centre, problem)[:, :, of_query] + CLUSTER_NOISE * noise_q
    return q, centre[:, :, of_key] + CLUSTER_NOISE * noise_k, v


def rough(problem: Problem, generator: torch.Generator) -> QKV:
    """As `smooth`, but V changes its sign from token to token: an AR(1) series with correlation -0.95."""
    q, k, v = normal(problem, generator)
    return autoregress(q, -ROUGHNESS), autoregress(k, -ROUGHNESS), autoregress(v, ROUGHNESS)


def mixed(problem: Problem, generator: torch.Generator) -> QKV:
    """`smooth`, with noise from N(0, 4/9) upon each of q, k and v: neither segment means nor single keys suffice."""
    slow, fast = smooth(problem, generator), normal(problem, generator)
    q, k, v = (x + NOISE * noise for x, noise in zip(slow, fast, strict=True))
    return q, k, v


def peaky_smooth(problem: Problem, generator: torch.Generator) -> QKV:
    """`smooth` with q and k doubled: few stretches of neighbouring keys hold the mass."""
    q, k, v = smooth(problem, generator)
    return 2 * q, 2 * k, v


def _noise(problem: Problem, generator: torch.Generator, rows: int, columns: int) -> Tensor:
    """N(0,1), a matrix for each key-value head."""
    shape = (problem.batch, problem.kv_heads, rows, columns)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _for_queries(x: Tensor, problem: Problem) -> Tensor:
    return x.repeat_interleave(problem.group, dim=1)


STRUCTURED: Final[dict[str, Callable[[Problem, torch.Generator], QKV]]] = {
    **{f"entropy_{round(100 * target)}": partial(entropy, target=target) for target in ENTROPIES},
    "outliers": outliers,
    "channel_shift": channel_shift,
    **{f"rank_{rank}": partial(low_rank, rank=rank) for rank in RANKS},
    "clusters": clusters,
    "rough": rough,
    "mixed": mixed,
    "peaky_smooth": peaky_smooth,
}

FEWEST_HEAD_DIM: Final = {f"rank_{rank}": rank for rank in RANKS}
"""Below it a kind would not be what its name says."""
