"""Oracles whose output is a weighted sum of values: the weights computed pair by pair, in plain Python."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from variants import Problem
from variants.additive import alignment
from variants.bigbird import random_blocks
from variants.catalogue import load, names
from variants.favor import projection
from variants.learned_sink import sink_logits
from variants.linformer import projections
from variants.lsh import bucket_count, rotations
from variants.nsa import gates
from variants.routing import centroids

DEFINITIONS = {load(name).definition.name: load(name).definition for name in names()}

Vector = Sequence[float]
Matrix = list[list[float]]
Weigh = Callable[..., Matrix]
"""The weights of one head: `weigh(queries, keys, positions, *, causal, head, heads, **parameters)`."""


def dot(a: Vector, b: Vector) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def mean(vectors: Sequence[Vector]) -> Vector:
    return [math.fsum(parts) / len(vectors) for parts in zip(*vectors, strict=True)]


def score(q: Vector, k: Vector) -> float:
    return dot(q, k) / math.sqrt(len(q))


def times(a: Matrix, b: Matrix) -> Matrix:
    columns = list(zip(*b, strict=True))
    return [[dot(row, column) for column in columns] for row in a]


def shares(logits: Sequence[float | None], sink: float = -math.inf) -> list[float]:
    """e^logit over (e^sink + their sum); nought where a key is not seen."""
    top = max((logit for logit in (*logits, sink) if logit is not None), default=sink)
    raw = [0.0 if logit is None else math.exp(logit - top) for logit in logits]
    total = math.fsum([*raw, math.exp(sink - top)]) if top > -math.inf else 1.0
    return [one / total for one in raw]


# ---- masks: which keys a query at position i sees


def sinks_and_latest(i: int, j: int, *, window: int, sinks: int, **_: Any) -> bool:
    return j < sinks or i - window < j <= i


def blocks_in_reach(i: int, j: int, *, block: int, look_back: int, **_: Any) -> bool:
    return abs(math.floor(i / block) - math.floor(j / block)) <= look_back


def near_or_global(i: int, j: int, *, causal: bool, window: int, global_tokens: int, **_: Any) -> bool:
    near = i - j < window if causal else abs(i - j) <= window / 2
    return near or j < global_tokens or 0 <= i < global_tokens


def blocks_drawn(i: int, j: int, *, head: int, heads: int, count: int, block: int, random: int, **_: Any) -> bool:
    a, b, last = i // block, j // block, (count - 1) // block
    drawn = bool(random_blocks(heads, last + 1, random)[head, a, b])
    return abs(a - b) <= 1 or {a, b} & {0, last} != set() or drawn


def neighbors(i: int, j: int, *, causal: bool, count: int, window: int, dilation: int, **_: Any) -> bool:
    alike = list(range(i % dilation, count, dilation))
    place = alike.index(i)
    first = place + 1 - window if causal else min(place - window // 2, len(alike) - window)
    last = place if causal else max(0, first) + window - 1
    return j in alike[max(0, first) : last + 1]


def some_heads_all(
    i: int, j: int, *, causal: bool, head: int, heads: int, full_heads: int, window: int, **_: Any
) -> bool:
    near = i - window < j if causal else abs(i - j) <= window / 2
    return near or head < math.floor(full_heads * heads / 1000 + 1 / 2)


def same_window(i: int, j: int, *, head: int, heads: int, window: int, **_: Any) -> bool:
    shift = 0 if head < math.ceil(heads / 2) else window // 2
    return math.floor((i - shift) / window) == math.floor((j - shift) / window)


def both_axes(sees: Callable[..., bool], i: int, j: int, *, count: int, grid_width: int, **options: Any) -> bool:
    """What holds along one dimension, along the lines and the columns of an image."""
    axes = zip((math.ceil(count / grid_width), grid_width), divmod(i, grid_width), divmod(j, grid_width), strict=True)
    return all(sees(own, other, count=size, **options) for size, own, other in axes)


def masked(
    sees: Callable[..., bool],
    queries: Sequence[Vector],
    keys: Sequence[Vector],
    positions: Sequence[int],
    *,
    causal: bool,
    **options: Any,
) -> Matrix:
    def logit(q: Vector, i: int, j: int) -> float | None:
        seen = (j <= i or not causal) and sees(i, j, causal=causal, count=len(keys), **options)
        return score(q, keys[j]) if seen else None

    return [shares([logit(q, i, j) for j in range(len(keys))]) for q, i in zip(queries, positions, strict=True)]


# ---- rows: the weights of one query, from it, the keys that it may see and all keys


def penalised(q: Vector, i: int, seen: int, keys: Sequence[Vector], *, head: int, heads: int) -> list[float]:
    slope = 2 ** (-8 * (head + 1) / heads)
    return shares([score(q, keys[j]) - slope * abs(i - j) for j in range(seen)])


def cooled(q: Vector, i: int, seen: int, keys: Sequence[Vector], *, percent: int, **_: Any) -> list[float]:
    return shares([score(q, k) * 100 / percent for k in keys[:seen]])


def largest(q: Vector, i: int, seen: int, keys: Sequence[Vector], *, kept: int, **_: Any) -> list[float]:
    scores = [score(q, k) for k in keys[:seen]]
    order = sorted(range(seen), key=lambda j: (-scores[j], j))
    return shares([scores[j] if j in order[:kept] else None for j in range(seen)])


def with_sink(q: Vector, i: int, seen: int, keys: Sequence[Vector], *, head: int, heads: int) -> list[float]:
    return shares([score(q, k) for k in keys[:seen]], sink=sink_logits(heads)[head].item())


def perceived(q: Vector, i: int, seen: int, keys: Sequence[Vector], *, hidden: int, **_: Any) -> list[float]:
    w1, w2, w = (x.tolist() for x in alignment(len(q), hidden))
    return shares(
        [
            math.fsum(c * math.tanh(dot(a, q) + dot(b, k)) for a, b, c in zip(w1, w2, w, strict=True))
            for k in keys[:seen]
        ]
    )


def thresholded(alpha: float, q: Vector, i: int, seen: int, keys: Sequence[Vector], **_: Any) -> list[float]:
    """[(α − 1)s − τ]₊^{1/(α−1)}, the threshold τ found by halving."""
    scaled = [(alpha - 1) * score(q, k) for k in keys[:seen]]
    low, high = max(scaled, default=0.0) - 1, max(scaled, default=0.0)
    for _step in range(60):
        tau = (low + high) / 2
        weights = [max(0.0, x - tau) ** (1 / (alpha - 1)) for x in scaled]
        low, high = (tau, high) if math.fsum(weights) > 1 else (low, tau)
    return weights


def routed(q: Vector, i: int, seen: int, keys: Sequence[Vector], *, block: int, selected: int, **_: Any) -> list[float]:
    own = i // block
    gates = [dot(q, mean(keys[first : first + block])) for first in range(0, max(0, own) * block, block)]
    best = sorted(range(len(gates)), key=lambda index: (-gates[index], index))[: selected - 1]
    return shares([score(q, keys[j]) if j // block in (own, *best) else None for j in range(seen)])


def bucket(x: Vector, rotation: Matrix) -> int:
    turned = [dot(x, column) for column in zip(*rotation, strict=True)]
    signed = turned + [-one for one in turned]
    return signed.index(max(signed))


def hashed(q: Vector, i: int, seen: int, keys: Sequence[Vector], *, chunk: int, rounds: int, **_: Any) -> list[float]:
    met: set[int] = set()
    for rotation in rotations(rounds, len(q), bucket_count(len(keys), chunk)).tolist():
        mates = [j for j in range(seen) if bucket(keys[j], rotation) == bucket(q, rotation)]
        own = max(0, sum(j <= i for j in mates) - 1) // chunk
        met |= set(mates[max(0, own - 1) * chunk : (own + 1) * chunk])
    return shares([score(q, keys[j]) if j in (met or {i}) else None for j in range(seen)])


def levels_of(i: int, j: int, head: int, segment: int, levels: int) -> int:
    """How many levels hold the pair."""
    found = 0
    for rate in (2**level for level in range(levels)):
        first = i - i % (segment * rate)
        found += {i, j} <= {n for n in range(first, first + segment * rate) if (n - head) % rate == 0}
    return found


def dilated_more_and_more(
    q: Vector, i: int, seen: int, keys: Sequence[Vector], *, head: int, heads: int, segment: int, levels: int
) -> list[float]:
    often = [levels_of(i, j, head, segment, levels) for j in range(seen)]
    return shares([score(q, k) + math.log(n) if n else None for n, k in zip(often, keys[:seen], strict=True)])


def stand_in(i: int, j: int, block: int, rank: int) -> range:
    """The keys through whose mean a query at i sees the key j; just j where they are near."""

    def apart(size: int) -> int:
        return abs(i // size - j // size)

    if apart(block) <= 1:
        return range(j, j + 1)
    while apart(2 * block) > 1:
        block *= 2
    segment = block // rank
    return range(j // segment * segment, (j // segment + 1) * segment)


def levelled(q: Vector, i: int, seen: int, keys: Sequence[Vector], *, block: int, rank: int, **_: Any) -> list[float]:
    groups = [stand_in(i, j, block, rank) for j in range(seen)]
    return shares([score(q, mean(keys[group.start : group.stop])) for group in groups])


def own_and_means(q: Vector, i: int, seen: int, keys: Sequence[Vector], *, block: int, **_: Any) -> list[float]:
    """Exact in the own block; of every other block the mean, with the weight of its tokens."""
    blocks = [keys[first : first + block] for first in range(0, len(keys), block)]
    far = [score(q, mean(one)) for one in blocks]
    return shares([score(q, keys[j]) if j // block == i // block else far[j // block] for j in range(seen)])


def row_by_row(
    row: Callable[..., list[float]],
    queries: Sequence[Vector],
    keys: Sequence[Vector],
    positions: Sequence[int],
    *,
    causal: bool,
    **options: Any,
) -> Matrix:
    def weights(q: Vector, i: int) -> list[float]:
        seen = min(len(keys), max(0, i + 1)) if causal else len(keys)
        return row(q, i, seen, keys, **options) + [0.0] * (len(keys) - seen)

    return [weights(q, i) for q, i in zip(queries, positions, strict=True)]


# ---- whole matrices


def projected_keys(
    queries: Sequence[Vector], keys: Sequence[Vector], positions: Sequence[int], *, projected: int, **_: Any
) -> Matrix:
    e, f = (x.tolist() for x in projections(len(keys), projected))
    if not keys:
        return [[] for _ in queries]
    short = times(e, [list(k) for k in keys])
    return times([shares([score(q, k) for k in short]) for q in queries], f)


def through_landmarks(
    queries: Sequence[Vector], keys: Sequence[Vector], positions: Sequence[int], *, landmarks: int, **_: Any
) -> Matrix:
    def softmax(a: Sequence[Vector], b: Sequence[Vector]) -> Matrix:
        return [shares([score(x, y) for y in b]) for x in a]

    def less(number: float, a: Matrix) -> Matrix:
        return [[number * (i == j) - x for j, x in enumerate(row)] for i, row in enumerate(a)]

    count = min(landmarks, len(keys))
    sizes = [len(keys) // count + (index < len(keys) % count) for index in range(count)]
    segments = [slice(sum(sizes[:index]), sum(sizes[: index + 1])) for index in range(count)]
    short_q, short_k = ([mean(x[segment]) for segment in segments] for x in (queries, keys))
    a = softmax(short_q, short_k)
    norm = max(sum(column) for column in zip(*a, strict=True)) * max(sum(row) for row in a)
    z = [[x / norm for x in column] for column in zip(*a, strict=True)]
    for _step in range(6):
        az = times(a, z)
        z = [[x / 4 for x in row] for row in times(z, less(13, times(az, less(15, times(az, less(7, az))))))]
    return times(times(softmax(queries, short_k), z), softmax(short_q, keys))


def alternating(
    queries: Sequence[Vector], keys: Sequence[Vector], positions: Sequence[int], *, block: int, steps: int, **_: Any
) -> Matrix:
    """R[m][b] over the places i of block m, and L[b][j] over the blocks m; positions beyond the end hold zeros."""
    count, size = -(-len(keys) // block), len(keys[0])
    parts = [keys[block * m : block * (m + 1)] for m in range(count)]
    asked = {(j, b): queries[j * block + b] for j in range(count) for b in range(len(parts[j]))}
    means = {at: asked.get(at, [0.0] * size) for at in product(range(count), range(block))}
    for _step in range(steps):
        r = {(m, b): shares([score(a, k) for k in parts[m]]) for (m, b), a in means.items()}
        left = {
            (j, b): shares(
                [
                    math.fsum(x * (score(q, k) - math.log(x)) for x, k in zip(r[m, b], parts[m], strict=True) if x)
                    for m in range(count)
                ]
            )
            for (j, b), q in asked.items()
        }
        for m, b in means:
            weighed = [(left[j, b][m], asked[j, b]) for j in range(count) if (j, b) in asked]
            mass = math.fsum(x for x, _q in weighed) + 1e-12
            means[m, b] = [math.fsum(x * q[c] for x, q in weighed) / mass for c in range(size)]
    rows = [divmod(n, block) for n in range(len(queries))]
    return [[left[j, b][m] * x for m in range(count) for x in r[m, b]] for j, b in rows]


def clustered(
    queries: Sequence[Vector], keys: Sequence[Vector], positions: Sequence[int], *, causal: bool, members: int, **_: Any
) -> Matrix:
    count = math.ceil(len(keys) / members)
    middles = centroids(count, len(keys[0])).tolist()

    def near(x: Vector, middle: Vector) -> float:
        return dot(x, middle) / math.hypot(*x)

    def home(x: Vector) -> int:
        return max(range(count), key=lambda one: (near(x, middles[one]), -one))

    def nearest(tokens: Sequence[Vector], middle: Vector) -> list[int]:
        order = sorted(range(len(tokens)), key=lambda one: (-near(tokens[one], middle), one))
        return order[: math.ceil(len(tokens) / count)]

    if causal:
        alike = [
            [j for j in range(len(keys)) if j <= i and home(keys[j]) == home(q)][-members:]
            for q, i in zip(queries, positions, strict=True)
        ]
        return [among(q, keys, chosen) for q, chosen in zip(queries, alike, strict=True)]
    held: list[Matrix] = [[] for _ in queries]
    for middle in middles:
        for row in nearest(queries, middle):
            held[row].append(among(queries[row], keys, nearest(keys, middle)))
    return [list(mean(rows)) if rows else [0.0] * len(keys) for rows in held]


def among(q: Vector, keys: Sequence[Vector], chosen: Sequence[int]) -> list[float]:
    """Softmax over the chosen keys."""
    return shares([score(q, k) if j in chosen else None for j, k in enumerate(keys)])


def through_three_branches(
    queries: Sequence[Vector],
    keys: Sequence[Vector],
    positions: Sequence[int],
    *,
    group: Sequence[Sequence[Vector]],
    head: int,
    heads: int,
    stride: int,
    compressed: int,
    merged: int,
    selected: int,
    window: int,
    **_: Any,
) -> Matrix:
    spans = [range(n, n + stride * compressed) for n in range(0, len(keys) - stride * compressed + 1, stride)]
    size = stride * merged
    every_gate = gates(heads, len(keys))[head].tolist()

    def coarse(q: Vector, i: int) -> list[float]:
        return shares([score(q, mean([keys[j] for j in span])) if span[-1] <= i else None for span in spans])

    def importance(row: int, i: int, index: int) -> float:
        strides = range(index * size, (index + 1) * size, stride)
        return math.fsum(
            weight
            for one in group
            for weight, span in zip(coarse(one[row], i), spans, strict=True)
            for first in strides
            if first in span
        )

    def weights(row: int, q: Vector, i: int) -> list[float]:
        if i < 0:
            return [0.0] * len(keys)
        own = i // size
        order = sorted(range(1, own - 1), key=lambda index: (-importance(row, i, index), index))
        blocks = {0, own - 1, own, *order[:selected]}
        fine = among(q, keys, [j for j in range(i + 1) if j // size in blocks])
        near = among(q, keys, [j for j in range(i + 1) if j > i - window])
        summed = [0.0] * len(keys)
        for weight, span in zip(coarse(q, i), spans, strict=True):
            for j in span:
                summed[j] += weight / len(span)
        a, b, c = every_gate[i]
        return [a * x + b * y + c * z for x, y, z in zip(summed, fine, near, strict=True)]

    return [weights(row, q, i) for row, (q, i) in enumerate(zip(queries, positions, strict=True))]


def coarsened(
    queries: Sequence[Vector],
    keys: Sequence[Vector],
    positions: Sequence[int],
    *,
    causal: bool,
    half_block: int,
    **_: Any,
) -> Matrix:
    def logit(i: int, j: int) -> float:
        stretch = 1
        while abs(i // (2 * half_block * stretch) - j // (2 * half_block * stretch)) > 1:
            stretch *= 2
        first, other = i - i % stretch, j - j % stretch
        asked = queries[first] if causal else mean(queries[first : first + stretch])
        return score(asked, mean(keys[other : other + stretch]))

    seen = [i + 1 if causal else len(keys) for i in positions]
    return [shares([logit(i, j) if j < seen[i] else None for j in range(len(keys))]) for i in positions]


def resolved(
    queries: Sequence[Vector], keys: Sequence[Vector], positions: Sequence[int], *, block: int, refined: int, **_: Any
) -> Matrix:
    short_q, short_k = (
        [mean(tokens[first : first + block]) for first in range(0, len(tokens), block)] for tokens in (queries, keys)
    )
    coarse = [[score(q, k) for k in short_k] for q in short_q]
    ranks = {(x, y): round((c - max(row)) * 2**20) for x, row in enumerate(coarse) for y, c in enumerate(row)}
    exact = sorted(ranks, key=lambda at: (-ranks[at], at))[: refined * len(short_q)]

    def logit(n: int, j: int) -> float:
        at = n // block, j // block
        return score(queries[n], keys[j]) if at in exact else coarse[at[0]][at[1]]

    return [shares([logit(n, j) for j in range(len(keys))]) for n in range(len(queries))]


def with_features_outside(
    queries: Sequence[Vector],
    keys: Sequence[Vector],
    positions: Sequence[int],
    *,
    causal: bool,
    window: int,
    features: int,
    **_: Any,
) -> Matrix:
    omega = projection(len(keys[0]), features).tolist()
    root = len(keys[0]) ** 0.25

    def feature_logs(x: Vector) -> list[float]:
        return [dot(row, x) / root - dot(x, x) / root**2 / 2 for row in omega]

    def kernel(a: Vector, b: Vector) -> float:
        logs = [x + y for x, y in zip(a, b, strict=True)]
        return max(logs) + math.log(math.fsum(math.exp(x - max(logs)) for x in logs) / features)

    known = [feature_logs(k) for k in keys]

    def row(q: Vector, i: int) -> list[float]:
        asked = feature_logs(q)

        def logit(j: int) -> float | None:
            if causal and j > i:
                return None
            near = i - j < window if causal else abs(i - j) <= window / 2
            return score(q, keys[j]) if near else kernel(asked, known[j])

        return shares([logit(j) for j in range(len(keys))])

    return [row(q, i) for q, i in zip(queries, positions, strict=True)]


MASKS: dict[str, Weigh] = {
    "sink_window": partial(masked, sinks_and_latest),
    "block_local": partial(masked, blocks_in_reach),
    "global_window": partial(masked, near_or_global),
    "bigbird": partial(masked, blocks_drawn),
    "neighborhood": partial(masked, neighbors),
    "neighborhood_2d": partial(masked, partial(both_axes, neighbors)),
    "hybrid": partial(masked, some_heads_all),
    "shifted_window": partial(masked, same_window),
    "shifted_window_2d": partial(masked, partial(both_axes, same_window)),
}
WEIGHTS: dict[str, Weigh] = MASKS | {
    "additive": partial(row_by_row, perceived),
    "alibi": partial(row_by_row, penalised),
    "dilated": partial(row_by_row, dilated_more_and_more),
    "entmax15": partial(row_by_row, partial(thresholded, 1.5)),
    "h_transformer": coarsened,
    "hierarchical_low_rank": partial(row_by_row, levelled),
    "learned_sink": partial(row_by_row, with_sink),
    "linformer": projected_keys,
    "lsh": partial(row_by_row, hashed),
    "moba": partial(row_by_row, routed),
    "monarch": alternating,
    "mra2": resolved,
    "nsa": through_three_branches,
    "nystrom": through_landmarks,
    "routing": clustered,
    "scatterbrain": with_features_outside,
    "sparsemax": partial(row_by_row, partial(thresholded, 2.0)),
    "temperature": partial(row_by_row, cooled),
    "top_k": partial(row_by_row, largest),
    "two_level": partial(row_by_row, own_and_means),
}
PARAMETERS: dict[str, list[dict[str, int]]] = {
    "additive": [{"hidden": 1}, {"hidden": 5}],
    "bigbird": [
        {"block": 1, "random": 2},
        {"block": 2, "random": 2},
        {"block": 4, "random": 0},
        {"block": 2, "random": 99},
    ],
    "block_local": [{"block": 1, "look_back": 1}, {"block": 4, "look_back": 0}, {"block": 4, "look_back": 2}],
    "global_window": [
        {"window": 1, "global_tokens": 1},
        {"window": 4, "global_tokens": 0},
        {"window": 5, "global_tokens": 3},
        {"window": 6, "global_tokens": 30},
    ],
    "hierarchical_low_rank": [
        {"block": 1, "rank": 1},
        {"block": 2, "rank": 1},
        {"block": 3, "rank": 3},
        {"block": 4, "rank": 2},
    ],
    "h_transformer": [{"half_block": 1}, {"half_block": 2}, {"half_block": 3}, {"half_block": 30}],
    "dilated": [
        {"segment": 1, "levels": 4},
        {"segment": 3, "levels": 1},
        {"segment": 2, "levels": 3},
        {"segment": 4, "levels": 2},
    ],
    "hybrid": [
        {"full_heads": 0, "window": 4},
        {"full_heads": 250, "window": 5},
        {"full_heads": 500, "window": 1},
        {"full_heads": 1000, "window": 2},
    ],
    "monarch": [
        {"block": 1, "steps": 2},
        {"block": 3, "steps": 1},
        {"block": 4, "steps": 3},
        {"block": 64, "steps": 2},
    ],
    "mra2": [
        {"block": 1, "refined": 2},
        {"block": 3, "refined": 1},
        {"block": 4, "refined": 2},
        {"block": 2, "refined": 50},
    ],
    "scatterbrain": [
        {"window": 1, "features": 4},
        {"window": 4, "features": 16},
        {"window": 5, "features": 1},
        {"window": 60, "features": 2},
    ],
    "shifted_window": [{"window": 1}, {"window": 4}, {"window": 5}, {"window": 60}],
    "shifted_window_2d": [
        {"window": 1, "grid_width": 4},
        {"window": 2, "grid_width": 5},
        {"window": 3, "grid_width": 4},
        {"window": 4, "grid_width": 1},
        {"window": 60, "grid_width": 30},
    ],
    "linformer": [{"projected": 1}, {"projected": 5}],
    "moba": [
        {"block": 1, "selected": 4},
        {"block": 4, "selected": 1},
        {"block": 4, "selected": 3},
        {"block": 3, "selected": 50},
    ],
    "neighborhood": [
        {"window": 1, "dilation": 1},
        {"window": 4, "dilation": 1},
        {"window": 5, "dilation": 2},
        {"window": 3, "dilation": 4},
        {"window": 30, "dilation": 3},
    ],
    "lsh": [
        {"chunk": 1, "rounds": 1},
        {"chunk": 2, "rounds": 3},
        {"chunk": 4, "rounds": 2},
        {"chunk": 64, "rounds": 1},
    ],
    "nsa": [
        {"stride": 1, "compressed": 1, "merged": 1, "selected": 3, "window": 2},
        {"stride": 1, "compressed": 2, "merged": 3, "selected": 1, "window": 1},
        {"stride": 2, "compressed": 2, "merged": 1, "selected": 2, "window": 3},
        {"stride": 2, "compressed": 3, "merged": 2, "selected": 0, "window": 30},
        {"stride": 30, "compressed": 1, "merged": 1, "selected": 1, "window": 4},
    ],
    "neighborhood_2d": [
        {"window": 1, "dilation": 1, "grid_width": 4},
        {"window": 2, "dilation": 1, "grid_width": 5},
        {"window": 3, "dilation": 2, "grid_width": 6},
        {"window": 3, "dilation": 1, "grid_width": 1},
        {"window": 30, "dilation": 2, "grid_width": 30},
    ],
    "nystrom": [{"landmarks": 1}, {"landmarks": 4}, {"landmarks": 64}],
    "routing": [{"members": 1}, {"members": 2}, {"members": 5}, {"members": 64}],
    "sink_window": [
        {"window": 1, "sinks": 2},
        {"window": 4, "sinks": 3},
        {"window": 5, "sinks": 0},
        {"window": 3, "sinks": 30},
    ],
    "temperature": [{"percent": 50}, {"percent": 100}, {"percent": 730}],
    "top_k": [{"kept": 1}, {"kept": 4}, {"kept": 30}],
    "two_level": [{"block": 1}, {"block": 4}, {"block": 30}],
}
ONE_MASK_ONLY = dict.fromkeys(("moba", "nsa", "sink_window"), True) | dict.fromkeys(
    ("bigbird", "linformer", "monarch", "mra2", "nystrom", "shifted_window", "shifted_window_2d"), False
)
SELF_ATTENTION = {
    "bigbird",
    "dilated",
    "h_transformer",
    "monarch",
    "neighborhood",
    "neighborhood_2d",
    "nystrom",
    "shifted_window",
    "shifted_window_2d",
    "two_level",
}
SIZES = [(0, 0), (1, 1), (7, 7), (21, 21), (3, 20), (20, 3), (1, 19), (5, 0), (0, 5)]


def forms(chosen: Sequence[str] = tuple(WEIGHTS)) -> list[tuple[str, bool, dict[str, int]]]:
    masks = {name: [ONE_MASK_ONLY[name]] if name in ONE_MASK_ONLY else [False, True] for name in sorted(chosen)}
    return [form for name in masks for form in product([name], masks[name], PARAMETERS.get(name, [{}]))]


def sizes(name: str) -> list[tuple[int, int]]:
    return [(n, m) for n, m in SIZES if n == m or name not in SELF_ATTENTION]


def cases() -> list[tuple[Any, ...]]:
    return [(*form, *size) for form in forms() for size in sizes(form[0])]


def inputs(tokens: int, kv_tokens: int, *, heads: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(2, heads, tokens, 3, dtype=torch.float64)
    k = torch.randn(2, 1, kv_tokens, 3, dtype=torch.float64)
    return q, k, torch.randn(2, 1, kv_tokens, 4, dtype=torch.float64)


def seen_weights(name: str, q: Tensor, k: Tensor, *, causal: bool, parameters: dict[str, int] | None = None) -> Tensor:
    """The oracle's weights, which are its output where v is the identity."""
    v = torch.eye(k.shape[2], dtype=torch.float64).expand(*k.shape[:2], -1, -1)
    return DEFINITIONS[name].reference(q, k, v, causal=causal, parameters=parameters)


