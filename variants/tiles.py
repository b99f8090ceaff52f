"""Building blocks of the tiled variants: fused tiles, their gradients, and overlapping views.

A tile's `bias` is added to the scaled scores; a hidden pair has -inf. All functions take and
return tensors with any number of leading axes, tiles last but two.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from variants.powers import exp_
from variants.problem import Problem

CACHE_ELEMENTS = 2**18
"""Elements of one operand that a step should touch: 1 MiB in float32, half of a common L2 cache."""

SCRATCH_BYTES = 2**20
"""Allowance for the fused kernels' buffers per thread and for small tensors, in predictions of memory."""


@dataclass(frozen=True, slots=True)
class Band:
    """Equal tiles of consecutive queries, each over its own, possibly overlapping, span of keys.

    Tile t holds the queries from `first_row + t * rows` on and the `keys` keys from
    `first_key + t * rows` on; `bias` is (rows, keys), or None where every pair is visible.
    """

    first_row: int
    rows: int
    tiles: int
    first_key: int
    keys: int
    bias: Tensor | None

    def parts(self, tiles: int) -> list["Band"]:
        """The same band in pieces of at most that many tiles."""
        return [
            replace(
                self,
                first_row=self.first_row + index * self.rows,
                first_key=self.first_key + index * self.rows,
                tiles=min(tiles, self.tiles - index),
            )
            for index in range(0, self.tiles, tiles)
        ]

    def query_tiles(self, x: Float[Tensor, "heads tokens dim"]) -> Float[Tensor, "heads tiles rows dim"]:
        """A view of the band's query rows."""
        rows: Tensor = x[:, self.first_row : self.first_row + self.tiles * self.rows]
        tiles: Tensor = rows.unflatten(1, (self.tiles, self.rows))
        return tiles

    def key_tiles(self, x: Float[Tensor, "heads kv_tokens dim"]) -> Float[Tensor, "heads tiles keys dim"]:
        """An overlapping view of the band's keys: no copy, and not to be written to."""
        last = self.first_key + (self.tiles - 1) * self.rows + self.keys
        return x[:, self.first_key : last].unfold(1, self.keys, self.rows).transpose(2, 3)

    def add_to_keys(
        self, x: Float[Tensor, "heads kv_tokens dim"], gradient: Float[Tensor, "heads tiles keys dim"]
    ) -> None:
        """Overlap-add: the adjoint of `key_tiles`, a column of tiles at a time so that no two writes meet."""
        if self.tiles == 1:
            x[:, self.first_key : self.first_key + self.keys].add_(gradient[:, 0])
            return
        for start in range(0, self.keys, self.rows):
            part = gradient[:, :, start : start + self.rows]
            first = self.first_key + start
            last = first + (self.tiles - 1) * self.rows + part.shape[2]
            x[:, first:last].unfold(1, part.shape[2], self.rows).transpose(2, 3).add_(part)


def attend(
    q: Float[Tensor, "heads tiles rows dim"],
    k: Float[Tensor, "heads tiles keys dim"],
    v: Float[Tensor, "heads tiles keys dim"],
    bias: Tensor | None,
) -> tuple[Float[Tensor, "heads tiles rows dim"], Float[Tensor, "heads tiles rows"]]:
    """Exact attention of every tile, with the log-sum-exp of its scores (float32 or float64)."""
    if q.device.type == "cpu":
        if bias is not None:
            bias = bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = fused(q, k, v, 0.0, False, attn_mask=bias)
        return out, lse
    scores = scaled_scores(q, k, bias)
    lse = torch.logsumexp(scores, -1)
    weights = torch.exp(scores - visible(lse).unsqueeze(-1))
    return (weights @ v.to(weights.dtype)).to(q.dtype), lse


