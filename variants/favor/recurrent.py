"""The scan as written: one key's features after the other into the state."""

import torch
from jaxtyping import Float
from torch import Tensor

from variants.decayed_scan import decayed_tokens, normalised, with_ones
from variants.positive_features import (
    aligned,
    causal_gates,
    feature_groups,
    key_ceilings,
    key_logarithms,
    query_features,
    scaled_projection,
    unaligned,
)
from variants.powers import exp_
from variants.problem import Problem
from variants.scan import carry, repeated_rows, segment_bytes, token_segments
from variants.variant import Attention, variant


def workspace_bytes(problem: Problem, *, features: int) -> int:
    """ω and the features of a segment; in training its states, or, not causal, all features."""
    rows, size = problem.batch * problem.heads, problem.head_dim
    wide = max(4, problem.element_bytes)
    both = problem.tokens + problem.kv_tokens
    held = features * size * wide + 3 * rows * max(problem.tokens, problem.kv_tokens) * 8
    shifted = 3 * rows * both * size * wide if problem.offset else 0
    if problem.causal:
        return held + shifted + segment_bytes(problem, features, size + 1)
    streams = rows * both * (2 * features + 2 * size + 2) * wide
    repeated = 3 * rows * problem.kv_tokens * size * wide if problem.group > 1 else 0
    states = 4 * rows * features * (size + 1) * wide
    # The gradient of each step's key and value, before they are put together again.
    gradients = rows * problem.kv_tokens * (features + size + 1) * wide if problem.mode == "training" else 0
    return held + states + repeated + streams + gradients


@variant(
    "favor/recurrent",
    summary="the state grown key by key",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
)
def build(problem: Problem, *, features: int) -> Attention:
    """ω is drawn and cast here."""
    omega = scaled_projection(problem, features)
    groups = feature_groups(problem, problem.kv_tokens, features)

    def step(
        state: Tensor, q: Tensor, k: Tensor, v: Tensor, ceiling: Tensor, log_decay: Tensor
    ) -> tuple[Tensor, Tensor]:
        keys = exp_(key_logarithms(k, omega) - ceiling)
        sums, state = decayed_tokens(state, query_features(q, omega), keys, with_ones(v), log_decay)
        return normalised(sums), state

    def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        gates = causal_gates(k, omega, groups)
        size = features, v.shape[2] + 1
        return unaligned(
            problem, carry(step, token_segments(problem.kv_tokens), aligned(problem, q), k, v, gates, size)
        )

    def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logarithms = key_logarithms(k, omega)
        values = with_ones(v.to(omega.dtype))
        # Empty sums: zeros from which gradients reach k and v even where there is no key.
        state = logarithms[:, :0].mT @ values[:, :0]
        if problem.kv_tokens:
            keys = exp_(logarithms - key_ceilings(k, omega, groups).amax(1, keepdim=True))
            for key, value in zip(keys.unsqueeze(3).unbind(1), values.unsqueeze(2).unbind(1), strict=True):
                state = torch.addcmul(state, key, value)
        return normalised(query_features(q, omega) @ state).to(q.dtype)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        attend = causal if problem.causal else whole
        return attend(*repeated_rows(problem, q, k, v)).reshape(q.shape)

    return run
