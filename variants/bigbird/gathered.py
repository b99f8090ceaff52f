"""The blocks in sight gathered for each inner block, one head at a time; the global blocks see all keys."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from variants.bigbird import ENCODERS_ONLY, SELF_ATTENTION, random_blocks
from variants.dtypes import TORCH_DTYPES
from variants.problem import Problem
from variants.tiles import (
    CACHE_ELEMENTS,
    SCRATCH_BYTES,
    accumulator,
    attend,
    attend_gradients,
    flatten_heads,
    hidden_bias,
    row_delta,
)
from variants.variant import Attention, variant


@dataclass(frozen=True, slots=True)
class Sight:
    """Query blocks with the key blocks that each sees: `first` the first of them, `blocks` (heads, tiles, seen).

    `bias` (heads, tiles, 1, seen * block) hides the filling: keys beyond the last, and places left over.
    """

    first: int
    blocks: Tensor
    bias: Tensor | None


def plan(problem: Problem, block: int, random: int) -> list[Sight]:
    """The inner blocks, each with the blocks it sees; and the two global blocks with all."""
    count = -(-problem.tokens // block)
    number = torch.arange(count, device=problem.device)
    every = number.expand(problem.heads, 1, count)
    borders = [_sight(problem, block, first, every, every >= 0) for first in sorted({0, count - 1} if count else ())]
    if count <= 2:
        return borders
    seen = random_blocks(problem.heads, count, random).to(problem.device)
    seen = seen | ((number[:, None] - number[None, :]).abs() <= 1) | (number == 0) | (number == count - 1)
    seen = seen[:, 1:-1]
    most = int(seen.sum(-1).max())
    order = seen.to(torch.int8).sort(dim=-1, descending=True, stable=True)
    return [*borders, _sight(problem, block, 1, order.indices[..., :most], order.values[..., :most] > 0)]


def _sight(problem: Problem, block: int, first: int, blocks: Tensor, used: Tensor) -> Sight:
    key = blocks.unsqueeze(-1) * block + torch.arange(block, device=problem.device)
    hidden = (key >= problem.tokens) | ~used.unsqueeze(-1)
    bias = hidden_bias(hidden.flatten(2).unsqueeze(2), TORCH_DTYPES[problem.dtype])
    return Sight(first, blocks, bias)


def steps(sight: Sight, head: int, block: int) -> list[tuple[slice, Tensor, Tensor | None]]:
    """One head's tiles in steps that fit the cache: slices of query blocks, their key blocks and biases."""
    blocks = sight.blocks[head]
    at_once = tiles_at_once(block, blocks.shape[1])
    pieces = []
    for start in range(0, len(blocks), at_once):
        stop = min(start + at_once, len(blocks))
        bias = None if sight.bias is None else sight.bias[head, start:stop].unsqueeze(0)
        pieces.append((slice(sight.first + start, sight.first + stop), blocks[start:stop], bias))
    return pieces


