"""A few queries at a time: their mask is drawn with their weights, forth and back, and never kept."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.dropout import Draws, draws_of
from variants.problem import Problem
from variants.row_chunks import hide_later, pairs_of, row_chunks
from variants.tiles import SCRATCH_BYTES, accumulator, flatten_heads
from variants.variant import Attention, variant

ELEMENTS = 2**18  # pairs of a chunk: 1 MiB in float32


def chunk_rows(problem: Problem) -> int:
    """Rows of a chunk."""
    return max(1, ELEMENTS // max(1, problem.kv_tokens))


def weights_of(scaled: Tensor, keys: Tensor, first: int | None) -> Float[Tensor, "rows keys"]:
    """The softmax of a chunk; causal, its first row sees the keys up to `first`."""
    scores: Tensor = scaled @ keys.T
    if first is not None:
        hide_later(scores, first)
    return torch.softmax(scores, -1)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, drawn: Draws, plan: tuple[Problem, float]) -> Tensor:
        problem, scale = plan
        wide = accumulator(q.dtype)
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        fq, fk, fv, fo = (flatten_heads(x) for x in (q, k, v, out))
        for head in range(fq.shape[0]):
            scaled = fq[head].to(wide) * q.shape[3] ** -0.5
            keys, values = fk[head // problem.group].to(wide), fv[head // problem.group].to(wide) * scale
            at = divmod(head, problem.heads)
            for rows, seen in row_chunks(problem, chunk_rows(problem)):
                weights = weights_of(scaled[rows], keys[seen], _first(problem, rows))
                fo[head, rows] = weights.mul_(drawn.kept((*at, rows), seen)) @ values[seen]
        ctx.save_for_backward(q, k, v, out)
        ctx.plan = drawn, plan  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        drawn, (problem, scale) = ctx.plan  # type: ignore[attr-defined]  # set in forward
        wide = accumulator(q.dtype)
        dq, dk, dv = (torch.zeros(x.shape, dtype=wide, device=q.device) for x in (q, k, v))
        fq, fk, fv, fg, fo, fdq, fdk, fdv = (flatten_heads(x) for x in (q, k, v, grad, out, dq, dk, dv))
        root = q.shape[3] ** -0.5
        for head in range(fq.shape[0]):
            shared, at = head // problem.group, divmod(head, problem.heads)
            scaled, keys, values = fq[head].to(wide) * root, fk[shared].to(wide), fv[shared].to(wide)
            for rows, seen in row_chunks(problem, chunk_rows(problem)):
                slope = fg[head, rows].to(wide)
                kept = drawn.kept((*at, rows), seen)
                weights = weights_of(scaled[rows], keys[seen], _first(problem, rows))
                fdv[shared, seen].addmm_((weights * kept).T, slope, alpha=scale)
                delta = (slope * fo[head, rows].to(wide)).sum(-1, keepdim=True)
                inner = (slope @ values[seen].T).mul_(scale).mul_(kept).sub_(delta).mul_(weights)
                fdq[head, rows] = (inner @ keys[seen]).mul_(root)
                fdk[shared, seen].addmm_(inner.T, scaled[rows])
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


def _first(problem: Problem, rows: slice) -> int | None:
    return rows.start + problem.offset if problem.causal else None


def workspace_bytes(problem: Problem, *, dropped_percent: int, seed: int) -> int:
    """One head widened, a chunk's scores, weights and draws; in training wide gradients too."""
    wide = max(4, problem.element_bytes)
    head = (problem.tokens + 2 * problem.kv_tokens) * problem.head_dim * wide
    rows = min(problem.tokens, chunk_rows(problem))
    ends = 4 * (problem.batch * problem.heads * problem.tokens + problem.kv_tokens)
    chunk = rows * (problem.kv_tokens * (2 * wide + 10) + 2 * problem.head_dim * wide)
    if problem.mode != "training":
        return ends + head + chunk + SCRATCH_BYTES
    widened = problem.input_output_bytes // 2 * wide // problem.element_bytes if problem.element_bytes < wide else 0
    return ends + head + widened + chunk + rows * problem.kv_tokens * wide + SCRATCH_BYTES


def executed_flops(problem: Problem, *, dropped_percent: int, seed: int) -> int:
    """Every pair of every chunk; in training the scores once more and four products."""
    pairs = pairs_of(problem, chunk_rows(problem))
    forward = 4 * problem.batch * problem.heads * problem.head_dim * pairs
    return round(forward * 3.5) if problem.mode == "training" else forward


@variant(
    "dropout/chunked",
    summary="a few queries at a time, their mask drawn with their weights",
    devices=("cpu", "cuda"),
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
)
def build(problem: Problem, *, dropped_percent: int, seed: int) -> Attention:
    """A number for each query and key is drawn here; the pairs are drawn in the call."""
    drawn = draws_of(problem, dropped_percent, seed)
    plan = problem, 100 / (100 - dropped_percent)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        out: Tensor = _Dropout.apply(q, k, v, drawn, plan)  # type: ignore[no-untyped-call]  # torch types no apply
        return out

    return run
