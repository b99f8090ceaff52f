"""Positive random features e^{ωx − ‖x‖²/2}, each scaled so that nothing overflows and nothing leaks.

The output is normalised, so a factor of a query cancels: each is scaled by its own largest
feature. A factor of the keys cancels where all keys of a row share it: in the causal form it is
the largest feature of the keys so far, which the state follows by decaying.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from variants.dtypes import TORCH_DTYPES
from variants.favor import projection
from variants.powers import exp_
from variants.problem import Problem
from variants.scan import CHUNK, carry_bytes, chunk_groups
from variants.tiles import accumulator


def scaled_projection(problem: Problem, features: int) -> Float[Tensor, "head_dim features"]:
    """ω d^{−¼}, transposed, in at least float32."""
    omega: Tensor = projection(problem.head_dim, features).T * problem.head_dim**-0.25
    return omega.to(problem.device, accumulator(TORCH_DTYPES[problem.dtype])).contiguous()


def query_features(
    q: Float[Tensor, "rows tokens head_dim"], omega: Float[Tensor, "head_dim features"]
) -> Float[Tensor, "rows tokens features"]:
    """φ(q), each over its largest entry."""
    logarithms = q.to(omega.dtype) @ omega
    return exp_(logarithms - logarithms.detach().amax(-1, keepdim=True))


def key_logarithms(
    k: Float[Tensor, "rows tokens head_dim"], omega: Float[Tensor, "head_dim features"]
) -> Float[Tensor, "rows tokens features"]:
    """log φ(k) + log √m."""
    k = k.to(omega.dtype)
    return (k @ omega).sub_((k * k).sum(-1, keepdim=True) / (2 * k.shape[-1] ** 0.5))


@torch.no_grad()
def key_ceilings(
    k: Float[Tensor, "rows tokens head_dim"], omega: Float[Tensor, "head_dim features"], groups: Sequence[slice]
) -> Float[Tensor, "rows tokens 1"]:
    """The largest logarithm of each key's features."""
    tops = [key_logarithms(k[:, group], omega).amax(-1, keepdim=True) for group in groups]
    return torch.cat(tops, 1) if tops else k.new_zeros(*k.shape[:2], 1, dtype=omega.dtype)


def causal_gates(
    k: Float[Tensor, "rows tokens head_dim"], omega: Float[Tensor, "head_dim features"], groups: Sequence[slice]
) -> tuple[Float[Tensor, "rows tokens 1"], Float[Tensor, "rows tokens 1"]]:
    """The ceiling of the keys so far, and by how much it rose, as a log decay in float64."""
    ceiling = key_ceilings(k, omega, groups).cummax(1).values if k.shape[1] else key_ceilings(k, omega, groups)
    before = torch.cat((ceiling[:, :1], ceiling[:, :-1]), 1)
    return ceiling, before.double() - ceiling.double()


def aligned(problem: Problem, q: Float[Tensor, "rows tokens dim"]) -> Float[Tensor, "rows kv_tokens dim"]:
    """Queries so that the last meets the last key: without those before the first key, or after rows of zeros."""
    if problem.offset >= 0:
        return functional.pad(q, (0, 0, problem.offset, 0)) if problem.offset else q
    return q[:, -problem.offset :]


def unaligned(problem: Problem, out: Float[Tensor, "rows kv_tokens dim"]) -> Float[Tensor, "rows tokens dim"]:
    """The adjoint: rows that see no key are zero."""
    if problem.offset >= 0:
        return out[:, problem.offset :]
    return functional.pad(out, (0, 0, -problem.offset, 0))


def feature_groups(problem: Problem, tokens: int, features: int) -> list[slice]:
    """Tokens whose features are held together."""
    return chunk_groups(tokens, problem.batch * problem.heads * max(features, CHUNK))


def features_bytes(problem: Problem, features: int) -> int:
    """Memory of the chunked form: ω, the features of a group and the states; in training, not causal, all features."""
    rows, size = problem.batch * problem.heads, problem.head_dim
    wide = max(4, problem.element_bytes)
    both = problem.tokens + problem.kv_tokens
    groups = feature_groups(problem, max(problem.tokens, problem.kv_tokens), features)
    tokens = groups[0].stop if groups else 0
    omega = features * size * wide
    if not problem.causal:
        kept = rows * both * (features + 2 * size + 2) * wide if problem.mode == "training" else 0
        own = tokens * (2 * features + 2 * size) + features * size
        return omega + kept + carry_bytes(problem, 1, features, size + 1, own)
    own = tokens * (7 * features + 6 * size + 4 * CHUNK) + 3 * (tokens // CHUNK + 2) * features * (size + 1)
    gates = 3 * rows * problem.kv_tokens * 8
    shifted = 3 * rows * both * size * wide if problem.offset else 0
    return omega + gates + shifted + carry_bytes(problem, len(groups), features, size + 1, own)
