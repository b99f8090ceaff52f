"""Batched products within the blocks and across them, head by head, in float64.

The quotient of two sums of weights that may all be tiny goes into an exponent: of large logits
float32 would keep only some three digits.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional

from variants.head_by_head import head_by_head
from variants.monarch import ENCODERS_ONLY, EPSILON, SELF_ATTENTION, visible_pairs
from variants.problem import Problem
from variants.tiles import SCRATCH_BYTES
from variants.variant import Attention, variant

HIDDEN = -1e30  # not -inf, which times a weight of zero were NaN


def within(
    means: Float64[Tensor, "blocks block dim"], keys: Float64[Tensor, "blocks block dim"], filling: Tensor
) -> tuple[Float64[Tensor, "blocks block block"], Float64[Tensor, "blocks block"]]:
    """R, and the sums of R log R: from the scores and their log-sum-exp."""
    scores = torch.baddbmm(filling, means, keys.mT)
    weights = torch.softmax(scores, -1)
    return weights, (weights * scores).sum(-1) - torch.logsumexp(scores, -1)


def one_head(
    q: Float64[Tensor, "tokens dim"],
    k: Float64[Tensor, "tokens dim"],
    v: Float64[Tensor, "tokens dim"],
    block: int,
    steps: int,
) -> Float64[Tensor, "tokens dim"]:
    """The output of one head; the last block is filled up with tokens that weigh nothing."""
    tokens, dim = q.shape
    scale = dim**-0.5
    queries, keys, values = (functional.pad(x, (0, 0, 0, -tokens % block)).unflatten(0, (-1, block)) for x in (q, k, v))
    real = torch.arange(len(queries) * block, device=q.device).view(-1, block) < tokens
    filling = torch.zeros(real.shape, dtype=q.dtype, device=q.device).masked_fill_(~real, HIDDEN).unsqueeze(1)
    across = queries.transpose(0, 1)  # places, blocks, dim
    means = queries
    for step in range(steps):
        right, entropy = within(means * scale, keys, filling)
        targets = (right @ keys * scale).transpose(0, 1)
        left = torch.softmax(across @ targets.mT - entropy.T.unsqueeze(1), -1)  # places, query blocks, key blocks
        if step + 1 < steps:
            left = left * real.T.unsqueeze(-1)
            mass = left.sum(1).T.unsqueeze(-1)
            means = (left.mT @ across).transpose(0, 1) / (mass + EPSILON)
    outs: Tensor = left @ (right @ values).transpose(0, 1)
    return outs.transpose(0, 1).flatten(0, 1)[:tokens]


def workspace_bytes(problem: Problem, *, block: int, steps: int) -> int:
    """One head in float64 with its factors; in training every step's."""
    blocks = -(-problem.tokens // block)
    tokens = blocks * block
    once = 8 * tokens * (block + blocks)
    inputs = 8 * tokens * problem.head_dim
    if problem.mode != "training":
        return 3 * once + 11 * inputs + SCRATCH_BYTES
    wide = 16 * problem.key_bytes // problem.element_bytes if problem.group > 1 else 0
    return (4 * steps + 3) * once + (7 * steps + 14) * inputs + wide + SCRATCH_BYTES


def executed_flops(problem: Problem, *, block: int, steps: int) -> int:
    """The scores and sums of every step, the filling included; in training all once more, and twice as much back."""
    filled = problem.with_(tokens=-(-problem.tokens // block) * block)
    pairs = visible_pairs(filled, block=block, steps=steps)
    forward = 4 * problem.batch * problem.heads * problem.head_dim * pairs
    return 4 * forward if problem.mode == "training" else forward


@variant(
    "monarch/alternating",
    summary="batched products within blocks and across them, in float64",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=(ENCODERS_ONLY, SELF_ATTENTION),
)
def build(problem: Problem, *, block: int, steps: int) -> Attention:
    """Nothing to prepare."""

    def own(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return one_head(q, k, v, block, steps)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return head_by_head(q, k, v, own, torch.float64)

    return run
