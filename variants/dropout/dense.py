"""All weights at once, with the whole mask drawn over them."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from variants.dropout import draws_of
from variants.problem import Problem
from variants.sdpa import bottom_right_mask
from variants.variant import Attention, variant


def workspace_bytes(problem: Problem, *, dropped_percent: int, seed: int) -> int:
    """Scores, weights and those kept; the draws of all pairs, twice; the scaled q."""
    pairs = problem.batch * problem.heads * problem.tokens * problem.kv_tokens
    mask = problem.tokens * problem.kv_tokens if problem.causal else 0
    drawn = 9 * pairs + 4 * (problem.batch * problem.heads * problem.tokens + problem.kv_tokens)
    matrices = 4 if problem.mode == "training" else 2
    return (matrices * pairs + mask) * problem.element_bytes + drawn + problem.query_bytes


def executed_flops(problem: Problem, *, dropped_percent: int, seed: int) -> int:
    """Every pair, causal or not."""
    forward = 4 * problem.batch * problem.heads * problem.head_dim * problem.tokens * problem.kv_tokens
    return 3 * forward if problem.mode == "training" else forward


@variant(
    "dropout/dense",
    summary="two matrix products around a softmax and a mask of all pairs",
    devices=("cpu", "cuda"),
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
)
def build(problem: Problem, *, dropped_percent: int, seed: int) -> Attention:
    """The causal mask is built here; the draws of the pairs belong to the call, as dropout draws at every step."""
    blind = max(0, -problem.offset) if problem.causal else 0  # rows that see no key
    hidden = bottom_right_mask(problem) if problem.causal else None
    hidden = hidden[blind:] if hidden is not None else None
    drawn = draws_of(problem, dropped_percent, seed)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        seeing = q[:, :, blind:] * q.shape[-1] ** -0.5
        rows = seeing.reshape(q.shape[0], k.shape[1], problem.group * seeing.shape[2], q.shape[3])
        scores = rows @ k.mT
        if hidden is not None:
            scores.view(*seeing.shape[:3], k.shape[2]).add_(hidden)
        weights = torch.softmax(scores, dim=-1)
        kept = drawn.kept((slice(None), slice(None), slice(blind, None))).view(weights.shape)
        out = (weights.where(kept, 0) @ v).view(seeing.shape) * (100 / (100 - dropped_percent))
        return functional.pad(out, (0, 0, blind, 0)) if blind else out

    return run
