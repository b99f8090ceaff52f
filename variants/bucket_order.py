"""Keys sorted by bucket and position, each bucket cut into chunks, and what each query sees of its own bucket."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from variants.problem import Problem

ROWS = 32  # queries of a tile: of a fixed number, so that no result depends on how many others share a chunk


@dataclass(frozen=True, slots=True)
class Order:
    """One order of a head's keys: `keys` by place and `places` by key, and each query's range, low ≤ place < high.

    `rows` (tiles, ROWS) are the queries of each tile, the last repeated where `filling` says so;
    `first` (tiles,) is the place of the first key of its chunk, and `back` tells where there is a chunk before.
    """

    keys: Tensor
    places: Tensor
    low: Tensor
    high: Tensor
    rows: Tensor
    filling: Tensor
    first: Tensor
    back: Tensor


def order_by_bucket(
    query_buckets: Int64[Tensor, " rows"],
    key_buckets: Int64[Tensor, " kv_tokens"],
    position: Int64[Tensor, " rows"],
    sizes: tuple[int, int],
    *,
    causal: bool,
    latest: int | None = None,
) -> Order:
    """Ranges within a query's own bucket; `sizes` are the number of buckets and the keys of a chunk.

    A query stands in the chunk of the last key at or before its position, and sees that chunk and the
    one before it, causal only up to that key; with `latest`, at most a chunk long, just so many of these.
    """
    buckets, chunk = sizes
    count = len(key_buckets)
    codes, keys = (key_buckets * (count + 1) + torch.arange(count, device=key_buckets.device)).sort()
    starts = torch.bincount(key_buckets, minlength=buckets).cumsum(0)
    end = starts[query_buckets]
    begin = torch.where(query_buckets > 0, starts[query_buckets - 1], 0)
    high = torch.searchsorted(codes, query_buckets * (count + 1) + position.clamp(-1, count - 1), right=True)
    number = (high - 1 - begin).clamp(min=0) // chunk
    first = begin + number * chunk
    if not causal:
        high = torch.minimum(end, first + chunk)
    low = torch.maximum(begin, first - chunk if latest is None else high - latest)
    places = torch.empty_like(keys, dtype=torch.int32)
    places[keys] = torch.arange(count, dtype=torch.int32, device=keys.device)
    return Order(keys, places, low.int(), high.int(), *_tiles(first, number > 0, high > low))


def _tiles(
    first: Int64[Tensor, " rows"], later: Bool[Tensor, " rows"], seeing: Bool[Tensor, " rows"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tiles of the queries that see a key, each within one chunk."""
    rows = seeing.nonzero().flatten()
    ordered, by = first[rows].sort(stable=True)
    rows = rows[by]
    chunks, counts = ordered.unique_consecutive(return_counts=True)
    tiles = (counts + ROWS - 1) // ROWS
    chunk = torch.repeat_interleave(tiles)
    ends, before = counts.cumsum(0), tiles.cumsum(0) - tiles
    start = (ends - counts)[chunk] + ROWS * (torch.arange(len(chunk), device=rows.device) - before[chunk])
    places = start[:, None] + torch.arange(ROWS, device=rows.device)
    last = ends[chunk, None] - 1
    return rows[torch.minimum(places, last)], places > last, chunks[chunk], later[rows[start]]


def positions(problem: Problem) -> Int64[Tensor, " rows"]:
    """Positions of the queries of all heads that share keys."""
    return (torch.arange(problem.tokens, device=problem.device) + problem.offset).repeat(problem.group)
