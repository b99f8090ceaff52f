"""Chunkwise-parallel in two levels: sub-chunks within a chunk, the decaying state between chunks."""

from jaxtyping import Float
from torch import Tensor

from variants.decayed_scan import running_states
from variants.dtypes import TORCH_DTYPES
from variants.gated_linear import DEFINITION, log_decays
from variants.gated_scan import gated_gradients, gated_products, running_sums
from variants.powers import exp, exp_
from variants.problem import Problem
from variants.scan import CHUNK, SELF_CAUSAL, Gradients, carry, carry_bytes, chunk_groups, repeated_rows, split_chunks
from variants.tiles import accumulator
from variants.variant import Attention, variant


def groups(problem: Problem) -> list[slice]:
    """The chunks that are taken together."""
    return chunk_groups(problem.tokens, problem.batch * problem.heads * problem.head_dim)


def workspace_bytes(problem: Problem) -> int:
    """The decays, the states before the groups, and one group's products."""
    size = problem.head_dim
    wide = max(4, problem.element_bytes)
    tokens = groups(problem)[0].stop if problem.tokens else 0
    own = tokens * (10 * size + 2 * CHUNK) + 3 * (tokens // CHUNK + 2) * size * size
    decays = problem.batch * problem.heads * problem.tokens * size * wide
    return decays + carry_bytes(problem, len(groups(problem)), size, size, own)


def executed_flops(problem: Problem) -> int:
    """The formula's work, and the products within each chunk."""
    inside = 4 * problem.batch * problem.heads * problem.head_dim * problem.tokens * CHUNK
    return DEFINITION.useful_flops(problem) + (round(inside * 3.5) if problem.mode == "training" else inside)


def step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """The chunks of one group."""
    q, k, v, log_decay = (split_chunks(x) for x in (q, k, v, log_decay))
    upto = running_sums(log_decay)
    end = upto[..., -1:, :]
    before, after = running_states(state, (k * exp_(end - upto)).mT @ v, end.mT.exp())
    [[weights]] = gated_products([(q, upto)], [k], upto)
    tile = weights.tril_() @ v
    return tile.add_((q * exp(upto)) @ before).flatten(1, 2), after


def adjoint(
    slopes: tuple[Tensor, Tensor], state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor
) -> Gradients:
    """Their gradients."""
    q, k, v, grad, log_decay = (split_chunks(x.contiguous()) for x in (q, k, v, slopes[0], log_decay))
    upto = running_sums(log_decay)
    end = upto[..., -1:, :]
    reach, rest, whole = exp(upto), exp_(end - upto), end.mT.exp()
    kept = k * rest
    before, _ = running_states(state, kept.mT @ v, whole)
    behind, first = running_states(slopes[1], (q * reach).mT @ grad, whole, backwards=True)
    [[weights]] = gated_products([(q, upto)], [k], upto)
    dv = (weights.tril_().mT @ grad).add_(kept @ behind)
    [dq], [dk] = gated_gradients([[(grad @ v.mT).tril_()]], [(q, upto)], [k], upto)
    dq.addcmul_(reach, grad @ before.mT)
    dk.addcmul_(rest, v @ behind.mT)
    return dq.flatten(1, 2), dk.flatten(1, 2), dv.flatten(1, 2), first


@variant(
    "gated_linear/chunked",
    summary="sub-chunks within chunks, the decaying state between them",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=SELF_CAUSAL,
    source="arXiv:2312.06635, section 4.3",
)
def build(problem: Problem) -> Attention:
    """The decays are cast here."""
    log_decay = log_decays(problem.heads, problem.tokens, problem.head_dim).repeat(problem.batch, 1, 1)
    log_decay = log_decay.to(problem.device, accumulator(TORCH_DTYPES[problem.dtype]))
    taken = groups(problem)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        rows = repeated_rows(problem, q, k, v)
        return carry(step, taken, *rows, (log_decay,), adjoint=adjoint).view(q.shape)

    return run
