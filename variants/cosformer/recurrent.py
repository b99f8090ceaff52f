"""The scan as written: one key's features after the other into the state."""

import torch
from jaxtyping import Float
from torch import Tensor

from variants.cosine_features import EQUAL_LENGTHS, cosine_features, waves
from variants.decayed_scan import decayed_tokens, normalised, with_ones
from variants.problem import Problem
from variants.scan import carry, repeated_rows, segment_bytes, token_segments
from variants.variant import Attention, variant


def workspace_bytes(problem: Problem) -> int:
    """The features of a segment; in training its states, or, not causal, all features."""
    rows, size = problem.batch * problem.heads, problem.head_dim
    wide = max(4, problem.element_bytes)
    segment = segment_bytes(problem, 2 * size, size + 1)
    if problem.causal:
        return segment
    streams = rows * problem.tokens * 9 * size * wide
    repeated = 3 * rows * problem.tokens * size * wide if problem.group > 1 else 0
    return streams + repeated + 6 * rows * size * size * wide + 2**20


@variant(
    "cosformer/recurrent",
    summary="the state grown key by key",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    requires=EQUAL_LENGTHS,
)
def build(problem: Problem) -> Attention:
    """The waves are built here."""
    cosine, sine = waves(problem)
    still = torch.zeros(1, 1, 1, dtype=torch.float64, device=problem.device).expand(-1, problem.tokens, -1)
    segments = token_segments(problem.tokens)

    def step(
        state: Tensor, q: Tensor, k: Tensor, v: Tensor, cosine: Tensor, sine: Tensor, still: Tensor
    ) -> tuple[Tensor, Tensor]:
        q, k = (cosine_features(x, cosine, sine) for x in (q, k))
        sums, state = decayed_tokens(state, q, k, with_ones(v), still)
        return normalised(sums), state

    def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = cosine_features(k, cosine, sine), with_ones(v.to(cosine.dtype))
        # Empty sums: zeros from which gradients reach k and v even where there is no token.
        state = keys[:, :0].mT @ values[:, :0]
        for key, value in zip(keys.unsqueeze(3).unbind(1), values.unsqueeze(2).unbind(1), strict=True):
            state = torch.addcmul(state, key, value)
        return normalised(cosine_features(q, cosine, sine) @ state).to(q.dtype)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        rows = repeated_rows(problem, q, k, v)
        if not problem.causal:
            return whole(*rows).view(q.shape)
        size = 2 * problem.head_dim, problem.head_dim + 1
        return carry(step, segments, *rows, (cosine, sine, still), size).view(q.shape)

    return run
