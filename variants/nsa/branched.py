"""The three branches one after another: the compressed one picks the blocks for the selected one."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from variants.block_local.tiled import plan
from variants.compressed_keys import Spans, attend_compressed, compressed_workspace_bytes
from variants.dtypes import TORCH_DTYPES
from variants.local_window import tiled
from variants.merged_bands import bias_bytes, split
from variants.nsa import DECODERS_ONLY, gates
from variants.problem import Problem
from variants.selected_blocks import attend_selected, selected_workspace_bytes
from variants.tiles import SCRATCH_BYTES, accumulator
from variants.variant import Attention, variant


def first_blocks(problem: Problem, size: int) -> Tensor:
    """The first block for queries two blocks or more after it, else none; (tokens, 1)."""
    blocks = problem.kv_tokens // size
    position = torch.arange(problem.tokens, device=problem.device) + problem.offset
    return torch.where(position >= 2 * size, 0, blocks).unsqueeze(-1)


def workspace_bytes(problem: Problem, *, stride: int, compressed: int, merged: int, selected: int, window: int) -> int:
    """What each branch needs, with the outputs of those before it, and the gates."""
    size, wide = stride * merged, max(4, problem.element_bytes)
    blocks = problem.kv_tokens // size
    past = min(selected, max(0, blocks - 1)) + 1
    bands = plan(problem.with_(device="cpu"), size, look_back=1)
    held = bias_bytes(bands) + 4 * wide * problem.heads * problem.tokens
    branches = [
        compressed_workspace_bytes(problem, Spans(stride, compressed, merged), past),
        selected_workspace_bytes(problem, size, past),
        tiled.workspace_bytes(problem, window=window) + problem.query_bytes,
    ]
    gated = 3 * problem.query_bytes // problem.element_bytes * wide
    kept = 3 * problem.query_bytes + 16 * problem.batch * problem.kv_heads * problem.tokens * past
    if problem.mode == "training":
        lines = 3 * problem.batch * problem.heads * problem.tokens * wide
        gradients = 3 * problem.query_bytes + 3 * 2 * problem.key_bytes
        return held + kept + lines + gradients + max(*branches, gated) + SCRATCH_BYTES
    return held + kept + max(*branches, gated) + SCRATCH_BYTES


def executed_flops(problem: Problem, *, stride: int, compressed: int, merged: int, selected: int, window: int) -> int:
    """The spans up to each query, its blocks in full, and the window's tiles."""
    spans, size = Spans(stride, compressed, merged), stride * merged
    positions = range(max(0, problem.offset), problem.offset + problem.tokens)
    blocks = sum(min(i // size, selected + 2) + 1 for i in positions) * size
    pairs = sum(spans.count(i + 1) for i in positions) + blocks
    forward = 4 * problem.batch * problem.heads * problem.head_dim * pairs
    near = tiled.executed_flops(problem, window=window)
    return near + (round(forward * 3.5) if problem.mode == "training" else forward)


@variant(
    "nsa/branched",
    summary="spans in float64, each picked block with its queries, tiles of the window",
    devices=("cpu", "cuda"),
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=(DECODERS_ONLY,),
)
def build(problem: Problem, *, stride: int, compressed: int, merged: int, selected: int, window: int) -> Attention:
    """The tiles are laid out and the gates drawn here; what a query picks depends on its inputs."""
    spans, size = Spans(stride, compressed, merged), stride * merged
    own = plan(problem, size, look_back=1)
    back = split(own) if problem.mode == "training" else None
    latest = tiled.build(problem, window=window)
    always = first_blocks(problem, size)
    wide = accumulator(TORCH_DTYPES[problem.dtype])
    drawn = gates(problem.heads, problem.kv_tokens)[:, max(0, problem.offset) :]
    drawn = functional.pad(drawn, (0, 0, max(0, -problem.offset), 0)).to(problem.device, wide)
    coarse_gate, fine_gate, near_gate = drawn.unsqueeze(-1).unbind(2)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        coarse, picked = attend_compressed(q, k, v, problem, spans, selected)
        picked = torch.cat((always.expand(len(picked), -1, -1), picked), 2)
        fine = attend_selected(q, k, v, picked, own, back, size)
        near = latest(q, k, v)
        return torch.addcmul(coarse_gate * coarse, fine_gate, fine).addcmul(near_gate, near).to(q.dtype)

    return run