def by_hand(name: str, q: Tensor, k: Tensor, *, causal: bool, parameters: dict[str, int]) -> Tensor:
    heads, tokens, kv_tokens = q.shape[1], q.shape[2], k.shape[2]
    weights = torch.zeros(*q.shape[:3], kv_tokens, dtype=torch.float64)
    positions = range(kv_tokens - tokens, kv_tokens)
    if tokens and kv_tokens:
        for item, head in product(range(q.shape[0]), range(heads)):
            queries, keys = q[item, head].tolist(), k[item, head * k.shape[1] // heads].tolist()
            others: dict[str, Any] = {}
            if DEFINITIONS[name].by_group:
                group = heads // k.shape[1]
                others = {"group": q[item, head // group * group :][:group].tolist()}
            options = {"causal": causal, "head": head, "heads": heads} | parameters | others
            rows = WEIGHTS[name](queries, keys, positions, **options)
            weights[item, head] = torch.tensor(rows, dtype=torch.float64)
    return weights


def label(value: object) -> str | None:
    return "-".join(map(str, value.values())) or "none" if isinstance(value, dict) else None


@pytest.mark.parametrize(("name", "causal", "parameters", "tokens", "kv_tokens"), cases(), ids=label)
def test_oracle_is_the_formula(
    name: str, causal: bool, parameters: dict[str, int], tokens: int, kv_tokens: int
) -> None:
    q, k, v = inputs(tokens, kv_tokens)
    got = DEFINITIONS[name].reference(q, k, v, causal=causal, parameters=parameters)
    expected = by_hand(name, q, k, causal=causal, parameters=parameters) @ v
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    if causal:
        assert not got[:, :, : max(0, tokens - kv_tokens)].any()  # queries that see no key


@pytest.mark.parametrize(("name", "causal", "parameters"), forms(), ids=label)
def test_large_logits_neither_overflow_nor_vanish(name: str, causal: bool, parameters: dict[str, int]) -> None:
    q, k, v = inputs(9, 9)
    q, k = 40 * q, 40 * k
    got = DEFINITIONS[name].reference(q, k, v, causal=causal, parameters=parameters)
    assert got.isfinite().all()
    expected = by_hand(name, q, k, causal=causal, parameters=parameters) @ v
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "causal", "parameters"), forms(), ids=label)
def test_gradients_are_finite(name: str, causal: bool, parameters: dict[str, int]) -> None:
    kv_tokens = 9 if name in SELF_ATTENTION else 5  # with rows that see no key
    leaves = [x.requires_grad_() for x in inputs(9, kv_tokens)]
    DEFINITIONS[name].reference(*leaves, causal=causal, parameters=parameters).square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.parametrize(("name", "causal", "parameters"), forms(), ids=label)
def test_some_rows_are_those_of_all(name: str, causal: bool, parameters: dict[str, int]) -> None:
    q, k, v = inputs(13, 13)
    everything = DEFINITIONS[name].reference(q, k, v, causal=causal, parameters=parameters)
    for chosen in ([12, 3, 3, 0], []):
        rows = torch.tensor(chosen, dtype=torch.int64)
        some = DEFINITIONS[name].reference(q, k, v, causal=causal, parameters=parameters, rows=rows)
        torch.testing.assert_close(some, everything[:, :, rows], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "causal", "parameters"), forms(), ids=label)
