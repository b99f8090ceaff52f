"""Exact attention by the online softmax over tiles of rows and keys, one head at a time: no score matrix at any time.

On a CPU its products are those of `variants.products`, which take tiles of this size to be fast.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.dtypes import TORCH_DTYPES
from variants.powers import LN_2, LOG2_E, exp_
from variants.problem import Problem
from variants.products import product, wide_vectors
from variants.tiles import SCRATCH_BYTES, accumulator, flatten_heads, hidden_bias, row_delta, visible

ROWS = 512
"""Of a tile without a mask; with one fewer, since a tile on the diagonal hides half of its pairs."""

FEW_ROWS = 64
"""Up to so many queries, as in decoding, a tile takes as many keys as its scores may be: its steps cost more."""

Spans = list[tuple[slice, Tensor | None]]
"""Slices of keys that a tile of rows sees, each with its bias where it lies on the diagonal."""

Plan = list[tuple[slice, Spans]]
"""Tiles of rows, each with its spans."""


def tile_rows(problem: Problem) -> int:
    """Of so few keys that they do not fill a tile, more rows do."""
    keys = most_keys(problem)
    return ROWS // 2 if problem.causal else ROWS * keys // max(1, min(keys, problem.kv_tokens))


def tile_keys(problem: Problem) -> int:
    """The most keys of a span."""
    keys = most_keys(problem)
    return keys if problem.tokens > FEW_ROWS else ROWS * keys // max(1, problem.tokens)


def most_keys(problem: Problem) -> int:
    """The fastest of those tried on a CPU: long tiles pay for oneDNN's products, which take wide vectors."""
    return 1024 if problem.device_type == "cpu" and not wide_vectors() else 2048


def tiles(problem: Problem) -> Plan:
    """Every tile of rows with its spans; equal biases are one tensor."""
    keys = tile_keys(problem)
    biases: dict[tuple[int, int, int], Tensor | None] = {}
    plan: Plan = []
    for start in range(0, problem.tokens, tile_rows(problem)):
        rows = slice(start, min(start + tile_rows(problem), problem.tokens))
        diagonal, seen = seen_keys(problem, rows)
        spans: Spans = [(slice(first, min(first + keys, diagonal)), None) for first in range(0, diagonal, keys)]
        if seen > diagonal:
            shape = (rows.stop - rows.start, seen - diagonal, rows.start + problem.offset - diagonal)
            if shape not in biases:
                biases[shape] = _bias(problem, *shape)
            spans.append((slice(diagonal, seen), biases[shape]))
        plan.append((rows, spans))
    return plan


def seen_keys(problem: Problem, rows: slice) -> tuple[int, int]:
    """How many keys all rows of a tile see, and how many its last one sees."""
    if not problem.causal:
        return problem.kv_tokens, problem.kv_tokens
    first, last = (min(problem.kv_tokens, max(0, row + problem.offset)) for row in (rows.start, rows.stop))
    return first, last


def _bias(problem: Problem, rows: int, keys: int, diagonal: int) -> Tensor | None:
    row = torch.arange(rows, device=problem.device)[:, None] + diagonal
    hidden = torch.arange(keys, device=problem.device)[None, :] > row
    return hidden_bias(hidden, accumulator(TORCH_DTYPES[problem.dtype]))


def one_row_tile(
    q: Float[Tensor, "rows dim"], k: Float[Tensor, "keys dim"], v: Float[Tensor, "keys dim"], spans: Spans
) -> tuple[Float[Tensor, "rows dim"], Float[Tensor, "rows 1"]]:
    """Output and log-sum-exp of one tile of rows, by the online softmax over its spans of keys; scores to base 2."""
    q = q * (q.shape[1] ** -0.5 * LOG2_E)
    out, total = torch.zeros_like(q), q.new_zeros(len(q), 1)
    top = torch.full_like(total, -torch.inf)
    for span, bias in spans:
        scores = product(q, k[span].mT)
        if bias is not None:
            scores.add_(bias)
        new = torch.maximum(top, scores.amax(-1, keepdim=True))
        shift = visible(new)  # a row that has seen no key yet has -inf here
        scores.sub_(shift).exp2_()
        rescale = torch.exp2(top - shift)
        total.mul_(rescale).add_(scores.sum(-1, keepdim=True))
        out.mul_(rescale).add_(product(scores, v[span]))
        top = new
    return out.div_(total.masked_fill(total == 0, 1.0)), (visible(top) + total.log2()) * LN_2


