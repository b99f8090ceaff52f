"""BigBird: in blocks, a window, two global blocks, and for each block a few random ones."""

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from variants.definition import Definition, Parameter
from variants.problem import Problem
from variants.requirement import Limit

ENCODERS_ONLY = Limit(lambda problem: not problem.causal, "no causal form: random blocks lie on both sides")
SELF_ATTENTION = Limit(lambda problem: problem.tokens == problem.kv_tokens, "needs tokens = kv_tokens")
SEED = 2007_14062


def random_blocks(heads: int, blocks: int, count: int) -> Bool[Tensor, "heads blocks blocks"]:
    """The random key blocks of each query block, frozen: `count` of those outside the window and not global.

    Fewer where there are not so many; none for the global blocks, the first and the last.
    """
    generator = torch.Generator().manual_seed(SEED)
    order = torch.rand(heads, blocks, blocks, generator=generator, dtype=torch.float64)
    number = torch.arange(blocks)
    taken = (number[:, None] - number[None, :]).abs() <= 1
    for border in (0, blocks - 1) if blocks else ():
        taken[border], taken[:, border] = True, True
    order = order.masked_fill(taken, -1.0)
    place = order.argsort(-1, descending=True).argsort(-1)
    return (place < count) & (order >= 0)


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
    block: int,
    random: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """Dense softmax over the keys of the blocks in sight.

    Raises `ValueError` for a causal mask or tokens != kv_tokens, which the method does not have.
    """
    if causal or q.shape[2] != k.shape[2]:
        raise ValueError(ENCODERS_ONLY.reason if causal else SELF_ATTENTION.reason)
    last = (k.shape[2] - 1) // block
    own, home = (rows // block)[:, None], (torch.arange(k.shape[2], device=k.device) // block)[None, :]
    seen = (own - home).abs() <= 1
    for border in (0, last):
        seen = seen | (own == border) | (home == border)
    drawn = random_blocks(q.shape[1], last + 1, random).to(q.device)
    seen = seen | drawn[:, rows // block][:, :, home[0]]
    scores = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) / q.shape[-1] ** 0.5
    weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1)
    return torch.einsum("bhij,bhje->bhie", weights, v)


def visible_pairs(problem: Problem, *, block: int, random: int) -> int:
    """Pairs of the blocks in sight; each query block has as many random blocks, or all that are left."""
    tokens = problem.tokens
    blocks = -(-tokens // block)
    sizes = [min(block, tokens - index * block) for index in range(blocks)]
    count = 0
    for index, size in enumerate(sizes):
        if index in (0, blocks - 1):
            count += size * tokens
            continue
        near = {0, index - 1, index, index + 1, blocks - 1}
        count += size * (sum(sizes[one] for one in near) + block * min(random, blocks - len(near)))
    return count


DEFINITION = Definition(
    name="bigbird",
    title="BigBird",
    formula=(
        "softmax over blocks at most one apart, the first and the last block (which see all), "
        "and r random blocks of each block and head, frozen"
    ),
    source="arXiv:2007.14062, section 2 and appendix D (blocks; the internal form, first and last block global)",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="bigbird/gathered",
    parameters=(
        Parameter("block", 64, 1, 1 << 20, "tokens of a block"),
        Parameter("random", 3, 0, 1 << 16, "random blocks that a block sees"),
    ),
)
