"""The formula as it stands: one product for all scores, a softmax, another product."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from variants.problem import Problem
from variants.sdpa import bottom_right_mask
from variants.variant import Attention, variant


def workspace_bytes(problem: Problem) -> int:
    """Scores and weights; a third matrix while a mask is added or gradients flow; the scaled q."""
    pairs = problem.batch * problem.heads * problem.tokens * problem.kv_tokens
    matrices = 3 if problem.mode == "training" else 2
    mask = problem.tokens * problem.kv_tokens if problem.causal else 0
    return (matrices * pairs + mask) * problem.element_bytes + problem.query_bytes


def executed_flops(problem: Problem) -> int:
    """Every pair, causal or not."""
    forward = 4 * problem.batch * problem.heads * problem.head_dim * problem.tokens * problem.kv_tokens
    return 3 * forward if problem.mode == "training" else forward


@variant(
    "full/matmul",
    summary="two matrix products around a softmax, all scores at once",
    devices=("cpu", "cuda"),
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
)
def build(problem: Problem) -> Attention:
    """The causal mask is built here."""
    blind = max(0, -problem.offset) if problem.causal else 0  # rows that see no key
    mask = bottom_right_mask(problem) if problem.causal else None
    mask = mask[blind:] if mask is not None else None

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        # Queries that share keys become rows of one product, so that no key is copied.
        seeing = q[:, :, blind:] * q.shape[-1] ** -0.5
        rows = seeing.reshape(q.shape[0], k.shape[1], problem.group * seeing.shape[2], q.shape[3])
        scores = rows @ k.mT
        if mask is not None:
            scores.view(*seeing.shape[:3], k.shape[2]).add_(mask)
        out = (torch.softmax(scores, dim=-1) @ v).view(seeing.shape)
        return functional.pad(out, (0, 0, blind, 0)) if blind else out

    return run