def test_rows_sum_to_one_where_a_definition_says_so(name: str, causal: bool, parameters: dict[str, int]) -> None:
    q, k, _ = inputs(19, 19)
    sums = seen_weights(name, q, k, causal=causal, parameters=parameters).sum(-1)
    ones = torch.allclose(sums, torch.ones_like(sums), rtol=1e-12)
    assert ones or not DEFINITIONS[name].normalised


@pytest.mark.parametrize("name", sorted(SELF_ATTENTION))
def test_another_number_of_queries_is_refused_where_there_is_no_form(name: str) -> None:
    with pytest.raises(ValueError, match="tokens = kv_tokens"):
        DEFINITIONS[name].reference(*inputs(3, 4), causal=ONE_MASK_ONLY.get(name, False))


@pytest.mark.parametrize("name", sorted(ONE_MASK_ONLY))
def test_a_mask_is_refused_where_there_is_no_form(name: str) -> None:
    with pytest.raises(ValueError, match="causal"):
        DEFINITIONS[name].reference(*inputs(3, 3), causal=not ONE_MASK_ONLY[name])


# ---- the declared pairs


@pytest.mark.parametrize(("name", "causal", "parameters"), forms([*MASKS, "moba", "top_k"]), ids=label)
def test_visible_pairs_are_the_weights_that_are_not_zero(name: str, causal: bool, parameters: dict[str, int]) -> None:
    for tokens, kv_tokens in sizes(name):
        q, k, _ = inputs(tokens, kv_tokens)
        weights = seen_weights(name, q, k, causal=causal, parameters=parameters)
        problem = Problem(tokens, kv_tokens=kv_tokens, heads=3, head_dim=3, causal=causal)
        pairs = DEFINITIONS[name].visible_pairs(problem, **parameters)
        for item in weights:
            assert pairs == int((item != 0).sum()) // 3  # the mean over the heads


