"""Inner neighbourhoods by tiles of queries, both edges as rectangles: no hidden pair is computed there."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from variants.dtypes import TORCH_DTYPES
from variants.local_window.tiled import BACKWARD_ROWS, EDGE_ROWS, tile_rows
from variants.merged_bands import Step, attention, bands_workspace_bytes, in_order, split
from variants.neighborhood import SELF_ATTENTION
from variants.problem import Problem
from variants.tiles import Band, hidden_bias
from variants.variant import Attention, variant


@dataclass(frozen=True, slots=True)
class Plan:
    """The bands of one residue class of `tokens` tokens, forth and (in training) back."""

    tokens: int
    forth: list[Step]
    back: list[Band] | None


def bands_of(problem: Problem, window: int, rows: int) -> list[Band]:
    """Every visible pair of a class of `problem.tokens` tokens once, inner rows in tiles of `rows`."""
    tokens = problem.tokens
    window = min(window, tokens)
    if not tokens:
        return []
    before = window - 1 if problem.causal else window // 2
    after = window - 1 - before
    bands = []
    if problem.causal:
        starts = range(0, before, EDGE_ROWS)
        bands += [_tile(problem, start, min(EDGE_ROWS, before - start), 0, window) for start in starts]
    elif before:
        bands.append(Band(0, before, 1, 0, window, None))
    if after:
        bands.append(Band(tokens - after, after, 1, tokens - window, window, None))
    tiles, rest = divmod(tokens - before - after, rows)
    if tiles:
        first = _tile(problem, before, rows, 0, window)
        bands.append(Band(before, rows, tiles, 0, first.keys, first.bias))
    if rest:
        start = before + tiles * rows
        bands.append(_tile(problem, start, rest, start - before, window))
    return bands


def _tile(problem: Problem, row: int, rows: int, key: int, window: int) -> Band:
    """One tile of rows from `row` on over the keys from `key` on up to the last that it sees."""
    before = window - 1 if problem.causal else window // 2
    keys = row + rows - before + window - 1 - key
    start = torch.arange(row - before, row - before + rows, device=problem.device)[:, None]
    seen = torch.arange(key, key + keys, device=problem.device)[None, :]
    bias = hidden_bias((seen < start) | (seen >= start + window), TORCH_DTYPES[problem.dtype])
    return Band(row, rows, 1, key, keys, bias)


def of_class(problem: Problem, residue: int, dilation: int) -> Problem:
    """The problem of the tokens of one residue class."""
    return problem.with_(tokens=len(range(residue, problem.tokens, dilation)))


def workspace_bytes(problem: Problem, *, window: int, dilation: int) -> int:
    """What the merged bands of a class need; with a dilation also the classes and their outputs."""
    one = of_class(problem.with_(device="cpu"), 0, dilation)
    forth = bands_of(one, window, tile_rows(window))
    if problem.mode != "training":
        apart = 3 * problem.query_bytes + 2 * problem.key_bytes if dilation > 1 else 0
        return bands_workspace_bytes(one, forth, None) + apart
    apart = 2 * problem.input_output_bytes if dilation > 1 else 0
    return bands_workspace_bytes(one, forth, split(bands_of(one, window, BACKWARD_ROWS))) + apart


def executed_flops(problem: Problem, *, window: int, dilation: int) -> int:
    """Every pair of every tile, the hidden ones included."""
    on_cpu = problem.with_(device="cpu")
    count = 0
    for rows, each in ((tile_rows(window), 4), (BACKWARD_ROWS, 10 if problem.mode == "training" else 0)):
        for residue in range(min(dilation, problem.tokens)):
            bands = bands_of(of_class(on_cpu, residue, dilation), window, rows)
            count += each * sum(band.tiles * band.rows * band.keys for band in bands)
    return problem.batch * problem.heads * problem.head_dim * count


@variant(
    "neighborhood/tiled",
    summary="tiles of queries over just the keys that they see, one residue class after another",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=(SELF_ATTENTION,),
)
def build(problem: Problem, *, window: int, dilation: int) -> Attention:
    """The tiles and their masks are laid out here, outside the clock; at most two kinds of class differ."""
    plans: dict[int, Plan] = {}
    order = []
    for residue in range(max(1, min(dilation, problem.tokens))):
        one = of_class(problem, residue, dilation)
        if one.tokens not in plans:
            back = split(bands_of(one, window, BACKWARD_ROWS)) if problem.mode == "training" else None
            plans[one.tokens] = Plan(one.tokens, in_order(bands_of(one, window, tile_rows(window))), back)
        order.append(plans[one.tokens])

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        if len(order) <= 1:
            return attention(q, k, v, order[0].forth, order[0].back)
        outs = [
            functional.pad(
                attention(own_q, own_k, own_v, plan.forth, plan.back), (0, 0, 0, order[0].tokens - plan.tokens)
            )
            for plan, own_q, own_k, own_v in zip(order, *(classes(x, order) for x in (q, k, v)), strict=True)
        ]
        return torch.stack(outs, 3).flatten(2, 3)[:, :, : problem.tokens]

    return run


def classes(x: Float[Tensor, "batch heads tokens dim"], order: list[Plan]) -> list[Tensor]:
    """Views of the tokens of each residue class, the shorter classes last."""
    filled = functional.pad(x, (0, 0, 0, -x.shape[2] % len(order)))
    parts = filled.unflatten(2, (-1, len(order))).unbind(3)
    return [part[:, :, : plan.tokens] for part, plan in zip(parts, order, strict=True)]
