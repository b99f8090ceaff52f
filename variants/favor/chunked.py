"""Chunkwise-parallel: within a chunk by a masked product of features, between chunks by the state."""

import torch
from jaxtyping import Float
from torch import Tensor

from variants.decayed_scan import decay_tiles, decayed_chunks, normalised, normalised_gradients, with_ones
from variants.favor import DEFINITION
from variants.positive_features import (
    aligned,
    causal_gates,
    feature_groups,
    features_bytes,
    key_logarithms,
    query_features,
    scaled_projection,
    unaligned,
)
from variants.powers import exp_
from variants.problem import Problem
from variants.scan import CHUNK, Gradients, carry, repeated_rows, split_chunks
from variants.variant import Attention, variant


def workspace_bytes(problem: Problem, *, features: int) -> int:
    """The features of a group of chunks and the states; in training, not causal, all features."""
    return features_bytes(problem, features)


def executed_flops(problem: Problem, *, features: int) -> int:
    """The formula's work; causal, also the products within each chunk and the keys' first projection."""
    useful = DEFINITION.useful_flops(problem, {"features": features})
    if not problem.causal:
        return useful
    inside = 2 * problem.kv_tokens * (CHUNK * (features + problem.head_dim) + features * problem.head_dim)
    inside *= problem.batch * problem.heads
    return useful + (round(inside * 3.5) if problem.mode == "training" else inside)


@variant(
    "favor/chunked",
    summary="chunks by masked products of features, the state between them",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    source="arXiv:2009.14794; chunkwise form: arXiv:2312.06635, section 4",
)
def build(problem: Problem, *, features: int) -> Attention:
    """ω is drawn and cast here."""
    omega = scaled_projection(problem, features)
    query_groups, key_groups = (
        feature_groups(problem, tokens, features) for tokens in (problem.tokens, problem.kv_tokens)
    )

    def step(
        state: Tensor, q: Tensor, k: Tensor, v: Tensor, ceiling: Tensor, log_decay: Tensor
    ) -> tuple[Tensor, Tensor]:
        tiles = decay_tiles(split_chunks(log_decay.squeeze(2)), state.dtype)
        sums, state = decayed_chunks(state, *pair_features(q, k, ceiling), with_ones(v), tiles)
        return normalised(sums), state

    def pair_features(q: Tensor, k: Tensor, ceiling: Tensor) -> tuple[Tensor, Tensor]:
        return query_features(q, omega), exp_(key_logarithms(k, omega) - ceiling)

    def adjoint(
        slopes: tuple[Tensor, Tensor],
        state: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        ceiling: Tensor,
        log_decay: Tensor,
    ) -> Gradients:
        queries, keys = pair_features(q, k, ceiling)
        tiles = decay_tiles(split_chunks(log_decay.squeeze(2)), state.dtype)
        dq, dk, dv, before = normalised_gradients(slopes, state, queries, keys, v, tiles)
        dk.mul_(keys)
        # Of both parts of a key's logarithm: ωk and ‖k‖².
        own = (dk @ omega.mT).addcmul_(k, dk.sum(-1, keepdim=True), value=-(k.shape[-1] ** -0.5))
        return dq.mul_(queries) @ omega.mT, own, dv, before

    def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        gates = causal_gates(k, omega, key_groups)
        size = features, v.shape[2] + 1
        return unaligned(problem, carry(step, key_groups, aligned(problem, q), k, v, gates, size, adjoint))

    def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        state = summed_keys(k, v, omega, key_groups)
        outs = [normalised(query_features(q[:, group], omega) @ state).to(q.dtype) for group in query_groups]
        return torch.cat(outs, 1) if outs else q * state.sum()

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        attend = causal if problem.causal else whole
        return attend(*repeated_rows(problem, q, k, v)).reshape(q.shape)

    return run


def summed_keys(k: Tensor, v: Tensor, omega: Tensor, groups: list[slice]) -> Tensor:
    """Σ_j φ(k_j) [v_j, 1] over the largest feature of all keys, which each group may raise."""
    # Empty sums: zeros from which gradients reach k and v even where there is no key.
    state = key_logarithms(k[:, :0], omega).mT @ with_ones(v[:, :0].to(omega.dtype))
    ceiling = state.new_full((k.shape[0], 1, 1), -torch.inf)
    for group in groups:
        logarithms = key_logarithms(k[:, group], omega)
        higher = torch.maximum(ceiling, logarithms.detach().amax((1, 2), keepdim=True))
        features = exp_(logarithms - higher)
        state = torch.baddbmm(state * (ceiling - higher).exp(), features.mT, with_ones(v[:, group].to(omega.dtype)))
        ceiling = higher
    return state