@pytest.mark.parametrize(("name", "causal", "parameters"), forms(["hierarchical_low_rank"]), ids=label)
def test_a_far_segment_is_one_pair(name: str, causal: bool, parameters: dict[str, int]) -> None:
    for tokens, kv_tokens in sizes(name):
        seen = product(range(kv_tokens - tokens, kv_tokens), range(kv_tokens))
        pairs = {(i, stand_in(i, j, **parameters)) for i, j in seen if j <= i or not causal}
        problem = Problem(tokens, kv_tokens=kv_tokens, causal=causal)
        assert DEFINITIONS[name].visible_pairs(problem, **parameters) == len(pairs)


@pytest.mark.parametrize(("name", "causal", "parameters"), forms(["h_transformer"]), ids=label)
@pytest.mark.parametrize("tokens", [0, 1, 7, 21, 64])
def test_two_stretches_are_one_pair(name: str, causal: bool, parameters: dict[str, int], tokens: int) -> None:
    def stretches(i: int, j: int) -> tuple[int, int, int]:
        size, block = 1, 2 * parameters["half_block"]
        while abs(i // (block * size) - j // (block * size)) > 1:
            size *= 2
        return size, i // size, j // size

    pairs = {stretches(i, j) for i, j in product(range(tokens), range(tokens)) if j <= i or not causal}
    assert DEFINITIONS[name].visible_pairs(Problem(tokens, causal=causal), **parameters) == len(pairs)


@pytest.mark.parametrize(("name", "causal", "parameters"), forms(["dilated"]), ids=label)
@pytest.mark.parametrize("tokens", [0, 1, 7, 21])
def test_a_pair_counts_in_every_level_that_holds_it(
    name: str, causal: bool, parameters: dict[str, int], tokens: int
) -> None:
    places = product(range(tokens), range(tokens), range(5))
    drawn = [levels_of(i, j, head, **parameters) for i, j, head in places if j <= i or not causal]
    pairs = DEFINITIONS[name].visible_pairs(Problem(tokens, heads=5, causal=causal), **parameters)
    assert pairs == sum(drawn) // 5


@pytest.mark.parametrize("name", ["additive", "alibi", "entmax15", "learned_sink", "sparsemax", "temperature"])
@pytest.mark.parametrize(("causal", "pairs"), [(False, 12), (True, 9)])
def test_all_pairs_are_scored(name: str, causal: bool, pairs: int) -> None:
    problem = Problem(3, kv_tokens=4, causal=causal)
    assert DEFINITIONS[name].visible_pairs(problem, **DEFINITIONS[name].resolve()) == pairs


@pytest.mark.parametrize(
    ("name", "parameters", "pairs"),
    [
        ("linformer", {"projected": 5}, 5 * (6 + 6)),  # queries with projected keys, and keys with the projections
        ("monarch", {"block": 4, "steps": 3}, 3 * 6 * (4 + 2)),  # in each step own block, and own place in the blocks
        ("nystrom", {"landmarks": 2}, 6 * 2 + 2 * 6),
        ("nystrom", {"landmarks": 64}, 6 * 6 + 6 * 6),
        ("two_level", {"block": 4}, 4 * (4 + 1) + 2 * (2 + 1)),
        ("mra2", {"block": 2, "refined": 2}, 6 * 2 * 2 + 3),  # six blocks of the nine, and the means of the others
        ("mra2", {"block": 2, "refined": 9}, 6 * 6),
        # within a window of 2 on either side 16 pairs; all tokens have one outside: 4 features for query and key
        ("scatterbrain", {"window": 2, "features": 4}, 16 + 6 * 4),
        ("scatterbrain", {"window": 8, "features": 4}, 36 - 2 + 2 * 4),  # the first and the last token
    ],
)
def test_pairs_with_what_stands_for_the_keys(name: str, parameters: dict[str, int], pairs: int) -> None:
    assert DEFINITIONS[name].visible_pairs(Problem(6), **parameters) == pairs


@pytest.mark.parametrize(
    ("name", "causal", "parameters", "pairs"),
    [
        # 4 buckets: in two rounds half of what a query may see, and one key at least
        ("lsh", False, {"chunk": 4, "rounds": 2}, 6 * 3),
        ("lsh", True, {"chunk": 4, "rounds": 2}, 1 + 1 + 1 + 2 + 2 + 3),
        # two clusters of three queries and three keys
        ("routing", False, {"members": 4}, 2 * 3 * 3),
        ("routing", True, {"members": 4}, 0 + 1 + 1 + 2 + 2 + 3),
        ("routing", True, {"members": 3}, 0 + 1 + 1 + 2 + 2 + 3),
        # compressed, own block, two past blocks, window
        (
            "nsa",
            True,
            {"stride": 1, "compressed": 2, "merged": 2, "selected": 0, "window": 3},
            (0 + 1 + 2 + 3 + 4 + 5) + (1 + 2 + 1 + 2 + 1 + 2) + (0 + 0 + 2 + 2 + 4 + 4) + (1 + 2 + 3 + 3 + 3 + 3),
        ),
    ],
)
def test_pairs_that_depend_on_the_inputs_count_as_if_even(
    name: str, causal: bool, parameters: dict[str, int], pairs: int
) -> None:
    assert DEFINITIONS[name].visible_pairs(Problem(6, causal=causal), **parameters) == pairs


# ---- pictures: a row is a query, a column a key


@pytest.mark.parametrize(
    ("name", "causal", "parameters", "rows"),
    [
        ("sink_window", True, {"window": 2, "sinks": 1}, "x..... xx.... xxx... x.xx.. x..xx. x...xx"),
        ("sink_window", True, {"window": 1, "sinks": 2}, "x.... xx... xxx.. xx.x. xx..x"),
        ("sink_window", True, {"window": 3, "sinks": 0}, "x.... xx... xxx.. .xxx. ..xxx"),
        ("sink_window", True, {"window": 2, "sinks": 1}, "x..xx. x...xx"),
        ("sink_window", True, {"window": 2, "sinks": 1}, ".. .. x. xx"),
        ("block_local", False, {"block": 2, "look_back": 0}, "xx... xx... ..xx. ..xx. ....x"),
        ("block_local", False, {"block": 2, "look_back": 1}, "xxxx... xxxx... xxxxxx. xxxxxx. ..xxxxx ..xxxxx ....xxx"),
        ("block_local", True, {"block": 2, "look_back": 1}, "x..... xx.... xxx... xxxx.. ..xxx. ..xxxx"),
        ("block_local", True, {"block": 2, "look_back": 0}, "..xx. ....x"),
        ("global_window", False, {"window": 2, "global_tokens": 1}, "xxxxx xxx.. xxxx. x.xxx x..xx"),
        ("global_window", False, {"window": 3, "global_tokens": 1}, "xxxxx xxx.. xxxx. x.xxx x..xx"),
        ("global_window", True, {"window": 2, "global_tokens": 1}, "x.... xx... xxx.. x.xx. x..xx"),
        ("global_window", True, {"window": 1, "global_tokens": 2}, "xx.x. xx..x"),
        ("neighborhood", False, {"window": 3, "dilation": 1}, "xxx.. xxx.. .xxx. ..xxx ..xxx"),
        ("neighborhood", False, {"window": 4, "dilation": 1}, "xxxx.. xxxx.. xxxx.. .xxxx. ..xxxx ..xxxx"),
        ("neighborhood", True, {"window": 3, "dilation": 1}, "x.... xx... xxx.. .xxx. ..xxx"),
        ("neighborhood", False, {"window": 2, "dilation": 2}, "x.x.. .x.x. x.x.. .x.x. ..x.x"),
        ("neighborhood", True, {"window": 2, "dilation": 2}, "x.... .x... x.x.. .x.x. ..x.x"),
        ("bigbird", False, {"block": 1, "random": 0}, "xxxxxx xxx..x xxxx.x x.xxxx x..xxx xxxxxx"),
        ("bigbird", False, {"block": 1, "random": 9}, "xxxxxx xxxxxx xxxxxx xxxxxx xxxxxx xxxxxx"),
        ("dilated", False, {"segment": 2, "levels": 2}, "xxx... xx.... x.xx.. ..xx.. ....xx ....xx"),
        ("dilated", True, {"segment": 2, "levels": 2}, "x..... xx.... x.x... ..xx.. ....x. ....xx"),
        ("hybrid", False, {"full_heads": 400, "window": 2}, "xx... xxx.. .xxx. ..xxx ...xx"),
        ("hybrid", True, {"full_heads": 400, "window": 2}, "...xx. ....xx"),
        ("shifted_window", False, {"window": 4}, "xx..... xx..... ..xxxx. ..xxxx. ..xxxx. ..xxxx. ......x"),
        ("shifted_window", False, {"window": 3}, "x.... .xxx. .xxx. .xxx. ....x"),
        # an image of three columns, its third line of two pixels
        (
            "shifted_window_2d",
            False,
            {"window": 2, "grid_width": 3},
            "x....... .xx..... .xx..... ...x..x. ....xx.x ....xx.x ...x..x. ....xx.x",
        ),
        (
            "neighborhood_2d",
            False,
            {"window": 2, "dilation": 1, "grid_width": 3},
            "xx.xx... xx.xx... .xx.xx.. xx.xx... xx.xx... .xx.xx.. ...xx.xx ...xx.xx",
        ),
        (
            "neighborhood_2d",
            True,
            {"window": 2, "dilation": 1, "grid_width": 3},
            "x....... xx...... .xx..... x..x.... xx.xx... .xx.xx.. ...x..x. ...xx.xx",
        ),
        (
            "neighborhood_2d",
            False,
            {"window": 2, "dilation": 2, "grid_width": 3},
            "x.x...x. .x.....x x.x...x. ...x.x.. ....x... ...x.x.. x.x...x. .x.....x",
        ),
        ("moba", True, {"block": 2, "selected": 1}, "x.... xx... ..x.. ..xx. ....x"),
        ("moba", True, {"block": 2, "selected": 9}, "x.... xx... xxx.. xxxx. xxxxx"),
    ],
)
def test_an_oracle_sees_what_is_drawn(name: str, causal: bool, parameters: dict[str, int], rows: str) -> None:
    drawn = rows.split()
    q, k, _ = inputs(len(drawn), len(drawn[0]))
    weights = seen_weights(name, q, k, causal=causal, parameters=parameters)
    assert ["".join(".x"[bool(seen)] for seen in row) for row in weights[0, -1] != 0] == drawn


def test_heads_of_one_definition_see_different_keys() -> None:
    q, k, _ = inputs(5, 5, heads=4)
    hybrid = seen_weights("hybrid", q, k, causal=True, parameters={"full_heads": 250, "window": 1})
    assert (hybrid != 0).sum((2, 3)).tolist() == [[15, 5, 5, 5]] * 2
    shifted = seen_weights("shifted_window", q, k, causal=False, parameters={"window": 4})
    assert (shifted != 0).sum((2, 3)).tolist() == [[16 + 1] * 2 + [4 + 9] * 2] * 2
    square = seen_weights("shifted_window_2d", q, k, causal=False, parameters={"window": 2, "grid_width": 3})
    assert (square != 0).sum((2, 3)).tolist() == [[16 + 1] * 2 + [1 + 4 + 1 + 1] * 2] * 2
    dilated = seen_weights("dilated", q, k, causal=False, parameters={"segment": 1, "levels": 3})
    assert torch.equal(dilated, torch.eye(5, dtype=torch.float64).expand_as(dilated))


@pytest.mark.parametrize(
    ("heads", "thousandths", "full"),
    [(8, 250, 2), (1, 499, 0), (1, 500, 1), (3, 500, 2), (2, 250, 1), (12, 0, 0), (12, 1000, 12)],
)
def test_hybrid_rounds_its_full_heads_to_the_nearest(heads: int, thousandths: int, full: int) -> None:
    parameters = {"full_heads": thousandths, "window": 1}
    pairs = DEFINITIONS["hybrid"].visible_pairs(Problem(10, heads=heads), **parameters)
    assert pairs == (full * 100 + (heads - full) * 10) // heads


def test_dilated_mixes_its_levels_by_their_denominators() -> None:
    q = torch.zeros(1, 1, 4, 2, dtype=torch.float64)
    weights = seen_weights("dilated", q, q, causal=False, parameters={"segment": 2, "levels": 2})[0, 0]
    # of equal scores: 0 with itself in two levels, with 1 in the first, with 2 in the second
    torch.testing.assert_close(weights[0], torch.tensor([2, 1, 1, 0], dtype=torch.float64) / 4)
    torch.testing.assert_close(weights[1], torch.tensor([1, 1, 0, 0], dtype=torch.float64) / 2)


def test_bigbird_draws_as_many_blocks_as_it_says_for_every_head_its_own() -> None:
    drawn = random_blocks(heads=4, blocks=12, count=3)
    apart = (torch.arange(12)[:, None] - torch.arange(12)).abs()
    assert drawn.sum(-1).tolist() == [[0, *[3] * 10, 0]] * 4
    assert not drawn[:, apart <= 1].any()
    assert not drawn[:, :, [0, -1]].any()
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn, random_blocks(heads=4, blocks=12, count=3))


