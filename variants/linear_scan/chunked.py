"""Chunkwise-parallel: within a chunk by a masked product, between chunks by the state."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from variants.dtypes import TORCH_DTYPES
from variants.linear_scan import DEFINITION
from variants.problem import Problem
from variants.tiles import CACHE_ELEMENTS, SCRATCH_BYTES, accumulator, flatten_heads
from variants.variant import Attention, variant

CHUNK = 64


def feature(x: Tensor) -> Tensor:
    """elu(x) + 1 in at least float32."""
    return functional.elu(x.to(accumulator(x.dtype))).add_(1.0)


def feature_slope(x: Tensor) -> Tensor:
    """The derivative of elu(x) + 1: e^x below 0, 1 above."""
    return x.to(accumulator(x.dtype)).clamp(max=0.0).exp_()


def chunks_at_once(heads: int, head_dim: int) -> int:
    """How many chunks of all heads are taken together: as many as fit the cache."""
    return max(1, CACHE_ELEMENTS // (max(1, heads) * CHUNK * head_dim))


class _Causal(torch.autograd.Function):
    """Rows of q meet keys up to their own index; `state` and `total` hold what came before row 0."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        wide = accumulator(q.dtype)
        before = k.shape[1] - q.shape[1]
        state, total = _sums(feature(k[:, :before]), v[:, :before].to(wide))
        normaliser = torch.empty((*q.shape[:2], 1), dtype=wide, device=q.device)
        for rows, chunks in _groups(q):
            keys = slice(rows.start + before, rows.stop + before)
            a, b, w = (_chunk(x, chunks) for x in (feature(q[:, rows]), feature(k[:, keys]), v[:, keys].to(wide)))
            states = _running(state, b.mT @ w)
            totals = _running(total, b.sum(2, keepdim=True).mT)
            weights = (a @ b.mT).mul_(mask[: a.shape[2], : a.shape[2]])
            tile = (weights @ w).add_(a @ states[:, :-1])
            sums = weights.sum(-1, keepdim=True).add_(a @ totals[:, :-1])
            out[:, rows] = tile.div_(sums).flatten(1, 2)
            normaliser[:, rows] = sums.flatten(1, 2)
            state, total = states[:, -1], totals[:, -1]
        ctx.save_for_backward(q, k, v, out, normaliser, mask)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, normaliser, mask = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        wide = normaliser.dtype
        above = grad.to(wide) / normaliser  # gradient of the numerator
        below = -(above * out.to(wide)).sum(-1, keepdim=True)  # gradient of the normaliser
        dq = _query_gradient(q, k, v, above, below, mask).mul_(feature_slope(q))
        dk, dv = _key_gradients(q, k, v, above, below, mask)
        return dq.to(q.dtype), dk.mul_(feature_slope(k)).to(k.dtype), dv.to(v.dtype), None


def _query_gradient(q: Tensor, k: Tensor, v: Tensor, above: Tensor, below: Tensor, mask: Tensor) -> Tensor:
    """Σ_{j≤i} (above_i·v_j + below_i) φ(k_j), chunk by chunk in the order of the scan."""
    wide = above.dtype
    before = k.shape[1] - q.shape[1]
    state, total = _sums(feature(k[:, :before]), v[:, :before].to(wide))
    dq = torch.empty(q.shape, dtype=wide, device=q.device)
    for rows, chunks in _groups(q):
        keys = slice(rows.start + before, rows.stop + before)
        b, w = (_chunk(x, chunks) for x in (feature(k[:, keys]), v[:, keys].to(wide)))
        up, low = _chunk(above[:, rows], chunks), _chunk(below[:, rows], chunks)
        states = _running(state, b.mT @ w)
        totals = _running(total, b.sum(2, keepdim=True).mT)
        inner = (up @ w.mT).add_(low).mul_(mask[: up.shape[2], : up.shape[2]])
        tile = (inner @ b).add_(up @ states[:, :-1].mT).add_(low * totals[:, :-1].mT)
        dq[:, rows] = tile.flatten(1, 2)
        state, total = states[:, -1], totals[:, -1]
    return dq


