"""Chunkwise-parallel: within a chunk by a masked product of features, between chunks by the state."""

import torch
from jaxtyping import Float
from torch import Tensor

from variants.cosformer import DEFINITION
from variants.cosine_features import EQUAL_LENGTHS, cosine_features, feature_gradient, wave_groups, waves
from variants.decayed_scan import decay_tiles, decayed_chunks, normalised, normalised_gradients, with_ones
from variants.dtypes import TORCH_DTYPES
from variants.problem import Problem
from variants.scan import CHUNK, Gradients, carry, carry_bytes, repeated_rows
from variants.tiles import accumulator
from variants.variant import Attention, variant


def workspace_bytes(problem: Problem) -> int:
    """The features of a group of chunks and the states; in training, not causal, all features."""
    rows, size = problem.batch * problem.heads, problem.head_dim
    groups = wave_groups(problem)
    tokens = groups[0].stop if groups else 0
    own = tokens * (12 * size + 2 * CHUNK)
    if problem.causal:
        own += 3 * (tokens // CHUNK + 2) * 2 * size * size
        return 2 * rows * CHUNK * CHUNK * 4 + carry_bytes(problem, len(groups), 2 * size, size + 1, own)
    kept = 8 * rows * problem.tokens * size * max(4, problem.element_bytes) if problem.mode == "training" else 0
    return kept + carry_bytes(problem, 1, 2 * size, size + 1, own)


def executed_flops(problem: Problem) -> int:
    """The formula's work; causal, also the products within each chunk."""
    useful = DEFINITION.useful_flops(problem)
    if not problem.causal:
        return useful
    inside = 6 * problem.batch * problem.heads * problem.head_dim * problem.tokens * CHUNK
    return useful + (round(inside * 3.5) if problem.mode == "training" else inside)


@variant(
    "cosformer/chunked",
    summary="chunks by masked products of features, the state between them",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=EQUAL_LENGTHS,
    source="arXiv:2202.08791; chunkwise form: arXiv:2312.06635, section 4",
)
def build(problem: Problem) -> Attention:
    """The waves, and the mask of a chunk, are built here."""
    cosine, sine = waves(problem)
    groups = wave_groups(problem)
    still = torch.zeros(1, 1, CHUNK, dtype=torch.float64, device=problem.device)
    tiles = {
        length: decay_tiles(still[..., :length], accumulator(TORCH_DTYPES[problem.dtype]))
        for length in {min(CHUNK, group.stop - group.start) for group in groups}
    }

    def step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
        q, k = (cosine_features(x, cosine, sine) for x in (q, k))
        sums, state = decayed_chunks(state, q, k, with_ones(v), tiles[min(CHUNK, q.shape[1])])
        return normalised(sums), state

    def adjoint(
        slopes: tuple[Tensor, Tensor], state: Tensor, q: Tensor, k: Tensor, v: Tensor, cosine: Tensor, sine: Tensor
    ) -> Gradients:
        a, b = (cosine_features(x, cosine, sine) for x in (q, k))
        dq, dk, dv, before = normalised_gradients(slopes, state, a, b, v, tiles[min(CHUNK, q.shape[1])])
        return feature_gradient(dq, q, cosine, sine), feature_gradient(dk, k, cosine, sine), dv, before

    def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Empty sums: zeros from which gradients reach k and v even where there is no token.
        state = cosine_features(k[:, :0], cosine[:, :0], sine[:, :0]).mT @ with_ones(v[:, :0].to(cosine.dtype))
        for group in groups:
            keys = cosine_features(k[:, group], cosine[:, group], sine[:, group])
            state = torch.baddbmm(state, keys.mT, with_ones(v[:, group].to(cosine.dtype)))
        parts = (cosine_features(q[:, group], cosine[:, group], sine[:, group]) for group in groups)
        outs = [normalised(queries @ state).to(q.dtype) for queries in parts]
        return torch.cat(outs, 1) if outs else q * state.sum()

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        rows = repeated_rows(problem, q, k, v)
        if not problem.causal:
            return whole(*rows).view(q.shape)
        size = 2 * problem.head_dim, problem.head_dim + 1
        return carry(step, groups, *rows, (cosine, sine), size, adjoint).view(q.shape)

    return run
