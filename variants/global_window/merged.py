"""The window by tiles, global columns and global rows as rectangles, merged by log-sum-exp."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from variants.dtypes import TORCH_DTYPES
from variants.local_window import reach
from variants.local_window.tiled import BACKWARD_ROWS, plan, tile_rows
from variants.merged_bands import attention, bands_workspace_bytes, in_order, split
from variants.problem import Problem
from variants.tiles import Band, hidden_bias
from variants.variant import Attention, variant


def global_bands(problem: Problem, window: int, global_tokens: int) -> list[Band]:
    """What the window leaves of the global rows and columns."""
    before, _ = reach(window, problem.causal)
    columns = min(global_tokens, problem.kv_tokens)
    clear = min(problem.tokens, max(0, before + global_tokens - problem.offset))  # from here on no column is near
    first, last = (min(problem.tokens, max(0, p - problem.offset)) for p in (0, global_tokens))
    seen = problem.kv_tokens
    if problem.causal:
        seen = min(seen, last + problem.offset)
    rectangles = [(0, clear, columns, False), (clear, problem.tokens, columns, False), (first, last, seen, True)]
    bands = []
    for start, stop, keys, is_global in rectangles:
        if start < stop and keys > 0:
            left = left_over(problem, range(start, stop), keys, window, global_tokens, is_global)
            if bool(left.any()):
                bias = hidden_bias(~left, TORCH_DTYPES[problem.dtype])
                bands.append(Band(start, stop - start, 1, 0, keys, bias))
    return bands


def left_over(
    problem: Problem, rows: range, keys: int, window: int, global_tokens: int, is_global: bool
) -> Bool[Tensor, "rows keys"]:
    """Pairs of a rectangle that are visible but not in the window: of the global queries, or of the others."""
    before, after = reach(window, problem.causal)
    position = torch.arange(rows.start, rows.stop, device=problem.device)[:, None] + problem.offset
    key = torch.arange(keys, device=problem.device)[None, :]
    far = key < position - before
    if not problem.causal:
        far = far | (key > position + after)
    mine = (position >= 0) & (position < global_tokens)
    return far & (mine if is_global else ~mine)


def bands_of(problem: Problem, window: int, global_tokens: int, rows: int) -> list[Band]:
    """Every visible pair once; the window in tiles of `rows`."""
    return plan(problem, window, rows, max(1, problem.tokens)) + global_bands(problem, window, global_tokens)


def workspace_bytes(problem: Problem, *, window: int, global_tokens: int) -> int:
    """What the merged bands need."""
    on_cpu = problem.with_(device="cpu")
    forth = bands_of(on_cpu, window, global_tokens, tile_rows(window))
    if problem.mode != "training":
        return bands_workspace_bytes(problem, forth, None)
    back = split(bands_of(on_cpu, window, global_tokens, BACKWARD_ROWS))
    return bands_workspace_bytes(problem, forth, back)


def executed_flops(problem: Problem, *, window: int, global_tokens: int) -> int:
    """Every pair of every tile and rectangle, the hidden ones included."""
    on_cpu = problem.with_(device="cpu")
    pairs = [
        sum(band.tiles * band.rows * band.keys for band in bands_of(on_cpu, window, global_tokens, rows))
        for rows in (tile_rows(window), BACKWARD_ROWS)
    ]
    one_pair = problem.batch * problem.heads * problem.head_dim
    return one_pair * (4 * pairs[0] + (10 * pairs[1] if problem.mode == "training" else 0))


@variant(
    "global_window/merged",
    summary="window tiles, global rows and columns, merged by log-sum-exp",
    devices=("cpu", "cuda"),
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
)
def build(problem: Problem, *, window: int, global_tokens: int) -> Attention:
    """The tiles, rectangles and their masks are laid out here, outside the clock."""
    forth = in_order(bands_of(problem, window, global_tokens, tile_rows(window)))
    training = problem.mode == "training"
    back = split(bands_of(problem, window, global_tokens, BACKWARD_ROWS)) if training else None

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return attention(q, k, v, forth, back)

    return run