# ---- facts that are known without a computation


def softmax_output(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    return DEFINITIONS["full"].reference(q, k, v, causal=causal)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("temperature", {"percent": 100}),
        ("top_k", {"kept": 9}),
        ("top_k", {"kept": 1000}),
        ("block_local", {"block": 3, "look_back": 2}),
        ("global_window", {"window": 18, "global_tokens": 0}),
        ("global_window", {"window": 1, "global_tokens": 9}),
        ("hierarchical_low_rank", {"block": 5, "rank": 1}),
        ("hierarchical_low_rank", {"block": 1, "rank": 1}),
        ("dilated", {"segment": 9, "levels": 1}),
        ("hybrid", {"full_heads": 1000, "window": 1}),
        ("hybrid", {"full_heads": 0, "window": 18}),
        ("monarch", {"block": 9, "steps": 1}),
        ("monarch", {"block": 64, "steps": 3}),
        ("monarch", {"block": 1, "steps": 2}),
        ("shifted_window", {"window": 18}),
        ("shifted_window_2d", {"window": 18, "grid_width": 4}),
        ("neighborhood_2d", {"window": 9, "dilation": 1, "grid_width": 9}),
        ("neighborhood_2d", {"window": 9, "dilation": 1, "grid_width": 1}),
        ("two_level", {"block": 1}),
        ("two_level", {"block": 9}),
        ("h_transformer", {"half_block": 3}),
        ("h_transformer", {"half_block": 40}),
        ("mra2", {"block": 9, "refined": 1}),
        ("mra2", {"block": 2, "refined": 5}),
        ("mra2", {"block": 1, "refined": 1}),
        ("scatterbrain", {"window": 18, "features": 1}),
        ("sink_window", {"window": 9, "sinks": 0}),
        ("sink_window", {"window": 1, "sinks": 9}),
        ("neighborhood", {"window": 9, "dilation": 1}),
        ("bigbird", {"block": 4, "random": 0}),
        ("bigbird", {"block": 1, "random": 9}),
        ("moba", {"block": 2, "selected": 5}),
        ("routing", {"members": 9}),
        ("lsh", {"chunk": 9, "rounds": 64}),
    ],
)
def test_full_attention_at_the_end_of_the_parameters(name: str, parameters: dict[str, int]) -> None:
    q, k, v = inputs(9, 9)
    if name == "hierarchical_low_rank" and parameters["block"] == 1:
        k = k[:, :, :1].expand_as(k)  # keys that equal their means
    for causal in {form[1] for form in forms([name])}:
        got = DEFINITIONS[name].reference(q, k, v, causal=causal, parameters=parameters)
        torch.testing.assert_close(got, softmax_output(q, k, v, causal=causal), rtol=1e-10, atol=1e-11)


