"""Online softmax over tiles of queries and keys: no score matrix at any time."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.dtypes import TORCH_DTYPES
from variants.problem import Problem
from variants.tiles import (
    SCRATCH_BYTES,
    accumulator,
    attend_gradients,
    flatten_heads,
    hidden_bias,
    row_delta,
    scaled_scores,
    visible,
)
from variants.variant import Attention, variant

ROWS, KEYS, HEADS = 256, 1024, 2  # 2 MiB of float32 scores: the fastest of the tiles tried on a CPU


Spans = list[tuple[slice, Tensor | None]]
"""Slices of keys that a tile of rows sees, each with its bias where it crosses the diagonal."""


def tiles(problem: Problem) -> list[tuple[slice, Spans]]:
    """Every tile of rows with its spans; equal biases are one tensor."""
    biases: dict[tuple[int, int, int], Tensor | None] = {}
    plan = []
    for start in range(0, problem.tokens, ROWS):
        rows = slice(start, min(start + ROWS, problem.tokens))
        seen = min(problem.kv_tokens, rows.stop + problem.offset) if problem.causal else problem.kv_tokens
        spans: Spans = []
        for first in range(0, seen, KEYS):
            span = slice(first, min(first + KEYS, seen))
            shape = (rows.stop - rows.start, span.stop - span.start, rows.start + problem.offset - span.start)
            if shape not in biases:
                biases[shape] = _bias(problem, *shape) if problem.causal else None
            spans.append((span, biases[shape]))
        plan.append((rows, spans))
    return plan


def _bias(problem: Problem, rows: int, keys: int, diagonal: int) -> Tensor | None:
    row = torch.arange(rows, device=problem.device)[:, None] + diagonal
    hidden = torch.arange(keys, device=problem.device)[None, :] > row
    return hidden_bias(hidden, accumulator(TORCH_DTYPES[problem.dtype]))


def one_row_tile(q: Tensor, k: Tensor, v: Tensor, spans: Spans, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of one tile of rows, by the online softmax over its spans of keys."""
    out = torch.zeros(q.shape, dtype=wide, device=q.device)
    total = torch.zeros((*q.shape[:2], 1), dtype=wide, device=q.device)
    top = torch.full_like(total, -torch.inf)
    for span, bias in spans:
        scores = scaled_scores(q, k[:, span], bias)
        new = torch.maximum(top, scores.amax(-1, keepdim=True))
        shift = visible(new)  # a row that has seen no key yet has -inf here
        scores.sub_(shift).exp_()
        rescale = torch.exp(top - shift)
        total.mul_(rescale).add_(scores.sum(-1, keepdim=True))
        out.mul_(rescale).baddbmm_(scores, v[:, span].to(wide))
        top = new
    lse = (visible(top) + total.log()).squeeze(-1)
    return out.div_(total.masked_fill(total == 0, 1.0)), lse


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, plan: list[tuple[slice, Spans]]) -> Tensor:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = torch.empty(q.shape[:3], dtype=accumulator(q.dtype), device=q.device)
        fq, fo, fl = (flatten_heads(x) for x in (q, out, lse.unsqueeze(-1)))
        fk, fv = (shared_heads(x, q) for x in (k, v))
        for heads, rows, spans in steps(fq.shape[0], plan):
            tile, tile_lse = one_row_tile(fq[heads, rows], fk[heads], fv[heads], spans, lse.dtype)
            fo[heads, rows] = tile
            fl[heads, rows, 0] = tile_lse
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan = plan  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        group = q.shape[1] // k.shape[1]
        fq, fo, fl, fg = (flatten_heads(x) for x in (q, out, lse.unsqueeze(-1), grad))
        fk, fv = (shared_heads(x, q) for x in (k, v))
        dq = torch.zeros(fq.shape, dtype=lse.dtype, device=q.device)
        dk, dv = (torch.zeros(fk.shape, dtype=lse.dtype, device=q.device) for _ in range(2))
        delta = row_delta(fg, fo)
        for heads, rows, spans in steps(fq.shape[0], ctx.plan):  # type: ignore[attr-defined]  # set in forward
            for span, bias in spans:
                tq, tk, tv = attend_gradients(
                    fq[heads, rows],
                    fk[heads, span],
                    fv[heads, span],
                    bias,
                    fg[heads, rows],
                    fl[heads, rows, 0],
                    delta[heads, rows],
                )
                dq[heads, rows] += tq
                dk[heads, span] += tk
                dv[heads, span] += tv
        dk, dv = (x.view(*k.shape[:2], group, *k.shape[2:]).sum(2) for x in (dk, dv))
        return dq.view(q.shape).to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None


def steps(heads: int, plan: list[tuple[slice, Spans]]) -> Iterator[tuple[slice, slice, Spans]]:
    """Every step of work: a few heads, a tile of rows, and the spans of keys that it sees."""
    for first in range(0, heads, HEADS):
        for rows, spans in plan:
            yield slice(first, first + HEADS), rows, spans


def shared_heads(x: Tensor, q: Tensor) -> Tensor:
    """Keys or values with heads flattened, repeated for grouped queries."""
    return flatten_heads(x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) if q.shape[1] != x.shape[1] else x)


def workspace_bytes(problem: Problem) -> int:
    """Log-sum-exp, repeated keys of grouped queries, and a step's tiles; in training wide gradients too."""
    wide = max(4, problem.element_bytes)
    lse = wide * problem.batch * problem.heads * problem.tokens
    repeated = 2 * problem.key_bytes * problem.group if problem.group > 1 else 0
    rows, keys = min(ROWS, problem.tokens), min(KEYS, problem.kv_tokens)
    tile = HEADS * wide * (rows * keys + 4 * (rows + keys) * problem.head_dim)
    masks = (KEYS // ROWS + 1) * wide * rows * keys if problem.causal else 0
    if problem.mode != "training":
        return lse + repeated + tile + masks + SCRATCH_BYTES
    gradients = (problem.query_bytes + 2 * problem.key_bytes * problem.group) // problem.element_bytes * wide
    extra = gradients if repeated or problem.element_bytes < wide else 0
    return 2 * lse + repeated + extra + 3 * tile + masks + SCRATCH_BYTES


def executed_flops(problem: Problem) -> int:
    """The pairs of every tile that holds a visible one."""
    pairs = 0
    for start in range(0, problem.tokens, ROWS):
        stop = min(start + ROWS, problem.tokens)
        seen = min(problem.kv_tokens, stop + problem.offset) if problem.causal else problem.kv_tokens
        pairs += (stop - start) * max(0, seen)
    forward = 4 * problem.batch * problem.heads * problem.head_dim * pairs
    return round(forward * 3.5) if problem.mode == "training" else forward


@variant(
    "memory_efficient/chunked",
    summary="online softmax over tiles, gradients by recomputation",
    devices=("cpu", "cuda"),
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    source="arXiv:2112.05682, section 2; arXiv:2205.14135, algorithm 1",
)
def build(problem: Problem) -> Attention:
    """The tiles and the biases of those on the diagonal are laid out here."""
    plan = tiles(problem)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        out: Tensor = _Chunked.apply(q, k, v, plan)  # type: ignore[no-untyped-call]  # torch types no apply
        return out

    return run
