"""A tile for each block of queries, over just the keys of the blocks in reach."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from variants.dtypes import TORCH_DTYPES
from variants.merged_bands import attention, bands_workspace_bytes, in_order, split
from variants.problem import Problem
from variants.tiles import Band, hidden_bias
from variants.variant import Attention, variant


def plan(problem: Problem, block: int, look_back: int) -> list[Band]:
    """Bands that cover every query row that sees a key: whole inner blocks together, the edges one by one."""
    span = ((1 if problem.causal else 2) * look_back + 1) * block
    bands: list[Band] = []
    inner: list[Band] = []
    row = max(0, -problem.offset) if problem.causal else 0
    while row < problem.tokens:
        own = (row + problem.offset) // block
        stop = min(problem.tokens, (own + 1) * block - problem.offset)
        band = _one_block(problem, row, stop, max(0, (own - look_back) * block), (own + look_back + 1) * block)
        if band.keys > 0:
            (inner if (band.rows, band.keys) == (block, span) else bands).append(band)
        row = stop
    return bands + ([replace(inner[0], tiles=len(inner))] if inner else [])


def _one_block(problem: Problem, row: int, stop: int, first: int, last: int) -> Band:
    """The queries of one block, or a part of one, over the keys from `first` to before `last`."""
    last = min(problem.kv_tokens, stop + problem.offset if problem.causal else last)
    bias = None
    if problem.causal:
        position = torch.arange(row, stop, device=problem.device)[:, None] + problem.offset
        key = torch.arange(first, max(first, last), device=problem.device)[None, :]
        bias = hidden_bias(key > position, TORCH_DTYPES[problem.dtype])
    return Band(row, stop - row, 1, first, max(0, last - first), bias)


def workspace_bytes(problem: Problem, *, block: int, look_back: int) -> int:
    """What the bands need."""
    bands = plan(problem.with_(device="cpu"), block, look_back)
    back = split(bands) if problem.mode == "training" else None
    return bands_workspace_bytes(problem, bands, back)


def executed_flops(problem: Problem, *, block: int, look_back: int) -> int:
    """Every pair of every tile, the hidden ones included."""
    bands = plan(problem.with_(device="cpu"), block, look_back)
    pairs = sum(band.tiles * band.rows * band.keys for band in bands)
    forward = 4 * problem.batch * problem.heads * problem.head_dim * pairs
    return round(forward * 3.5) if problem.mode == "training" else forward


@variant(
    "block_local/tiled",
    summary="a tile for each block, over the blocks in reach",
    devices=("cpu", "cuda"),
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
)
def build(problem: Problem, *, block: int, look_back: int) -> Attention:
    """The tiles and their masks are laid out here, outside the clock."""
    bands = plan(problem, block, look_back)
    forth = in_order(bands)
    back = split(bands) if problem.mode == "training" else None

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return attention(q, k, v, forth, back)

    return run