def test_lsh_puts_a_scaled_key_into_the_same_bucket_and_its_opposite_into_another() -> None:
    q, k, _ = inputs(1, 1, heads=1)
    for scale, seen in [(1.0, 1), (1e6, 1), (1e-6, 1), (-1.0, 0)]:
        for position in (0, 1):  # as the own key, which is seen in any case, and as another
            keys = torch.cat((scale * q, k), 2) if position else scale * q
            weights = seen_weights("lsh", q, keys, causal=True, parameters={"chunk": 4, "rounds": 5})[..., 0]
            assert bool((weights > 0).all()) == bool(seen or not position)


def test_lsh_sees_the_chunk_before_but_none_further_back() -> None:
    q = torch.ones(1, 1, 7, 3, dtype=torch.float64)
    for causal, last in [(False, ".....xx"), (True, ".....xx")]:
        weights = seen_weights("lsh", q, q, causal=causal, parameters={"chunk": 1, "rounds": 2})
        assert "".join(".x"[bool(seen)] for seen in weights[0, 0, -1] != 0) == last
    weights = seen_weights("lsh", q, q, causal=True, parameters={"chunk": 2, "rounds": 2})
    assert (weights[0, 0] != 0).sum(-1).tolist() == [1, 2, 3, 4, 3, 4, 3]


