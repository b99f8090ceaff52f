"""Window tiles, and features of all keys before and all keys after the window, merged in one normaliser.

The keys outside are a causal scan whose keys come late by the window, and the same from the other
end. So what the window holds is never added to be taken off again: no sum can turn negative, and
none loses its digits to a larger one.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from variants.decayed_scan import decay_tiles, decayed_chunks, with_ones
from variants.local_window import reach
from variants.local_window.tiled import BACKWARD_ROWS, backward_tiles, plan, tile_rows
from variants.merged_bands import attention_and_lse, bands_workspace_bytes, in_order
from variants.positive_features import causal_gates, feature_groups, key_logarithms, scaled_projection
from variants.powers import exp_
from variants.problem import Problem
from variants.scan import CHUNK, carry, repeated_rows, split_chunks
from variants.tiles import SCRATCH_BYTES, Band, flatten_heads, visible
from variants.variant import Attention, variant


def bands(problem: Problem, window: int) -> tuple[list[Band], list[Band] | None]:
    """The window's tiles, forward and, in training, backward."""
    forth = plan(problem, window, tile_rows(window), tiles_at_once=problem.tokens)
    if problem.mode != "training":
        return forth, None
    return forth, plan(problem, window, BACKWARD_ROWS, backward_tiles(problem, window))


def delays(problem: Problem, window: int) -> list[int]:
    """By how much the last key before the window comes after the query's row; and so from the other end."""
    before, after = reach(window, problem.causal)
    behind = problem.offset - before - 1
    both = [behind] if problem.causal else [behind, -after - 1]
    return both if problem.kv_tokens else []


def workspace_bytes(problem: Problem, *, window: int, features: int) -> int:
    """The sums of both sides and their parts in at least float32, and a group of a scan or a step of the tiles.

    How many of the first there are at once was counted, as the share of a group's tensors that live together.
    """
    host = problem.with_(device="cpu")
    wide, size = max(4, problem.element_bytes), problem.head_dim
    rows, training = problem.batch * problem.heads, problem.mode == "training"
    steps = max((max(0, problem.tokens + delay) for delay in delays(problem, window)), default=0)
    groups = feature_groups(problem, steps, features)
    tokens = groups[0].stop if groups else 0
    own = tokens * (7 * features + 6 * size + 4 * CHUNK) + 3 * (tokens // CHUNK + 2) * features * (size + 1)
    states = (len(groups) if training else 2) * features * (size + 1)
    scan = wide * (rows * (states + own * 3 // 4 if training else states + own // 2) + features * size)
    repeated = 2 * problem.kv_tokens if problem.group > 1 else 0
    kept = {(True, False): (2.5, 1.5), (False, False): (4, 3), (True, True): (4.5, 4.5), (False, True): (10, 9)}
    of_queries, of_keys = kept[problem.causal, training]
    held = rows * size * wide * (of_queries * problem.tokens + of_keys * problem.kv_tokens + repeated)
    return int(held) + max(scan, bands_workspace_bytes(host, *bands(host, window))) + SCRATCH_BYTES


def executed_flops(problem: Problem, *, window: int, features: int) -> int:
    """Every pair of every tile, and for each step of a scan its features, the products in its chunk and the state."""
    forth, _ = bands(problem.with_(device="cpu"), window)
    forward = 4 * problem.head_dim * sum(band.tiles * band.rows * band.keys for band in forth)
    steps = sum(max(0, problem.tokens + delay) for delay in delays(problem, window))
    token = features * (6 * problem.head_dim + 4 * (problem.head_dim + 1)) + 2 * CHUNK * (features + problem.head_dim)
    forward = problem.batch * problem.heads * (forward + steps * token)
    return round(forward * 3.5) if problem.mode == "training" else forward


@variant(
    "scatterbrain/merged",
    summary="window tiles in fused calls, scans of features on either side of them, in one normaliser",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
)
def build(problem: Problem, *, window: int, features: int) -> Attention:
    """The tiles are laid out, ω is drawn and cast here."""
    forth, back = bands(problem, window)
    steps = in_order(forth)
    omega = scaled_projection(problem, features)

    def step(
        state: Tensor, q: Tensor, k: Tensor, v: Tensor, ceiling: Tensor, log_decay: Tensor
    ) -> tuple[Tensor, Tensor]:
        queries = key_logarithms(q, omega)
        top = queries.detach().amax(-1, keepdim=True)
        keys = exp_(key_logarithms(k, omega) - ceiling)
        tiles = decay_tiles(split_chunks(log_decay.squeeze(2)), state.dtype)
        sums, state = decayed_chunks(state, exp_(queries - top), keys, v[..., :-1], tiles)
        return torch.cat((sums, top + ceiling - math.log(features)), 2), state

    def side(q: Tensor, k: Tensor, v: Tensor, delay: int) -> Tensor:
        """For each query the sums over the keys on one side, and the logarithm of their unit."""
        count = q.shape[1] + delay
        if count <= 0:
            return v[:, :0].sum(1, keepdim=True).expand(-1, q.shape[1], -1)
        groups = feature_groups(problem, count, features)
        keys, values = k[:, :count], v[:, :count]
        if (missing := count - k.shape[1]) > 0:  # queries beyond the last key of this side: it again, with no weight
            keys = torch.cat((keys, keys[:, -1:].expand(-1, missing, -1)), 1)
            values = functional.pad(values, (0, 0, 0, missing))
        queries = functional.pad(q, (0, 0, delay, 0)) if delay > 0 else q[:, -delay:]
        size = features, v.shape[2] - 1
        sums = carry(step, groups, queries, keys, values, causal_gates(keys, omega, groups), size)
        return sums[:, delay:] if delay > 0 else functional.pad(sums, (0, 0, -delay, 0))

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        near, lse = attention_and_lse(q, k, v, steps, back)
        fq, fk, fv = repeated_rows(problem, q, k, v)
        values = functional.pad(with_ones(fv.to(omega.dtype)), (0, 1))
        sides = []
        for index, delay in enumerate(delays(problem, window)):
            if index:
                sides.append(side(fq.flip(1), fk.flip(1), values.flip(1), delay).flip(1))
            else:
                sides.append(side(fq, fk, values, delay))
        return merged(flatten_heads(near), flatten_heads(lse.unsqueeze(-1)), sides).to(q.dtype).reshape(q.shape)

    return run


def merged(
    near: Float[Tensor, "rows tokens dim"],
    lse: Float[Tensor, "rows tokens 1"],
    sides: list[Float[Tensor, "rows tokens dim+2"]],
) -> Float[Tensor, "rows tokens dim"]:
    """All weighted values over all weights; a side holds both sums and the logarithm of their unit."""
    with torch.no_grad():
        units = [torch.where(side[..., -2:-1] > 0, side[..., -1:], -torch.inf) for side in sides]
        top = lse
        for side, unit in zip(sides, units, strict=True):
            top = torch.maximum(top, unit + side[..., -2:-1].log())
        top = visible(top)
        units = [torch.exp(unit - top) for unit in units]
    share = torch.exp(lse - top)
    sums, total = near.to(lse.dtype) * share, share
    for side, unit in zip(sides, units, strict=True):
        sums = torch.addcmul(sums, side[..., :-2], unit)
        total = torch.addcmul(total, side[..., -2:-1], unit)
    return sums / torch.where(total > 0, total, 1.0)