def tiles_at_once(block: int, seen: int) -> int:
    """Query blocks of a step: their scores fit the cache, and there is at least one."""
    return max(1, CACHE_ELEMENTS // max(1, block * block * seen))


def in_blocks(x: Float[Tensor, "tokens dim"], block: int) -> Float[Tensor, "blocks block dim"]:
    """The tokens in blocks, the last filled up with zeros."""
    filled = functional.pad(x, (0, 0, 0, -len(x) % block))
    blocks: Tensor = filled.unflatten(0, (-1, block))
    return blocks


def gather(x: Float[Tensor, "blocks block dim"], blocks: Tensor) -> Float[Tensor, "1 tiles keys dim"]:
    """The keys of the blocks that each tile sees."""
    return x[blocks].flatten(1, 2).unsqueeze(0)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, sights: list[Sight], block: int) -> Tensor:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = q.new_empty(q.shape[:3], dtype=accumulator(q.dtype))
        fq, fk, fv, fo, fl = (flatten_heads(x) for x in (q, k, v, out, lse.unsqueeze(-1)))
        group = q.shape[1] // k.shape[1]
        for head in range(fq.shape[0]):
            own_q, own_k, own_v = (in_blocks(x, block) for x in (fq[head], fk[head // group], fv[head // group]))
            for sight in sights:
                for rows, blocks, bias in steps(sight, head % q.shape[1], block):
                    tile, line = attend(own_q[None, rows], gather(own_k, blocks), gather(own_v, blocks), bias)
                    span = slice(rows.start * block, min(rows.stop * block, q.shape[2]))
                    fo[head, span] = tile[0].flatten(0, 1)[: span.stop - span.start]
                    fl[head, span, 0] = line[0].flatten()[: span.stop - span.start]
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan = sights, block  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        sights, block = ctx.plan  # type: ignore[attr-defined]  # set in forward
        wide = lse.dtype
        dq, dk, dv = (torch.zeros(x.shape, dtype=wide, device=q.device) for x in (q, k, v))
        fq, fk, fv, fg, fo, fl = (flatten_heads(x) for x in (q, k, v, grad, out, lse.unsqueeze(-1)))
        fdq, fdk, fdv = (flatten_heads(x) for x in (dq, dk, dv))
        group = q.shape[1] // k.shape[1]
        for head in range(fq.shape[0]):
            shared = head // group
            # The filling has no gradient, and with a finite log-sum-exp no weight that overflows.
            inputs = fq[head], fg[head], fl[head], row_delta(fg[head], fo[head]).unsqueeze(-1)
            own_q, own_g, own_l, own_d = (in_blocks(x, block) for x in inputs)
            own_k, own_v = (in_blocks(x[shared], block) for x in (fk, fv))
            sums = [torch.zeros(own_k.shape, dtype=wide, device=q.device) for _ in range(2)]
            for sight in sights:
                for rows, blocks, bias in steps(sight, head % q.shape[1], block):
                    lines = own_l[None, rows].squeeze(-1), own_d[None, rows].squeeze(-1)
                    keys = gather(own_k, blocks), gather(own_v, blocks)
                    tq, *parts = attend_gradients(own_q[None, rows], *keys, bias, own_g[None, rows], *lines)
                    span = slice(rows.start * block, min(rows.stop * block, q.shape[2]))
                    fdq[head, span] = tq[0].flatten(0, 1)[: span.stop - span.start]
                    for total, part in zip(sums, parts, strict=True):
                        total.index_add_(0, blocks.flatten(), part[0].unflatten(1, (-1, block)).flatten(0, 1))
            fdk[shared] += sums[0].flatten(0, 1)[: k.shape[2]]
            fdv[shared] += sums[1].flatten(0, 1)[: k.shape[2]]
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


def seen_blocks(problem: Problem, block: int, random: int) -> int:
    """Blocks that an inner block sees, at most."""
    return min(-(-problem.tokens // block), 5 + random)


def workspace_bytes(problem: Problem, *, block: int, random: int) -> int:
    """The blocks in sight and their biases, one head in blocks and a step's gathered keys; in training more."""
    wide = max(4, problem.element_bytes)
    size = problem.element_bytes
    count = -(-problem.tokens // block)
    seen = seen_blocks(problem, block, random)
    places = problem.heads * (count * seen + 2 * count)
    held = places * (8 + (block * size if seen < 5 + random or problem.tokens % block else 0))
    held += problem.heads * count * seen * block * size  # edges see fewer blocks: their places are hidden
    lse = wide * problem.batch * problem.heads * problem.tokens
    head = 3 * count * block * problem.head_dim * size
    tiles = min(count, tiles_at_once(block, seen))
    keys = max(tiles * seen, count) * block
    step = problem.head_dim * size * 2 * (2 * keys + tiles * block)
    if problem.mode != "training":
        return held + lse + head + step + SCRATCH_BYTES
    scores = wide * 2 * max(tiles * seen, count) * block * block
    step += scores + wide * problem.head_dim * (4 * keys + 4 * tiles * block)
    widened = problem.input_output_bytes // 2 * wide // size if size < wide else 0
    return held + lse + 3 * head * wide // size + step + widened + SCRATCH_BYTES


def executed_flops(problem: Problem, *, block: int, random: int) -> int:
    """Every place of every block, the filling included."""
    count = -(-problem.tokens // block)
    tiles = max(0, count - 2) * seen_blocks(problem, block, random) + min(count, 2) * count
    forward = 4 * problem.batch * problem.heads * problem.head_dim * tiles * block * block
    return round(forward * 3.5) if problem.mode == "training" else forward


@variant(
    "bigbird/gathered",
    summary="the blocks in sight gathered for each block",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=(ENCODERS_ONLY, SELF_ATTENTION),
)
def build(problem: Problem, *, block: int, random: int) -> Attention:
    """The random blocks are drawn here, and what each block sees is laid out."""
    sights = plan(problem, block, random)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        out: Tensor = _Gathered.apply(q, k, v, sights, block)  # type: ignore[no-untyped-call]  # torch types no apply
        return out

    return run