def attend_gradients(
    q: Float[Tensor, "*tiles rows dim"],
    k: Float[Tensor, "*#tiles keys dim"],
    v: Float[Tensor, "*#tiles keys dim"],
    bias: Tensor | None,
    grad: Float[Tensor, "*tiles rows dim"],
    lse: Float[Tensor, "*tiles rows"],
    delta: Float[Tensor, "*tiles rows"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v from recomputed scores, in at least float32.

    `lse` normalises the scores: that of the whole row, where the tile is a part of it.
    `delta` is the row sum of grad * output (FlashAttention-2, algorithm 2).
    """
    weights = exp_(scaled_scores(q, k, bias).sub_(visible(lse).unsqueeze(-1)))
    grad, v = grad.to(weights.dtype), v.to(weights.dtype)
    grad_v = weights.mT @ grad
    grad_scores = (grad @ v.mT).sub_(delta.unsqueeze(-1)).mul_(weights).mul_(q.shape[-1] ** -0.5)
    return grad_scores @ k.to(weights.dtype), grad_scores.mT @ q.to(weights.dtype), grad_v


def fused_gradients(
    q: Float[Tensor, "heads tiles rows dim"],
    k: Float[Tensor, "heads tiles keys dim"],
    v: Float[Tensor, "heads tiles keys dim"],
    bias: Tensor | None,
    grad: Float[Tensor, "heads tiles rows dim"],
    lse: Float[Tensor, "heads tiles rows"],
    out: Float[Tensor, "heads tiles rows dim"],
) -> tuple[Tensor, Tensor, Tensor]:
    """The same from the output of the whole rows, by the CPU's fused kernel where that keeps wide sums."""
    if q.device.type != "cpu" or q.dtype != accumulator(q.dtype):
        return attend_gradients(q, k, v, bias, grad, lse, row_delta(grad, out))
    if bias is not None:
        bias = bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    gradients: tuple[Tensor, Tensor, Tensor] = fused(grad, q, k, v, out, visible(lse), 0.0, False, attn_mask=bias)
    return gradients


def scaled_scores(
    q: Float[Tensor, "*tiles rows dim"], k: Float[Tensor, "*#tiles keys dim"], bias: Tensor | None
) -> Float[Tensor, "*tiles rows keys"]:
    """q k^T / sqrt(d) + bias, in at least float32."""
    wide = accumulator(q.dtype)
    scores: Tensor = (q.to(wide) * q.shape[-1] ** -0.5) @ k.to(wide).mT
    return scores if bias is None else scores.add_(bias)


def visible(lse: Tensor) -> Tensor:
    """The log-sum-exp, with 0 where a row sees no key, so that its weights become exp(-inf) = 0."""
    return lse.masked_fill(lse == -math.inf, 0.0)


def row_delta(grad: Tensor, out: Tensor) -> Tensor:
    """The row sums of grad * out, in at least float32."""
    wide = accumulator(out.dtype)
    return (grad.to(wide) * out.to(wide)).sum(-1)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums are kept: float32 for the half types, else the dtype itself."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def head_groups(
    q: Float[Tensor, "batch heads tokens dim"], k: Float[Tensor, "batch kv_heads kv_tokens dim"]
) -> list[tuple[slice, slice]]:
    """Which rows of the flattened (batch * heads) and (batch * kv_heads) axes go together in one step.

    Without grouped queries a step takes as many heads as fit the cache; with them, the queries
    of one key-value head, whose keys are then expanded without a copy.
    """
    group = q.shape[1] // k.shape[1]
    kv_rows = k.shape[0] * k.shape[1]
    step = 1 if group > 1 else heads_in_cache(q.shape[2] * q.shape[3])
    return [
        (slice(row * group, min(row + step, kv_rows) * group), slice(row, min(row + step, kv_rows)))
        for row in range(0, kv_rows, step)
    ]


def heads_in_cache(elements: int) -> int:
    """How many heads of that many elements fit the cache; at least one."""
    return max(1, CACHE_ELEMENTS // max(1, elements))


def heads_at_once(problem: Problem) -> int:
    """How many query heads one step of `head_groups` holds."""
    if problem.group > 1:
        return problem.group
    return min(problem.batch * problem.heads, heads_in_cache(problem.tokens * problem.head_dim))


def flatten_heads(x: Float[Tensor, "batch heads tokens dim"]) -> Float[Tensor, "rows tokens dim"]:
    """Batch and heads as one axis; a view wherever the strides allow.

    The last axis is made dense: the fused kernels read it as it lies, whatever its stride.
    """
    rows = x.reshape(x.shape[0] * x.shape[1], x.shape[2], x.shape[3])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def expand_to(
    x: Float[Tensor, "kv_rows tokens dim"], like: Float[Tensor, "rows _tokens dim"]
) -> Float[Tensor, "rows tokens dim"]:
    """Keys of one key-value head for each of its query heads, without a copy."""
    return x.expand(like.shape[0], -1, -1)


def hidden_bias(hidden: Tensor, dtype: torch.dtype) -> Tensor | None:
    """0 where visible, -inf where hidden; None where nothing is hidden."""
    if not bool(hidden.any()):
        return None
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -math.inf)
