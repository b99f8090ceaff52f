"""Some rows of scores at a time; the threshold by Newton's method instead of a sort.

The sum of max(z - tau, 0)^2 is convex and falls with tau: from one below the largest score the
steps only rise towards the threshold, never beyond it.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.problem import Problem
from variants.row_chunks import hide_later, pairs_of, row_chunks
from variants.tiles import SCRATCH_BYTES, accumulator, flatten_heads
from variants.variant import Attention, variant

ELEMENTS = 2**18  # scores of a chunk: 1 MiB in float32
MOST_STEPS = 60  # some ten are enough; the rest is for rows that creep up by their rounding


def roots_of(halves: Float[Tensor, "rows keys"]) -> Float[Tensor, "rows keys"]:
    """The square roots of the weights, from half the scores, in place; every row has a finite score."""
    halves.sub_(halves.amax(-1, keepdim=True) - 1).clamp_(min=0)  # the threshold is at 0 now, and moves up
    smallest = 4 * torch.finfo(halves.dtype).eps
    for _ in range(MOST_STEPS):
        squares = torch.linalg.vector_norm(halves, dim=-1, keepdim=True).square_()
        step = squares.sub_(1).div_(halves.sum(-1, keepdim=True).mul_(2)).clamp_(min=0)
        halves.sub_(step).clamp_(min=0)
        if float(step.amax()) <= smallest:
            break
    # What rounding left of the sum: over wide supports it is more than one weight's own.
    return halves.div_(torch.linalg.vector_norm(halves, dim=-1, keepdim=True))


def chunk_rows(problem: Problem) -> int:
    """Rows of a chunk."""
    return max(16, ELEMENTS // max(1, problem.kv_tokens))


def scored(q: Tensor, k: Tensor, rows: slice, keys: slice, problem: Problem) -> Tensor:
    """The roots of a chunk's weights, from queries that are scaled by half of 1/√d."""
    halves = q[rows] @ k[keys].T
    if problem.causal:
        hide_later(halves, rows.start + problem.offset)
    return roots_of(halves)


class _Entmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Tensor:
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        wide = accumulator(q.dtype)
        fq, fk, fv, fo = (flatten_heads(x) for x in (q, k, v, out))
        for head in range(fq.shape[0]):
            scaled = fq[head].to(wide) * (0.5 * q.shape[3] ** -0.5)
            own_k, own_v = (x[head // problem.group].to(wide) for x in (fk, fv))
            for rows, keys in row_chunks(problem, chunk_rows(problem)):
                fo[head, rows] = scored(scaled, own_k, rows, keys, problem).square_() @ own_v[keys]
        ctx.save_for_backward(q, k, v)
        ctx.problem = problem  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        problem: Problem = ctx.problem  # type: ignore[attr-defined]  # set in forward
        wide = accumulator(q.dtype)
        dq, dk, dv = (torch.zeros(x.shape, dtype=wide, device=q.device) for x in (q, k, v))
        fq, fk, fv, fg = (flatten_heads(x) for x in (q, k, v, grad))
        fdq, fdk, fdv = (flatten_heads(x) for x in (dq, dk, dv))
        half = 0.5 * q.shape[3] ** -0.5
        for head in range(fq.shape[0]):
            shared = head // problem.group
            scaled = fq[head].to(wide) * half
            own_k, own_v = fk[shared].to(wide), fv[shared].to(wide)
            for rows, keys in row_chunks(problem, chunk_rows(problem)):
                slope = fg[head, rows].to(wide)
                roots = scored(scaled, own_k, rows, keys, problem)
                fdv[shared, keys].addmm_(roots.square().T, slope)
                # The Jacobian is diag(r) - r rᵀ / Σ r with r the roots of the weights (section 3.3).
                inner = (slope @ own_v[keys].T).mul_(roots)
                inner.sub_(roots.mul_(inner.sum(-1, keepdim=True) / roots.sum(-1, keepdim=True)))
                fdq[head, rows] = (inner @ own_k[keys]).mul_(2 * half)
                fdk[shared, keys].addmm_(inner.T, scaled[rows], alpha=2)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None


def workspace_bytes(problem: Problem) -> int:
    """A chunk's scores, one head's inputs widened; in training a second and third chunk and wide gradients."""
    wide = max(4, problem.element_bytes)
    rows = min(problem.tokens, chunk_rows(problem))
    head = (problem.tokens + 2 * problem.kv_tokens) * problem.head_dim * wide
    chunk = rows * (problem.kv_tokens + 2 * problem.head_dim) * wide
    if problem.mode != "training":
        return head + 2 * chunk + SCRATCH_BYTES
    widened = problem.input_output_bytes // 2 * wide // problem.element_bytes if problem.element_bytes < wide else 0
    return head + 4 * chunk + widened + SCRATCH_BYTES


def executed_flops(problem: Problem) -> int:
    """Every pair of every chunk; in training the scores once more and four products."""
    forward = 4 * problem.batch * problem.heads * problem.head_dim * pairs_of(problem, chunk_rows(problem))
    return round(forward * 3.5) if problem.mode == "training" else forward


@variant(
    "entmax15/chunked",
    summary="rows of scores at a time, their thresholds by Newton's method",
    devices=("cpu", "cuda"),
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
)
def build(problem: Problem) -> Attention:
    """Nothing to prepare."""

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        out: Tensor = _Entmax.apply(q, k, v, problem)  # type: ignore[no-untyped-call]  # torch types no apply
        return out

    return run
