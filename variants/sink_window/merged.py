"""The window by tiles, the sinks as a few more keys, merged by log-sum-exp."""

import torch
from jaxtyping import Float
from torch import Tensor

from variants.dtypes import TORCH_DTYPES
from variants.local_window.tiled import BACKWARD_ROWS, plan, tile_rows
from variants.merged_bands import attention, bands_workspace_bytes, in_order, split
from variants.problem import Problem
from variants.sink_window import STREAMS_ONLY
from variants.tiles import Band, hidden_bias
from variants.variant import Attention, variant


def sink_bands(problem: Problem, window: int, sinks: int) -> list[Band]:
    """Sinks that have left the window: first the rows that some have left, then those that all have."""
    keys = min(sinks, problem.kv_tokens)
    some = min(problem.tokens, max(0, window - problem.offset))
    every = min(problem.tokens, max(0, window + keys - 1 - problem.offset))
    bands = []
    if keys and some < every:
        position = torch.arange(some, every, device=problem.device)[:, None] + problem.offset
        inside = torch.arange(keys, device=problem.device)[None, :] > position - window
        bands.append(Band(some, every - some, 1, 0, keys, hidden_bias(inside, TORCH_DTYPES[problem.dtype])))
    if keys and every < problem.tokens:
        bands.append(Band(every, problem.tokens - every, 1, 0, keys, None))
    return bands


def backward_bands(problem: Problem, window: int, sinks: int) -> list[Band]:
    """The same pairs in the steps of the backward pass."""
    near = plan(problem, window, BACKWARD_ROWS, problem.tokens)
    return split(near + sink_bands(problem, window, sinks))


def forward_bands(problem: Problem, window: int, sinks: int) -> list[Band]:
    """The window's tiles, then the sinks."""
    return plan(problem, window, tile_rows(window), tiles_at_once=problem.tokens) + sink_bands(problem, window, sinks)


def workspace_bytes(problem: Problem, *, window: int, sinks: int) -> int:
    """What the merged bands need."""
    on_cpu = problem.with_(device="cpu")
    back = backward_bands(on_cpu, window, sinks) if problem.mode == "training" else None
    return bands_workspace_bytes(problem, forward_bands(on_cpu, window, sinks), back)


def executed_flops(problem: Problem, *, window: int, sinks: int) -> int:
    """Every pair of every tile, the hidden ones included."""
    span = min(problem.kv_tokens, window - 1 + tile_rows(window)) + min(sinks, problem.kv_tokens)
    forward = 4 * problem.batch * problem.heads * problem.head_dim * problem.tokens * span
    if problem.mode != "training":
        return forward
    wide = min(problem.kv_tokens, window - 1 + BACKWARD_ROWS) + min(sinks, problem.kv_tokens)
    return forward + 10 * problem.batch * problem.heads * problem.head_dim * problem.tokens * wide


@variant(
    "sink_window/merged",
    summary="window tiles and sinks, merged by log-sum-exp",
    devices=("cpu", "cuda"),
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=(STREAMS_ONLY,),
)
def build(problem: Problem, *, window: int, sinks: int) -> Attention:
    """The tiles and their masks are laid out here, outside the clock."""
    forth = in_order(forward_bands(problem, window, sinks))
    back = backward_bands(problem, window, sinks) if problem.mode == "training" else None

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return attention(q, k, v, forth, back)

    return run