def _key_gradients(
    q: Tensor, k: Tensor, v: Tensor, above: Tensor, below: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Σ_{i≥j} of the same, for φ(k_j) and v_j, chunk by chunk from the end."""
    wide = above.dtype
    before = k.shape[1] - q.shape[1]
    dk, dv = (torch.empty(k.shape, dtype=wide, device=q.device) for _ in range(2))
    state = above.new_zeros(q.shape[0], q.shape[2], v.shape[2])
    total = above.new_zeros(q.shape[0], q.shape[2], 1)
    for rows, chunks in reversed(list(_groups(q))):
        keys = slice(rows.start + before, rows.stop + before)
        a, b, w = (_chunk(x, chunks) for x in (feature(q[:, rows]), feature(k[:, keys]), v[:, keys].to(wide)))
        up, low = _chunk(above[:, rows], chunks), _chunk(below[:, rows], chunks)
        states = _running(state, (a.mT @ up).flip(1)).flip(1)
        totals = _running(total, (a.mT @ low).flip(1)).flip(1)
        seen = mask[: a.shape[2], : a.shape[2]]
        inner = (up @ w.mT).add_(low).mul_(seen)
        dk[:, keys] = (inner.mT @ a).add_(w @ states[:, 1:].mT).add_(totals[:, 1:].mT).flatten(1, 2)
        weights = (a @ b.mT).mul_(seen)
        dv[:, keys] = (weights.mT @ up).add_(b @ states[:, 1:]).flatten(1, 2)
        state, total = states[:, 0], totals[:, 0]
    dk[:, :before] = (v[:, :before].to(wide) @ state.mT).add_(total.mT)
    dv[:, :before] = feature(k[:, :before]) @ state
    return dk, dv


def _sums(b: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """State and normaliser of a stretch of keys."""
    return b.mT @ w, b.sum(1, keepdim=True).mT


def _running(first: Tensor, steps: Tensor) -> Tensor:
    """Running sums over the chunks, `first` before them."""
    return torch.cat((first.unsqueeze(1), steps), 1).cumsum_(1)


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
        state, total = _sums(feature(k), v.to(accumulator(v.dtype)))
        a = feature(q)
        normaliser = a @ total if k.shape[1] else a.new_ones(*a.shape[:2], 1)
        out = (a @ state).div_(normaliser).to(q.dtype)
        ctx.save_for_backward(q, k, v, out, normaliser, state, total)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, out, normaliser, state, total = ctx.saved_tensors  # type: ignore[attr-defined]  # as above
        wide = normaliser.dtype
        above = grad.to(wide) / normaliser
        below = -(above * out.to(wide)).sum(-1, keepdim=True)
        dq = (above @ state.mT).add_(below * total.mT).mul_(feature_slope(q))
        a = feature(q)
        state, total = a.mT @ above, a.mT @ below
        dk = (v.to(wide) @ state.mT).add_(total.mT).mul_(feature_slope(k))
        dv = feature(k) @ state
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def workspace_bytes(problem: Problem) -> int:
    """Causal: a group of chunks; otherwise the features. In training the wide gradients besides."""
    wide = max(4, problem.element_bytes)
    heads = problem.batch * problem.heads
    query, key = (heads * n * problem.head_dim * wide for n in (problem.tokens, problem.kv_tokens))
    repeated = 2 * key if problem.group > 1 else 0
    held = heads * problem.tokens * wide + 3 * heads * problem.head_dim**2 * wide
    group = min(chunks_at_once(heads, problem.head_dim), max(1, problem.tokens // CHUNK)) * heads * CHUNK * wide
    if problem.mode == "training":
        return 3 * query + 4 * key + repeated + held + 8 * group * max(problem.head_dim, CHUNK) + SCRATCH_BYTES
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
