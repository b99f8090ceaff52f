"""Keys sorted by bucket in each round, tiles of queries over just the chunks that they see.

The rotations are applied in float64 for every dtype: of thousands of vectors a few lie so near the edge of a
bucket that float32 would put them into another, and that would be another function.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from variants.bucket_order import ROWS, Order, order_by_bucket, positions
from variants.lsh import bucket_count, rotations
from variants.problem import Problem
from variants.sorted_ranges import attend_sorted, sorted_workspace_bytes, tiles_if_even
from variants.variant import Attention, variant

ELEMENTS = 2**18  # turned coordinates of a step: 2 MiB


def hashes(x: Float[Tensor, "tokens head_dim"], rotation: Float[Tensor, "head_dim half"]) -> Int64[Tensor, " tokens"]:
    """The bucket of each vector: the direction, of all and their opposites, that it lies nearest to."""
    half = rotation.shape[1]
    buckets = []
    for rows in x.split(max(1, ELEMENTS // half)):
        turned = rows.double() @ rotation
        index = turned.abs().argmax(-1, keepdim=True)
        buckets.append((index + half * (turned.gather(-1, index) < 0)).squeeze(-1))
    return torch.cat(buckets)


def workspace_bytes(problem: Problem, *, chunk: int, rounds: int) -> int:
    """The rotations, one head's inputs and turned coordinates in float64, and what the sorted ranges need."""
    buckets = bucket_count(problem.kv_tokens, chunk)
    held = 8 * rounds * problem.head_dim * buckets // 2
    longest = max(problem.group * problem.tokens, problem.kv_tokens)
    turned = min(2 * 8 * ELEMENTS, 8 * longest * buckets) + 8 * longest * 3
    turned += 8 * problem.head_dim * min(longest, 2 * ELEMENTS // buckets)
    most = max(1, min(chunk, problem.kv_tokens))
    ranges = sorted_workspace_bytes(problem, buckets, most, rounds)
    return held + max(turned, ranges)


def executed_flops(problem: Problem, *, chunk: int, rounds: int) -> int:
    """Every pair of every tile where buckets are even, hidden or not, and the hashing."""
    buckets = bucket_count(problem.kv_tokens, chunk)
    most = max(1, min(chunk, problem.kv_tokens))
    tiles = rounds * problem.batch * problem.kv_heads * tiles_if_even(problem, buckets, most)
    pairs = tiles * ROWS * most
    hashed = problem.batch * (problem.heads * problem.tokens + problem.kv_heads * problem.kv_tokens)
    turned = rounds * hashed * buckets // 2
    factor = 3.5 if problem.mode == "training" else 1
    return 2 * problem.head_dim * turned + round(4 * problem.head_dim * pairs * factor)


@variant(
    "lsh/sorted",
    summary="keys sorted by bucket, tiles of queries over their chunks",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
)
def build(problem: Problem, *, chunk: int, rounds: int) -> Attention:
    """The rotations are drawn here; the buckets depend on the inputs."""
    buckets = bucket_count(problem.kv_tokens, chunk)
    turns = rotations(rounds, problem.head_dim, buckets).to(problem.device)
    most = max(1, min(chunk, problem.kv_tokens))
    position = positions(problem)
    own = torch.where(position < problem.kv_tokens, position, -1).clamp(min=-1)

    def find(q: Tensor, k: Tensor) -> list[Order]:
        return [
            order_by_bucket(hashes(q, turn), hashes(k, turn), position, (buckets, most), causal=problem.causal)
            for turn in turns
        ]

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return attend_sorted(q, k, v, find, most, own)

    return run
