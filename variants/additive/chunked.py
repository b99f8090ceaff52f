"""A few queries at a time, so that the units of few pairs exist at once; gradients by recomputation."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.additive import alignment
from variants.dtypes import TORCH_DTYPES
from variants.problem import Problem
from variants.row_chunks import hide_later, pairs_of, row_chunks
from variants.tiles import SCRATCH_BYTES, accumulator, flatten_heads
from variants.variant import Attention, variant

ELEMENTS = 2**19  # units of a chunk: 2 MiB in float32


def chunk_rows(problem: Problem, hidden: int) -> int:
    """Rows of a chunk."""
    return max(1, ELEMENTS // max(1, problem.kv_tokens * hidden))


def units_of(queries: Tensor, keys: Tensor) -> Float[Tensor, "rows keys hidden"]:
    """The units of a chunk's pairs."""
    return (queries[:, None] + keys[None, :]).tanh_()


def weights_of(units: Tensor, w: Tensor, first: int | None) -> Float[Tensor, "rows keys"]:
    """The weights of a chunk; causal, its first row sees the keys up to `first`."""
    scores: Tensor = units @ w
    if first is not None:
        hide_later(scores, first)
    return torch.softmax(scores, -1)


class _Additive(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, network: tuple[Tensor, ...], problem: Problem
    ) -> Tensor:
        w1, w2, w = network
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        fq, fk, fv, fo = (flatten_heads(x) for x in (q, k, v, out))
        for head in range(fq.shape[0]):
            shared = head // problem.group
            queries, keys, values = fq[head].to(w.dtype) @ w1.T, fk[shared].to(w.dtype) @ w2.T, fv[shared].to(w.dtype)
            for rows, seen in row_chunks(problem, chunk_rows(problem, len(w))):
                first = rows.start + problem.offset if problem.causal else None
                fo[head, rows] = weights_of(units_of(queries[rows], keys[seen]), w, first) @ values[seen]
        ctx.save_for_backward(q, k, v, out)
        ctx.plan = network, problem  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        (w1, w2, w), problem = ctx.plan  # type: ignore[attr-defined]  # set in forward
        dq, dk, dv = (torch.zeros(x.shape, dtype=w.dtype, device=q.device) for x in (q, k, v))
        fq, fk, fv, fg, fo = (flatten_heads(x) for x in (q, k, v, grad, out))
        fdq, fdk, fdv = (flatten_heads(x) for x in (dq, dk, dv))
        for head in range(fq.shape[0]):
            shared = head // problem.group
            queries, keys, values = fq[head].to(w.dtype) @ w1.T, fk[shared].to(w.dtype) @ w2.T, fv[shared].to(w.dtype)
            to_queries, to_keys = torch.zeros_like(queries), torch.zeros_like(keys)
            for rows, seen in row_chunks(problem, chunk_rows(problem, len(w))):
                first = rows.start + problem.offset if problem.causal else None
                slope = fg[head, rows].to(w.dtype)
                units = units_of(queries[rows], keys[seen])
                weights = weights_of(units, w, first)
                fdv[shared, seen].addmm_(weights.T, slope)
                delta = (slope * fo[head, rows].to(w.dtype)).sum(-1, keepdim=True)
                scores = (slope @ values[seen].T).sub_(delta).mul_(weights)
                inner = units.square_().neg_().add_(1).mul_(scores.unsqueeze(-1))  # tanh' = 1 - tanh²
                to_queries[rows] = inner.sum(1)
                to_keys[seen] += inner.sum(0)
            fdq[head] = to_queries.mul_(w) @ w1
            fdk[shared] += to_keys.mul_(w) @ w2
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


def workspace_bytes(problem: Problem, *, hidden: int) -> int:
    """One head's projections, widened inputs and a chunk's units; in training two chunks and wide gradients."""
    wide = max(4, problem.element_bytes)
    both = problem.tokens + problem.kv_tokens
    head = wide * both * (hidden + problem.head_dim)
    pairs = min(problem.tokens, chunk_rows(problem, hidden)) * problem.kv_tokens
    chunk = wide * pairs * (hidden + 3)
    if problem.mode != "training":
        return head + chunk + SCRATCH_BYTES
    widened = problem.input_output_bytes // 2 * wide // problem.element_bytes if problem.element_bytes < wide else 0
    return 2 * head + 2 * chunk + widened + SCRATCH_BYTES


def executed_flops(problem: Problem, *, hidden: int) -> int:
    """Every pair of every chunk; in training the units once more, their slopes, and three products with values."""
    pairs = pairs_of(problem, chunk_rows(problem, hidden))
    projections = 2 * problem.head_dim * hidden * (problem.tokens + problem.kv_tokens)
    one_head = projections + pairs * (4 * hidden + 2 * problem.head_dim)
    if problem.mode == "training":
        one_head = 4 * projections + pairs * (14 * hidden + 7 * problem.head_dim)
    return problem.batch * problem.heads * one_head


@variant(
    "additive/chunked",
    summary="the units of a few queries' pairs at a time",
    devices=("cpu", "cuda"),
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
)
def build(problem: Problem, *, hidden: int) -> Attention:
    """The network is drawn here, and cast once."""
    wide = accumulator(TORCH_DTYPES[problem.dtype])
    network = tuple(x.to(problem.device, wide) for x in alignment(problem.head_dim, hidden))

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        out: Tensor = _Additive.apply(q, k, v, network, problem)  # type: ignore[no-untyped-call]  # torch types no apply
        return out

    return run