def test_routing_leaves_out_tokens_that_no_cluster_holds_and_means_over_those_that_do() -> None:
    q, k, _ = inputs(12, 12)
    sums = seen_weights("routing", q, k, causal=False, parameters={"members": 3}).sum(-1)
    assert bool(torch.isclose(sums, torch.ones_like(sums)).logical_or(sums == 0).all())
    assert 0 < int((sums == 0).sum()) < sums.numel()


def test_nsa_selects_for_a_whole_group_of_heads() -> None:
    q, k, _ = inputs(21, 21)
    parameters = {"stride": 1, "compressed": 1, "merged": 1, "selected": 2, "window": 1}
    together = seen_weights("nsa", q, k, causal=True, parameters=parameters)
    alone = seen_weights("nsa", q, k.expand(-1, 3, -1, -1), causal=True, parameters=parameters)
    assert not torch.allclose(together, alone)
    alike = q[:, :1].expand(-1, 3, -1, -1)
    together = seen_weights("nsa", alike, k, causal=True, parameters=parameters)
    alone = seen_weights("nsa", alike, k.expand(-1, 3, -1, -1), causal=True, parameters=parameters)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-14)


def test_alibi_is_softmax_of_the_distance_where_all_scores_are_equal() -> None:
    q = torch.zeros(1, 8, 3, 2, dtype=torch.float64)
    weights = seen_weights("alibi", q, q, causal=True)
    for head, slope in enumerate([1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]):
        ratios = weights[0, head, 2] / weights[0, head, 2, 2]
        torch.testing.assert_close(ratios.log(), torch.tensor([-2, -1, 0]).double() * slope)
    both = seen_weights("alibi", q, q, causal=False)
    torch.testing.assert_close(both[0, 0, 1], both[0, 0, 1].flip(0))  # alike on both sides


@pytest.mark.parametrize("causal", [False, True])
def test_alibi_with_one_key_or_equal_distances_is_softmax(causal: bool) -> None:
    q, k, v = inputs(1, 1)
    assert torch.equal(DEFINITIONS["alibi"].reference(q, k, v, causal=causal), v.expand(-1, 3, -1, -1))
    q, k, v = inputs(3, 3)
    k[:, :, 2] = k[:, :, 0]
    weights = seen_weights("alibi", q, k, causal=False)[:, :, 1]
    torch.testing.assert_close(weights[..., 0], weights[..., 2])


def test_learned_sink_takes_its_share() -> None:
    q = torch.zeros(1, 3, 2, 4, dtype=torch.float64)
    kept = seen_weights("learned_sink", q, q, causal=False).sum(-1)[0]
    sink = sink_logits(3).exp()
    torch.testing.assert_close(kept, (2 / (2 + sink))[:, None].expand(-1, 2))
    seen_one = seen_weights("learned_sink", q, q, causal=True).sum(-1)[0, :, 0]
    torch.testing.assert_close(seen_one, torch.sigmoid(-sink_logits(3)))


def test_learned_sink_is_softmax_by_the_share_of_its_log_sum_exp() -> None:
    q, k, v = inputs(5, 6)
    lse = (torch.einsum("bhid,bkjd->bhij", q, k) / 3**0.5).logsumexp(-1)
    share = torch.sigmoid(lse - sink_logits(3)[:, None])[..., None]
    got = DEFINITIONS["learned_sink"].reference(q, k, v, causal=False)
    torch.testing.assert_close(got, softmax_output(q, k, v, causal=False) * share, rtol=1e-12, atol=1e-13)


def logits_of(*scores: float) -> tuple[Tensor, Tensor]:
    """q and k with these scores, in one dimension."""
    return torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.tensor(scores, dtype=torch.float64)[None, None, :, None]


def test_equal_scores_keep_the_earlier_keys_in_top_k() -> None:
    q, k = logits_of(1, 2, 1, 1, 2)
    for kept, seen in [(1, [1]), (2, [1, 4]), (3, [0, 1, 4]), (4, [0, 1, 2, 4])]:
        weights = seen_weights("top_k", q, k, causal=False, parameters={"kept": kept})[0, 0, 0]
        assert weights.nonzero().flatten().tolist() == seen


def test_equal_gates_pick_the_earlier_block_in_moba() -> None:
    q, k = logits_of(0, 2, 1, 1, 2, 0, 0)
    weights = seen_weights("moba", q, k, causal=True, parameters={"block": 2, "selected": 2})[0, 0, 0]
    assert weights.nonzero().flatten().tolist() == [0, 1, 6]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ((0, 0, 0, 0), (1 / 4, 1 / 4, 1 / 4, 1 / 4)),
        ((1, 0, -1), (1, 0, 0)),
        ((0.5, 0, -1), (3 / 4, 1 / 4, 0)),
        ((0.3, 0.3, 0), (0.4333333333333333, 0.4333333333333333, 0.13333333333333333)),
        ((100, 99.5, -100), (3 / 4, 1 / 4, 0)),
    ],
)
def test_sparsemax_is_the_nearest_point_of_the_simplex(scores: Vector, expected: Vector) -> None:
    weights = seen_weights("sparsemax", *logits_of(*scores), causal=False)[0, 0, 0]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ((0, 0, 0, 0), (1 / 4, 1 / 4, 1 / 4, 1 / 4)),
        ((2, 0), (1, 0)),
        ((3, 0, 0), (1, 0, 0)),
        # the square roots of 0.36 and 0.64 lie 0.2 apart: half the difference of the scores
        ((0, 0.4), (0.36, 0.64)),
        ((500, 500.4, 0), (0.36, 0.64, 0)),
    ],
)
def test_entmax15_weights_are_squares_of_shifted_halves(scores: Vector, expected: Vector) -> None:
    weights = seen_weights("entmax15", *logits_of(*scores), causal=False)[0, 0, 0]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["sparsemax", "entmax15"])
def test_simplex_weights_are_sparse_and_sum_to_one(name: str) -> None:
    q, k, _ = inputs(21, 21)
    weights = seen_weights(name, 9 * q, k, causal=True)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 21, dtype=torch.float64))
    assert weights.min() == 0
    support = (weights[:, :, 20] > 0).sum(-1)
    assert int(support.min()) >= 1
    assert int(support.max()) < 15


def test_sparsemax_keeps_fewer_keys_than_entmax15() -> None:
    q, k, _ = inputs(21, 21)
    kept = {name: int((seen_weights(name, q, k, causal=False) > 0).sum()) for name in ("sparsemax", "entmax15")}
    assert kept["sparsemax"] < kept["entmax15"] < 2 * 3 * 21 * 21


def test_a_low_temperature_picks_the_largest_score_and_a_high_one_none() -> None:
    q, k = logits_of(1, 2, 0)
    cold = seen_weights("temperature", q, k, causal=False, parameters={"percent": 1})[0, 0, 0]
    torch.testing.assert_close(cold, torch.tensor([0, 1, 0], dtype=torch.float64))
    half = seen_weights("temperature", q, k, causal=False, parameters={"percent": 50})[0, 0, 0]
    torch.testing.assert_close(half, torch.softmax(torch.tensor([2, 4, 0], dtype=torch.float64), 0))