def tile_gradients(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, grad: Tensor, lse: Tensor, delta: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of the scaled q, of k and of v, of one tile over one span, from its scores computed again.

    `delta` is the row sum of grad * output (FlashAttention-2, algorithm 2).
    """
    weights = product(q, k.mT)
    if bias is not None:
        weights.add_(bias)
    weights = exp_(weights.sub_(visible(lse)))
    grad_scores = product(grad, v.mT).sub_(delta).mul_(weights)
    return product(grad_scores, k), product(grad_scores.mT, q), product(weights.mT, grad)


class _OnlineSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
        wide = accumulator(q.dtype)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = torch.empty((*q.shape[:3], 1), dtype=wide, device=q.device)
        fo, fl = flatten_heads(out), flatten_heads(lse)
        for head, own_q, own_k, own_v in each_head(q, k, v, wide):
            for rows, spans in plan:
                fo[head, rows], fl[head, rows] = one_row_tile(own_q[rows].to(wide), own_k, own_v, spans)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan = plan  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        scale, group = q.shape[3] ** -0.5, q.shape[1] // max(1, k.shape[1])
        fg, fl, delta = (flatten_heads(x) for x in (grad, lse, row_delta(grad, out).unsqueeze(-1)))
        gradients = [torch.zeros(x.shape, dtype=lse.dtype, device=q.device) for x in (q, k, v)]
        dq, dk, dv = (flatten_heads(x) for x in gradients)
        for head, own_q, own_k, own_v in each_head(q, k, v, lse.dtype):
            shared = head // group
            for rows, spans in ctx.plan:  # type: ignore[attr-defined]  # set in forward
                scaled, slope = own_q[rows].to(lse.dtype) * scale, fg[head, rows].to(lse.dtype)
                for span, bias in spans:
                    lines = fl[head, rows], delta[head, rows]
                    tq, tk, tv = tile_gradients(scaled, own_k[span], own_v[span], bias, slope, *lines)
                    dq[head, rows].add_(tq, alpha=scale)
                    dk[shared, span] += tk
                    dv[shared, span] += tv
        return *(x.to(q.dtype) for x in gradients), None


def each_head(q: Tensor, k: Tensor, v: Tensor, wide: torch.dtype) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """The number of each query head, its queries, and the keys and values that it shares, those in the wide type."""
    fq, fk, fv = (flatten_heads(x) for x in (q, k, v))
    group = q.shape[1] // max(1, k.shape[1])
    for shared in range(fk.shape[0]):
        keys, values = fk[shared].to(wide).contiguous(), fv[shared].to(wide).contiguous()
        for head in range(shared * group, (shared + 1) * group):
            yield head, fq[head], keys, values


def online_softmax(
    q: Float[Tensor, "batch heads tokens head_dim"],
    k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    plan: Plan,
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Attention over the tiles of a plan; gradients by recomputation. A row that sees no key is zero."""
    out: Tensor = _OnlineSoftmax.apply(q, k, v, plan)  # type: ignore[no-untyped-call]  # torch types no apply
    return out


def online_workspace_bytes(problem: Problem) -> int:
    """Log-sum-exp, one head's widened keys, and a tile with its products; in training wide gradients too."""
    wide = max(4, problem.element_bytes)
    lse = wide * problem.batch * problem.heads * problem.tokens
    widened = 2 * wide * problem.kv_tokens * problem.head_dim if problem.element_bytes < wide else 0
    rows, keys = min(tile_rows(problem), problem.tokens), min(tile_keys(problem), problem.kv_tokens)
    tile = wide * (rows * keys + 6 * (rows + keys) * problem.head_dim)
    masks = 2 * wide * rows * rows if problem.causal else 0
    if problem.mode != "training":
        return lse + widened + tile + masks + SCRATCH_BYTES
    gradients = (problem.query_bytes + 2 * problem.key_bytes) // problem.element_bytes * wide
    extra = gradients if problem.element_bytes < wide else 0
    return 3 * lse + widened + extra + 3 * tile + masks + SCRATCH_BYTES
