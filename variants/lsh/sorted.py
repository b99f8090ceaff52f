"""Keys sorted by bucket in each round, tiles of queries over just the chunks that they see.

The buckets are those of float64 for every dtype: of thousands of vectors a few lie so near the edge of a
bucket that float32 would put them into another, and that would be another function. So float32 decides only
where its error bound says that it can, and float64 where not.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from variants.bucket_order import ROWS, Order, order_by_bucket, positions
from variants.lsh import bucket_count, rotations
from variants.problem import Problem
from variants.products import in_full_precision, product
from variants.sorted_ranges import attend_sorted, sorted_workspace_bytes, tiles_if_even
from variants.variant import Attention, variant

ELEMENTS = 2**17  # turned coordinates of a step: 1 MiB in float64
ROUNDING = 2.0**-24


def hashes(
    x: Float[Tensor, "tokens head_dim"], rotations: Float[Tensor, "rounds head_dim half"]
) -> Int64[Tensor, "rounds tokens"]:
    """The bucket of each vector in each round: the direction, of all and their opposites, that it lies nearest to."""
    rounds, dim, half = rotations.shape
    together = rotations.transpose(0, 1).flatten(1)
    step = max(1, ELEMENTS // (rounds * half))
    plain = x.device.type == "cpu" and in_full_precision()
    if not plain or x.dtype == torch.float64:
        return torch.cat([exact(rows, together, half) for rows in x.split(step)]).T.contiguous()
    narrow = together.float()
    # A sum of dim products errs by its dim + 2 roundings at most, and by what underflows; two of them are compared.
    error = 2 * (dim + 6) * ROUNDING * rotations.abs().amax().float()
    found = []
    for part in x.split(step):
        rows = part.float()
        bound = rows.abs().sum(1).mul_(error).add_(dim * torch.finfo(torch.float32).tiny)
        found.append(sure(product(rows, narrow).unflatten(1, (rounds, half)), bound.view(-1, 1, 1)))
    buckets = torch.cat(found)
    doubtful = (buckets < 0).any(1).nonzero().flatten()
    for places in doubtful.split(step):
        buckets[places] = exact(x.index_select(0, places), together, half)
    return buckets.T.contiguous()


def sure(
    turned: Float[Tensor, "tokens rounds half"], error: Float[Tensor, "tokens 1 1"]
) -> Int64[Tensor, "tokens rounds"]:
    """The buckets where one direction is the nearest by more than the error, else -1.

    All others are shrunk to nought, so that sums find it: arg max takes several times as long.
    """
    half = turned.shape[2]
    least = turned.abs().amax(-1, keepdim=True) - error
    mark = functional.hardshrink(turned / least, 1.0)
    number = torch.arange(1, half + 1, dtype=turned.dtype, device=turned.device)
    total = mark.sum(-1)
    index = (mark @ number / total).round().long() - 1
    alone = (mark.abs().sum(-1) < 1.5) & (least.squeeze(-1) > 0)  # not so of what is not finite
    return torch.where(alone, index + half * (total < 0), -1)


def exact(x: Float[Tensor, "tokens dim"], together: Float[Tensor, "dim turned"], half: int) -> Int64[Tensor, "_ _"]:
    """The buckets in float64, (tokens, rounds)."""
    turned: Tensor = (x.double() @ together).unflatten(1, (-1, half))
    index = turned.abs().argmax(-1, keepdim=True)
    buckets: Tensor = (index + half * (turned.gather(-1, index) < 0)).squeeze(-1)
    return buckets


def workspace_bytes(problem: Problem, *, chunk: int, rounds: int) -> int:
    """The rotations, a step's turned coordinates and one head's buckets, and what the sorted ranges need."""
    buckets = bucket_count(problem.kv_tokens, chunk)
    held = (8 + 8 + 4) * rounds * problem.head_dim * buckets // 2  # as drawn, and side by side in both types
    longest = max(problem.group * problem.tokens, problem.kv_tokens)
    wide = 2 if problem.element_bytes == 8 else 1
    turned = 16 * wide * min(max(ELEMENTS, rounds * buckets // 2), longest * rounds * buckets // 2)
    turned += 8 * longest * rounds * 3 + 8 * problem.head_dim * min(longest, max(1, 2 * ELEMENTS // (rounds * buckets)))
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
        of_queries, of_keys = hashes(q, turns), hashes(k, turns)
        return [
            order_by_bucket(of_query, of_key, position, (buckets, most), causal=problem.causal)
            for of_query, of_key in zip(of_queries, of_keys, strict=True)
        ]

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return attend_sorted(q, k, v, find, most, own)

    return run
