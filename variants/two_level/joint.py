"""Scores within the blocks beside those of the summaries, one softmax over both, head by head."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from variants.dtypes import TORCH_DTYPES
from variants.head_by_head import head_by_head
from variants.problem import Problem
from variants.tiles import SCRATCH_BYTES, accumulator
from variants.two_level import SELF_ATTENTION
from variants.variant import Attention, variant


def biases(problem: Problem, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens of each block, a bias (blocks, block, block) within and one (blocks, 1, blocks) for the summaries.

    The last block is filled up: its filling is hidden from all others, and sees itself alone.
    """
    tokens, device = problem.tokens, problem.device
    blocks = -(-tokens // block)
    wide = accumulator(TORCH_DTYPES[problem.dtype])
    place = torch.arange(blocks * block, device=device).view(blocks, block)
    counts = (place < tokens).sum(1)
    hidden = (place[:, None, :] >= tokens) & (place[:, None, :] != place[:, :, None])
    if problem.causal:
        hidden = hidden | (place[:, None, :] > place[:, :, None])
    number = torch.arange(blocks, device=device)
    far = number[None, :] < number[:, None] if problem.causal else number[None, :] != number[:, None]
    within = torch.zeros(hidden.shape, dtype=wide, device=device).masked_fill_(hidden, -torch.inf)
    return counts.to(wide), within, torch.where(far, counts.to(wide).log(), -torch.inf).unsqueeze(1)


def one_head(
    q: Float[Tensor, "tokens dim"],
    k: Float[Tensor, "tokens dim"],
    v: Float[Tensor, "tokens dim"],
    layout: tuple[Tensor, Tensor, Tensor],
) -> Float[Tensor, "tokens dim"]:
    """The output of one head."""
    counts, within, between = layout
    blocks, block = within.shape[:2]
    filling = (0, 0, 0, blocks * block - len(q))
    queries, keys, values = (functional.pad(x, filling).unflatten(0, (blocks, block)) for x in (q, k, v))
    mean_k, mean_v = (x.sum(1) / counts[:, None] for x in (keys, values))
    queries = queries * q.shape[1] ** -0.5
    near = torch.baddbmm(within, queries, keys.mT)
    far = queries @ mean_k.T + between
    weights = torch.softmax(torch.cat((near, far), -1), -1)
    out: Tensor = weights[..., :block] @ values + weights[..., block:] @ mean_v
    return out.flatten(0, 1)[: len(q)]


def workspace_bytes(problem: Problem, *, block: int) -> int:
    """The biases, and one head's scores and their weights; in training their gradients too."""
    wide = max(4, problem.element_bytes)
    blocks = -(-problem.tokens // block)
    tokens = blocks * block
    held = wide * (tokens * block + blocks * blocks) + 10 * tokens * block
    scores, inputs = wide * tokens * (block + blocks), wide * tokens * problem.head_dim
    if problem.mode != "training":
        return held + 3 * scores + 8 * inputs + SCRATCH_BYTES
    shared = 2 * problem.key_bytes // problem.element_bytes * wide if problem.group > 1 else 0
    return held + 6 * scores + 18 * inputs + shared + SCRATCH_BYTES


def executed_flops(problem: Problem, *, block: int) -> int:
    """Every pair of every block and every summary, hidden or not; in training all once more, and twice as much back."""
    blocks = -(-problem.tokens // block)
    forward = 4 * problem.batch * problem.heads * problem.head_dim * blocks * block * (block + blocks)
    return 4 * forward if problem.mode == "training" else forward


@variant(
    "two_level/joint",
    summary="batched products within blocks and with all summaries, one softmax",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=(SELF_ATTENTION,),
)
def build(problem: Problem, *, block: int) -> Attention:
    """The biases are laid out here."""
    layout = biases(problem, min(block, max(1, problem.tokens)))

    def own(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return one_head(q, k, v, layout)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return head_by_head(q, k, v, own, layout[1].dtype)

    return run
