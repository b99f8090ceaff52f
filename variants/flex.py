"""torch's FlexAttention, compiled for one problem: what its variants share.

Compiling takes seconds for every new shape, so it belongs to the builder, and so does the map of
blocks. The masks and biases here are traced by the compiler: they are plain functions of indices.
"""

import gc
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from types import FunctionType
from typing import Final

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from variants.dtypes import TORCH_DTYPES
from variants.problem import Problem
from variants.requirement import ComputeCapability, Limit
from variants.tiles import SCRATCH_BYTES
from variants.variant import Attention

BLOCK: Final = 128  # queries and keys of a block of the map: the library's own choice
PAIRS_OF_BLOCK: Final = BLOCK * BLOCK

Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Of the indices of an item, a head, a query and a key: whether the query sees the key."""

ScoreModifier = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Of a score, and the indices of its item, head, query and key."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """What the compiled kernels need of the machine: a C++ compiler and AVX2 on the CPU, Triton on CUDA."""

    def unmet(self, problem: Problem) -> str | None:
        """Asks for programs and modules by their names; starts and imports none."""
        if problem.device_type == "cuda":
            return None if find_spec("triton") else "needs Triton (not installed)"
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            return f"needs a C++ compiler ({compiler} is not on the path)"
        if sys.platform != "linux" or not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
            return "CPU: needs AVX2, and Linux"
        return None


REQUIRES: Final = (
    Compiler(),
    ComputeCapability(8),
    Limit(lambda p: p.device_type == "cuda" or p.mode == "forward", "CPU: inference only"),
    Limit(lambda p: min(p.batch, p.tokens, p.kv_tokens) > 0, "needs queries and keys"),
    Limit(lambda p: p.device_type == "cpu" or p.head_dim >= 16, "CUDA: head_dim ≥ 16"),
)
DTYPES: Final = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Band:
    """The keys that a query sees: from `before` before its own position to `after` after it; None has no end."""

    before: int | None
    after: int | None

    def mask(self, offset: int) -> Mask:
        """The band as a function of indices; query 0 stands at `offset`."""
        low = None if self.before is None else offset - self.before
        high = None if self.after is None else offset + self.after

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            seen = key >= (0 if low is None else query + low)
            return seen if high is None else seen & (key <= query + high)

        return visible


def linear_penalty(slopes: Tensor, offset: int) -> ScoreModifier:
    """A penalty for the distance, at a slope of each head's own; query 0 stands at `offset`."""

    def penalised(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score - slopes[head] * (query + offset - key).abs()

    return penalised


def block_map(problem: Problem, band: Band) -> BlockMask | None:
    """Which blocks hold a visible pair, and which hold no other: from the band's edges, without a mask of pairs.

    A block that juts out beyond the queries or keys is never whole. Where nothing is hidden, CUDA
    needs no map; without one the CPU's kernel takes all queries and keys for a single block, and
    holds its scores.
    """
    if band == Band(None, None) and problem.device_type == "cuda":
        return None
    row, key = (
        torch.arange(-(-n // BLOCK), device=problem.device) * BLOCK for n in (problem.tokens, problem.kv_tokens)
    )
    first, last = row[:, None] + problem.offset, (row[:, None] + BLOCK).clamp(max=problem.tokens) - 1 + problem.offset
    key, end = key[None, :], (key[None, :] + BLOCK).clamp(max=problem.kv_tokens) - 1
    some = torch.ones(len(row), key.shape[1], dtype=torch.bool, device=problem.device)
    whole = (row[:, None] + BLOCK <= problem.tokens) & (key + BLOCK <= problem.kv_tokens)
    if band.before is not None:
        some, whole = some & (end >= first - band.before), whole & (key >= last - band.before)
    if band.after is not None:
        some, whole = some & (key <= last + band.after), whole & (end <= first + band.after)
    return BlockMask.from_kv_blocks(
        *_listed(some & ~whole),
        *_listed(some & whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=band.mask(problem.offset),
        seq_lengths=(problem.tokens, problem.kv_tokens),
        compute_q_blocks=problem.mode == "training",
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of each row are marked, and their places first."""
    places = blocks.to(torch.int8).sort(dim=-1, descending=True, stable=True).indices.to(torch.int32)
    return blocks.sum(-1, dtype=torch.int32)[None, None], places[None, None]


def compiled(problem: Problem, band: Band, modifier: ScoreModifier | None = None) -> Attention:
    """FlexAttention over a band, compiled for this problem and called once, so that no call that is timed compiles.

    Never the library's own uncompiled form: what cannot be compiled as a whole raises.
    """
    blocks = block_map(problem, band)
    grouped = problem.group > 1

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = flex_attention(q, k, v, modifier, blocks, enable_gqa=grouped)
        return out

    # A code object of its own: else all problems of a process would share one list of compiled
    # forms, which is searched at every call and at its limit no longer compiled for.
    own = FunctionType(attend.__code__.replace(), attend.__globals__, "attend", None, attend.__closure__)
    run: Attention = torch.compile(own, dynamic=False, fullgraph=True)
    training = problem.mode == "training"
    shapes = (problem.heads, problem.tokens), *[(problem.kv_heads, problem.kv_tokens)] * 2
    inputs = [
        torch.zeros(
            *(problem.batch, heads, tokens, problem.head_dim),
            dtype=TORCH_DTYPES[problem.dtype],
            device=problem.device,
            requires_grad=training,
        )
        for heads, tokens in shapes
    ]
    from torch._inductor import config

    with config.patch(compile_threads=1):  # one kernel: no pool of processes for it
        out = run(*inputs)
        if training:
            out.backward(out.detach())
    del inputs, out
    gc.collect()  # the compiler leaves cycles behind that hold the inputs
    return run


def blocks_of(problem: Problem, band: Band) -> int:
    """How many blocks hold a visible pair."""
    rows, keys = -(-problem.tokens // BLOCK), -(-problem.kv_tokens // BLOCK)
    count = 0
    for row in range(rows):
        first = row * BLOCK + problem.offset
        last = min((row + 1) * BLOCK, problem.tokens) - 1 + problem.offset
        low = 0 if band.before is None else max(0, first - band.before)
        high = problem.kv_tokens - 1 if band.after is None else min(problem.kv_tokens - 1, last + band.after)
        count += high // BLOCK - low // BLOCK + 1 if low <= high else 0
    return min(count, rows * keys)


def executed_flops(problem: Problem, band: Band) -> int:
    """Every pair of every block that holds a visible one, those beyond the ends left out."""
    pairs = min(blocks_of(problem, band) * PAIRS_OF_BLOCK, problem.tokens * problem.kv_tokens)
    forward = 4 * problem.batch * problem.heads * problem.head_dim * pairs
    return round(forward * 3.5) if problem.mode == "training" else forward


def workspace_bytes(problem: Problem, band: Band) -> int:
    """The map of blocks; on a CPU the packed keys and values and each thread's tile, on CUDA the log-sum-exp."""
    rows, keys = -(-problem.tokens // BLOCK), -(-problem.kv_tokens // BLOCK)
    lists = 4 if problem.mode == "training" else 2
    held = lists * 4 * rows * (keys + 1)
    if problem.device_type == "cuda":
        wide = 4 * problem.batch * problem.heads * problem.tokens
        return held + wide * (3 if problem.mode == "training" else 1) + SCRATCH_BYTES
    queries, others = min(BLOCK, problem.tokens), min(BLOCK, problem.kv_tokens)
    sums = 4 * (queries * (others + problem.head_dim + 2))
    tile = sums + problem.element_bytes * (queries * (others + 1) + (queries + others) * (problem.head_dim + 1))
    padded = (
        2 * problem.key_bytes + 2 * problem.batch * problem.kv_heads * keys * problem.head_dim * problem.element_bytes
    )
    return held + padded + torch.get_num_threads() * tile + SCRATCH_BYTES
