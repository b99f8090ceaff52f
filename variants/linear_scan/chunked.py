"""Chunkwise-parallel: within a chunk by a masked product, between chunks by the state."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from variants.dtypes import TORCH_DTYPES
from variants.linear_scan import DEFINITION
from variants.powers import by_powers_of_two, exp_
from variants.problem import Problem
from variants.products import product
from variants.tiles import CACHE_ELEMENTS, SCRATCH_BYTES, accumulator, flatten_heads
from variants.variant import Attention, variant

CHUNK = 64


def feature(x: Tensor) -> Tensor:
    """elu(x) + 1 in at least float32."""
    x = x.to(accumulator(x.dtype))
    return exp_(x.clamp(max=0)).add_(x.clamp(min=0)) if by_powers_of_two(x) else functional.elu(x).add_(1.0)


def feature_slope(features: Tensor) -> Tensor:
    """The derivative of elu(x) + 1, from its value: e^x below 0, 1 above."""
    return features.clamp(max=1.0)


def chunks_at_once(heads: int, head_dim: int) -> int:
    """How many chunks of all heads are taken together: as many as fit the cache."""
    return max(1, CACHE_ELEMENTS // (max(1, heads) * CHUNK * head_dim))


class _Causal(torch.autograd.Function):
    """Rows of q meet keys up to their own index; the states before the groups are kept for the backward pass."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        wide = accumulator(q.dtype)
        before = k.shape[1] - q.shape[1]
        state, total = _sums(feature(k[:, :before]), v[:, :before].to(wide))
        normaliser = torch.empty((*q.shape[:2], 1), dtype=wide, device=q.device)
        training = any(ctx.needs_input_grad)  # type: ignore[attr-defined]  # set by apply
        kept = []
        for rows, chunks in _groups(q):
            keys = slice(rows.start + before, rows.stop + before)
            a, b, w = (_chunk(x, chunks) for x in (feature(q[:, rows]), feature(k[:, keys]), v[:, keys].to(wide)))
            if training:
                kept.append(torch.cat((state, total), -1))
            states, totals = _running(state, b.mT @ w), _running(total, b.sum(2).unsqueeze(-1))
            weights = (a @ b.mT).mul_(mask[: a.shape[2], : a.shape[2]])
            sums = weights.sum(-1, keepdim=True).add_((a * totals[:, :-1].mT).sum(-1, keepdim=True))
            out[:, rows] = (weights @ w).add_(a @ states[:, :-1]).div_(sums).flatten(1, 2)
            normaliser[:, rows] = sums.flatten(1, 2)
            state, total = states[:, -1], totals[:, -1]
        if training:
            ctx.save_for_backward(q, k, v, out, normaliser, mask, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, normaliser, mask, *kept = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        wide = normaliser.dtype
        before = k.shape[1] - q.shape[1]
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        later: State = normaliser.new_zeros(q.shape[0], q.shape[2], v.shape[2] + 1).tensor_split([-1], -1)
        for (rows, chunks), earlier in zip(reversed(_groups(q)), reversed(kept), strict=True):
            keys = slice(rows.start + before, rows.stop + before)
            above = grad[:, rows].to(wide) / normaliser[:, rows]  # gradient of the numerator
            below = (above * out[:, rows].to(wide)).sum(-1, keepdim=True).neg_()  # gradient of the normaliser
            inputs = feature(q[:, rows]), feature(k[:, keys]), v[:, keys].to(wide), above, below
            parts, later = _gradients([_chunk(x, chunks) for x in inputs], earlier.tensor_split([-1], -1), later, mask)
            for whole, taken, part in zip((dq, dk, dv), (rows, keys, keys), parts, strict=True):
                whole[:, taken] = part.flatten(1, 2)
        b = feature(k[:, :before])
        dk[:, :before] = (v[:, :before].to(wide) @ later[0].mT).add_(later[1].mT).mul_(feature_slope(b))
        dv[:, :before] = b @ later[0]
        return dq, dk, dv, None


State = Sequence[Tensor]
"""Two: sums of φ(k) vᵀ and of φ(k), or in the backward pass of φ(q) with the gradients of both."""


def _gradients(inputs: list[Tensor], earlier: State, later: State, mask: Tensor) -> tuple[list[Tensor], State]:
    """Gradients of the chunks of one group, and the state that earlier chunks see behind them.

    dφ(q)_i = Σ_{j≤i} (above_i·v_j + below_i) φ(k_j); dφ(k)_j and dv_j are such sums over i ≥ j.
    """
    a, b, w, above, below = inputs
    seen = mask[: a.shape[2], : a.shape[2]]
    states, totals = _running(earlier[0], b.mT @ w), _running(earlier[1], b.sum(2).unsqueeze(-1))
    inner = (above @ w.mT).add_(below).mul_(seen)
    dq = (inner @ b).add_(above @ states[:, :-1].mT).addcmul_(below, totals[:, :-1].mT).mul_(feature_slope(a))
    states, totals = _running_back(later[0], a.mT @ above), _running_back(later[1], (a * below).sum(2).unsqueeze(-1))
    dk = (inner.mT @ a).add_(w @ states[:, 1:].mT).add_(totals[:, 1:].mT).mul_(feature_slope(b))
    weights = (a @ b.mT).mul_(seen)
    dv = (weights.mT @ above).add_(b @ states[:, 1:])
    return [dq, dk, dv], (states[:, 0], totals[:, 0])


def _sums(b: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """State and normaliser of a stretch of keys."""
    return b.mT @ w, b.sum(1, keepdim=True).mT


def _running(first: Tensor, steps: Tensor) -> Tensor:
    """Running sums over the chunks, `first` before them; a cumsum would take six times as long."""
    states = torch.cat((first.unsqueeze(1), steps), 1)
    for chunk in range(steps.shape[1]):
        states[:, chunk + 1] += states[:, chunk]
    return states


def _running_back(last: Tensor, steps: Tensor) -> Tensor:
    """The same from the last chunk to the first, `last` behind them."""
    states = torch.cat((steps, last.unsqueeze(1)), 1)
    for chunk in reversed(range(steps.shape[1])):
        states[:, chunk] += states[:, chunk + 1]
    return states


def _chunk(x: Tensor, chunks: int) -> Tensor:
    chunked: Tensor = x.unflatten(1, (chunks, -1))
    return chunked


def _groups(q: Tensor) -> list[tuple[slice, int]]:
    """Row slices that fit the cache, each with its number of equal chunks; the remainder is one short chunk."""
    step = chunks_at_once(q.shape[0], q.shape[2])
    whole = q.shape[1] // CHUNK
    groups = []
    for first in range(0, whole, step):
        chunks = min(step, whole - first)
        groups.append((slice(first * CHUNK, (first + chunks) * CHUNK), chunks))
    if q.shape[1] % CHUNK:
        groups.append((slice(whole * CHUNK, q.shape[1]), 1))
    return groups


class _Whole(torch.autograd.Function):
    """Without a causal mask: one state for all queries."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        wide = accumulator(v.dtype)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        normaliser = torch.ones((*q.shape[:2], 1), dtype=wide, device=q.device)
        state = torch.empty(q.shape[0], k.shape[2], v.shape[2], dtype=wide, device=q.device)
        total = torch.empty(q.shape[0], k.shape[2], 1, dtype=wide, device=q.device)
        # Head by head: what is made of one fits the cache.
        for head in range(q.shape[0]):
            b = feature(k[head])
            state[head] = product(b.mT, v[head].to(wide))
            total[head] = b.sum(0).unsqueeze(1)
            a = feature(q[head])
            if k.shape[1]:
                normaliser[head] = a @ total[head]
            torch.div(product(a, state[head]), normaliser[head], out=out[head])
        ctx.save_for_backward(q, k, v, out, normaliser, state, total)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, out, normaliser, state, total = ctx.saved_tensors  # type: ignore[attr-defined]  # as above
        wide = normaliser.dtype
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        for head in range(q.shape[0]):
            above = grad[head].to(wide) / normaliser[head]
            below = (above * out[head].to(wide)).sum(-1, keepdim=True).neg_()
            a = feature(q[head])
            dq[head] = product(above, state[head].mT).add_(below * total[head].mT).mul_(feature_slope(a))
            later, totals = product(a.mT, above), a.mT @ below
            b = feature(k[head])
            dk[head] = product(v[head].to(wide), later.mT).add_(totals.mT).mul_(feature_slope(b))
            dv[head] = product(b, later)
        return dq, dk, dv


def workspace_bytes(problem: Problem) -> int:
    """Causal: a group of chunks, in training with the states before each; otherwise the features of one head."""
    wide = max(4, problem.element_bytes)
    heads = problem.batch * problem.heads
    query, key = (heads * n * problem.head_dim * wide for n in (problem.tokens, problem.kv_tokens))
    repeated = 2 * key if problem.group > 1 else 0
    held = heads * problem.tokens * wide + 3 * heads * problem.head_dim**2 * wide
    group = min(chunks_at_once(heads, problem.head_dim), max(1, problem.tokens // CHUNK)) * heads * CHUNK * wide
    if problem.mode == "training" and problem.causal:
        groups = problem.tokens // (CHUNK * chunks_at_once(heads, problem.head_dim)) + 2
        before = 4 * max(0, problem.offset) * heads * problem.head_dim * wide
        states = groups * heads * problem.head_dim * (problem.head_dim + 1) * wide
        return before + 2 * repeated + held + states + 16 * group * max(problem.head_dim, CHUNK) + SCRATCH_BYTES
    if problem.mode == "training":
        return 3 * query + 4 * key + repeated + held + SCRATCH_BYTES
    if not problem.causal:
        return max(query, key) + query // 2 + repeated + held + SCRATCH_BYTES
    before = max(0, problem.offset) * heads * problem.head_dim * wide
    return before + repeated + held + 8 * group * max(problem.head_dim, CHUNK) + SCRATCH_BYTES


def executed_flops(problem: Problem) -> int:
    """The formula's work, and for causal problems the products within each chunk."""
    useful = DEFINITION.useful_flops(problem)
    inside = 4 * problem.batch * problem.heads * problem.head_dim * problem.tokens * CHUNK if problem.causal else 0
    return useful + (round(inside * 2.5) if problem.mode == "training" else inside)


@variant(
    "linear_scan/chunked",
    summary="chunks by masked products, the state between them",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    source="arXiv:2006.16236; chunkwise form: arXiv:2312.06635, section 4",
)
def build(problem: Problem) -> Attention:
    """The mask of one chunk is built here."""
    wide = accumulator(TORCH_DTYPES[problem.dtype])
    mask = torch.ones(CHUNK, CHUNK, dtype=wide, device=problem.device).tril_()
    blind = max(0, -problem.offset)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        if problem.group > 1:
            k, v = (x.repeat_interleave(problem.group, 1) for x in (k, v))
        fk, fv = flatten_heads(k), flatten_heads(v)
        if not problem.causal:
            out: Tensor = _Whole.apply(flatten_heads(q), fk, fv)  # type: ignore[no-untyped-call]  # torch types no apply
            return out.view(q.shape)
        seeing: Tensor = _Causal.apply(flatten_heads(q[:, :, blind:]), fk, fv, mask)  # type: ignore[no-untyped-call]  # torch types no apply
        seeing = seeing.unflatten(0, q.shape[:2])
        return functional.pad(seeing, (0, 0, blind, 0)) if blind else seeing

    return run