def test_additive_scores_do_not_need_a_product() -> None:
    """Its scores of a query and a key are bounded by the sum of |w|, however long they are."""
    q, k, _ = inputs(4, 4)
    weights = seen_weights("additive", 1e6 * q, 1e6 * k, causal=False, parameters={"hidden": 3})
    bound = math.exp(2 * alignment(3, 3)[2].abs().sum().item())
    assert weights.amax() / weights.amin() <= bound * (1 + 1e-12)
    w1, w2, w = alignment(64, 4096)
    assert w1.var().item() == pytest.approx(1 / 64, rel=0.02)
    assert w2.var().item() == pytest.approx(1 / 64, rel=0.02)
    assert w.var().item() == pytest.approx(1, rel=0.1)


def test_linformer_projects_with_variance_one_over_the_projected_length() -> None:
    e, f = projections(512, 64)
    assert e.shape == f.shape == (64, 512)
    for matrix in (e, f):
        assert matrix.mean().item() == pytest.approx(0, abs=0.01)
        assert matrix.var().item() == pytest.approx(1 / 64, rel=0.05)
    assert not torch.equal(e, f)


def test_nystrom_of_equal_keys_is_the_mean_of_the_values() -> None:
    q, k, v = inputs(9, 9)
    got = DEFINITIONS["nystrom"].reference(q, k[:, :, :1].expand_as(k), v, causal=False, parameters={"landmarks": 1})
    torch.testing.assert_close(got, v.mean(2, keepdim=True).expand_as(got), rtol=1e-12, atol=1e-13)


def test_nystrom_with_a_landmark_for_each_token_nears_softmax() -> None:
    """Then A Z A, with a Z that nears the inverse of A, is A itself."""
    q, k, v = inputs(3, 3)
    q, k = (8 * torch.eye(3, dtype=torch.float64).expand(2, heads, -1, -1) for heads in (3, 1))
    got = DEFINITIONS["nystrom"].reference(q, k, v, causal=False, parameters={"landmarks": 3})
    torch.testing.assert_close(got, softmax_output(q, k, v, causal=False), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("parameters", "last_row", "causal"),
    [
        ({"block": 1, "rank": 1}, "aaaabbbbccddefgh", True),
        ({"block": 2, "rank": 2}, "aabbccddefghijkl", True),
        ({"block": 2, "rank": 1}, "aaaaaaaabbbbbbbbccccddeefghi", False),
    ],
)
def test_hierarchical_low_rank_segments_double_with_the_distance(
    parameters: dict[str, int], last_row: str, causal: bool
) -> None:
    q, k, _ = inputs(len(last_row), len(last_row))
    row = seen_weights("hierarchical_low_rank", q, k, causal=causal, parameters=parameters)[0, 0, -1]
    alike = torch.isclose(row[1:], row[:-1], rtol=1e-12, atol=0)
    assert alike.tolist() == [a == b for a, b in zip(last_row, last_row[1:], strict=False)]


def test_two_level_sees_its_own_block_and_means() -> None:
    q, k, _ = inputs(7, 7)
    for causal, last_row in [(False, "aaabbbc"), (True, "aaabbbc")]:
        row = seen_weights("two_level", q, k, causal=causal, parameters={"block": 3})[0, 0, -1]
        alike = torch.isclose(row[1:], row[:-1], rtol=1e-12, atol=0)
        assert alike.tolist() == [a == b for a, b in zip(last_row, last_row[1:], strict=False)]
    pairs = DEFINITIONS["two_level"].visible_pairs(Problem(7, causal=True), block=3)
    assert pairs == (1 + 2 + 3) + (2 + 3 + 4) + 3  # in the third block one token, which sees two blocks


@pytest.mark.parametrize(
    ("half_block", "last_row", "causal"),
    [(1, "aaaabbbbccddefgh", True), (1, "aaaabbbbccddefgh", False), (2, "aabbccddefghijkl", True), (4, None, False)],
)
def test_h_transformer_stretches_double_with_the_distance(half_block: int, last_row: str | None, causal: bool) -> None:
    drawn = last_row or "abcdefghijklmnop"
    q, k, _ = inputs(16, 16)
    row = seen_weights("h_transformer", q, k, causal=causal, parameters={"half_block": half_block})[0, 0, -1]
    alike = torch.isclose(row[1:], row[:-1], rtol=1e-12, atol=0)
    assert alike.tolist() == [a == b for a, b in zip(drawn, drawn[1:], strict=False)]


@pytest.mark.parametrize("causal", [False, True])
def test_h_transformer_queries_of_a_stretch_are_one(causal: bool) -> None:
    q, k, _ = inputs(16, 16)
    weights = seen_weights("h_transformer", q, k, causal=causal, parameters={"half_block": 1})[0, 0]
    far = weights[12:, 0] / weights[12:, 4]  # two stretches of level 2
    torch.testing.assert_close(far, far[:1].expand(4), rtol=1e-12, atol=0)
    nearer = weights[14:, 8] / weights[14:, 10]  # two stretches of level 1
    torch.testing.assert_close(nearer[0], nearer[1], rtol=1e-12, atol=0)
    asked = q[0, 0, 12] if causal else q[0, 0, 12:].mean(0)
    keys = k[0, 0, :8].unflatten(0, (2, 4)).mean(1)
    torch.testing.assert_close(far[0].log(), (keys[0] - keys[1]) @ asked / 3**0.5, rtol=1e-10, atol=1e-12)


def test_equal_means_refine_the_earlier_block_in_mra2() -> None:
    q, k = logits_of(-2, 2, -1, 1, 1e-9, 1e-9)  # no mean is larger by as much as 2 to the power of -20
    for refined, expected in [(1, (-2, 2, 0, 0, 0, 0)), (2, (-2, 2, -1, 1, 0, 0))]:
        weights = seen_weights("mra2", q, k, causal=False, parameters={"block": 2, "refined": refined})[0, 0, 0]
        torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64).softmax(0), rtol=1e-8, atol=0)


def test_mra2_refines_over_the_whole_matrix_and_not_so_many_in_each_row() -> None:
    q = torch.tensor([0.0, 0, 1, 1], dtype=torch.float64)[None, None, :, None]
    k = torch.tensor([0.0, 2, 3, 5, 1, 7, 2, 2], dtype=torch.float64)[None, None, :, None]
    # the first two rows have four equal logits: all are refined, and none is left for the others
    weights = seen_weights("mra2", q, k, causal=False, parameters={"block": 2, "refined": 2})[0, 0]
    torch.testing.assert_close(weights[0], torch.full((8,), 1 / 8, dtype=torch.float64))
    means = torch.tensor([1, 1, 4, 4, 4, 4, 2, 2], dtype=torch.float64)
    torch.testing.assert_close(weights[3], means.softmax(0))
    more = seen_weights("mra2", q, k, causal=False, parameters={"block": 2, "refined": 3})[0, 0, 3]
    torch.testing.assert_close(more, torch.tensor([1, 1, 3, 5, 1, 7, 2, 2], dtype=torch.float64).softmax(0))


@pytest.mark.parametrize("causal", [False, True])
def test_scatterbrain_is_softmax_within_its_window_and_favor_without(causal: bool) -> None:
    q, k, _ = inputs(12, 12)
    got = seen_weights("scatterbrain", q, k, causal=causal, parameters={"window": 4, "features": 8})[:, :, 9]
    exact = seen_weights("full", q, k, causal=causal)[:, :, 9]
    drawn = seen_weights("favor", q, k, causal=causal, parameters={"features": 8})[:, :, 9]
    inside, outside = (slice(7, 9), slice(0, 6))
    for part, other in ((inside, exact), (outside, drawn)):
        ratio = got[..., part] / other[..., part]
        torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio), rtol=1e-10, atol=0)


def test_scatterbrain_nears_softmax_with_many_features() -> None:
    q, k, v = inputs(12, 12)
    errors = [
        DEFINITIONS["scatterbrain"]
        .reference(q / 2, k / 2, v, causal=False, parameters={"window": 4, "features": features})
        .sub(softmax_output(q / 2, k / 2, v, causal=False))
        .norm()
        for features in (3, 150, 7500)
    ]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
