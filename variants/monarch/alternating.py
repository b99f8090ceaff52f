"""Batched products within the blocks and across them, head by head, in at least float32.

The quotient of two sums of weights that may all be tiny goes into an exponent: of large logits
float32 would keep only some three digits. So all steps but the last are in float64, unless the
head's logits are known to be small.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from variants.dtypes import TORCH_DTYPES
from variants.head_by_head import head_by_head
from variants.monarch import ENCODERS_ONLY, EPSILON, SELF_ATTENTION, visible_pairs
from variants.powers import exp_
from variants.problem import Problem
from variants.tiles import SCRATCH_BYTES, accumulator
from variants.variant import Attention, variant

HIDDEN = -1e30  # not -inf, which times a weight of zero were NaN
SMALL = 64.0  # logits to which float32 will do: its error grows with their square, and is 2e-5 at some 400


def fitting_dtype(q: Float[Tensor, "tokens dim"], k: Float[Tensor, "tokens dim"]) -> torch.dtype:
    """The dtype of all steps but the last; float64 on a device that would have to be waited for."""
    if q.device.type == "cpu" and len(q):
        longest_q, longest_k = (torch.linalg.vector_norm(x.detach(), dim=1).amax() for x in (q, k))
        if float(longest_q * longest_k) * q.shape[1] ** -0.5 <= SMALL:
            return q.dtype
    return torch.float64


def within(
    means: Float[Tensor, "blocks block dim"], keys: Float[Tensor, "blocks block dim"], filling: Tensor | None
) -> tuple[Float[Tensor, "blocks block block"], Float[Tensor, "blocks block dim"], Float[Tensor, "block 1 blocks"]]:
    """R, its sums of the keys, and the sums of R log R: those sums' own scores less the log-sum-exp."""
    means = means * keys.shape[2] ** -0.5
    scores = means @ keys.mT
    if filling is not None:
        scores = scores + filling
    lse = torch.logsumexp(scores, -1)
    right = exp_(scores - lse.unsqueeze(-1))
    targets = right @ keys
    return right, targets, ((means * targets).sum(-1) - lse).T.unsqueeze(1)


def across(
    queries: Float[Tensor, "block blocks dim"], targets: Float[Tensor, "blocks block dim"], entropy: Tensor
) -> Float[Tensor, "block blocks blocks"]:
    """L by places, its rows the blocks of queries and its columns those of keys."""
    scaled = (targets * targets.shape[2] ** -0.5).transpose(0, 1)
    return torch.softmax(torch.baddbmm(entropy, queries, scaled.mT, beta=-1), -1)


def refitted(
    means: Float[Tensor, "blocks block dim"],
    queries: Float[Tensor, "block blocks dim"],
    keys: Float[Tensor, "blocks block dim"],
    filling: Tensor | None,
) -> Float[Tensor, "blocks block dim"]:
    """One step: both factors, and the means of the queries by the second."""
    _, targets, entropy = within(means, keys, filling)
    left = across(queries, targets, entropy)
    if filling is not None:
        left = left * (filling == 0).squeeze(1).T.unsqueeze(-1)
    mass = left.sum(1).T.unsqueeze(-1)
    return (left.mT @ queries).transpose(0, 1) / (mass + EPSILON)


def one_head(
    q: Float[Tensor, "tokens dim"],
    k: Float[Tensor, "tokens dim"],
    v: Float[Tensor, "tokens dim"],
    block: int,
    steps: int,
) -> Float[Tensor, "tokens dim"]:
    """The output of one head; the last block is filled up with tokens that weigh nothing."""
    tokens, missing = len(q), -len(q) % block
    parts = (functional.pad(x, (0, 0, 0, missing)) if missing else x for x in (q, k, v))
    queries, keys, values = (x.unflatten(0, (-1, block)) for x in parts)
    filling = None
    if missing:
        real = torch.arange(tokens + missing, device=q.device).view(-1, 1, block) < tokens
        filling = torch.zeros(real.shape, dtype=q.dtype, device=q.device).masked_fill_(~real, HIDDEN)
    means = queries
    if steps > 1:
        fitting = fitting_dtype(q, k)
        means, own_keys = queries.to(fitting), keys.to(fitting)
        own_queries = means.transpose(0, 1)
        for _ in range(steps - 1):
            means = refitted(means, own_queries, own_keys, filling)
        means = means.to(q.dtype)
    right, targets, entropy = within(means, keys, filling)
    outs: Tensor = across(queries.transpose(0, 1), targets, entropy) @ (right @ values).transpose(0, 1)
    return outs.transpose(0, 1).flatten(0, 1)[:tokens]


def workspace_bytes(problem: Problem, *, block: int, steps: int) -> int:
    """One head with its factors, in float64 where its logits are large; in training every step's."""
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
    summary="batched products within blocks and across them, in float64 where logits are large",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=(ENCODERS_ONLY, SELF_ATTENTION),
)
def build(problem: Problem, *, block: int, steps: int) -> Attention:
    """Nothing to prepare."""
    wide = accumulator(TORCH_DTYPES[problem.dtype])

    def own(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return one_head(q, k, v, block, steps)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return head_by_head(q, k, v, own, wide)

    return run
