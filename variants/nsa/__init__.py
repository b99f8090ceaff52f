"""Native sparse attention: a gated sum over compressed, selected and latest keys, each attended to alone."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition, Parameter
from variants.drawn_gates import by_position
from variants.problem import Problem
from variants.requirement import Limit

DECODERS_ONLY = Limit(lambda problem: problem.causal, "causal only: all three branches look back")
SEED = 2502_11089


def gates(heads: int, positions: int) -> Float64[Tensor, "heads positions 3"]:
    """σ(x) of a seeded normal draw x for each head, position and branch, alike for every item.

    A model computes x from its token; here, where only q, k and v are given, it is drawn.
    """
    return torch.sigmoid(by_position(SEED, heads, positions, 3))


def compressed_count(keys: int, stride: int, compressed: int) -> int:
    """Compressed keys: one for each stride at which a whole block of `compressed` strides begins."""
    return max(0, keys // stride - compressed + 1)


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
    stride: int,
    compressed: int,
    merged: int,
    selected: int,
    window: int,
    group: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """Three dense softmax; in a branch where a row sees nothing it is zero.

    Raises `ValueError` without a causal mask, which the paper does not define.
    """
    if not causal:
        raise ValueError(DECODERS_ONLY.reason)
    keys, length = k.shape[2], stride * compressed
    position = (rows + (keys - q.shape[2]))[:, None]
    asked, key = q[:, :, rows], torch.arange(keys, device=k.device)
    first = stride * torch.arange(compressed_count(keys, stride, compressed), device=k.device)
    short_k, short_v = (_means(x, first, length) for x in (k, v))
    coarse = _weights(asked, short_k, first + length - 1 <= position)

    size = stride * merged
    block, own = size * torch.arange(-(-keys // size), device=k.device), position - position % size
    shared = torch.minimum(first[:, None] + length, block + size) - torch.maximum(first[:, None], block)
    importance = coarse @ (shared.clamp(min=0).double() / stride)
    importance = importance.unflatten(1, (-1, group)).sum(2).repeat_interleave(group, 1)
    free = (block > 0) & (block < own - size)
    order = importance.masked_fill(~free, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    best = torch.zeros_like(importance, dtype=torch.bool).scatter(-1, order[..., :selected], value=True) & free
    sighted = best | (block == 0) | (block == own) | (block == own - size)
    fine = _weights(asked, k, sighted[..., key // size] & (key <= position))
    near = _weights(asked, k, (key <= position) & (key > position - window))

    gate = gates(q.shape[1], max(1, keys)).to(k.device)[:, position.flatten().clamp(min=0), :, None]
    return gate[..., 0, :] * (coarse @ short_v) + gate[..., 1, :] * (fine @ v) + gate[..., 2, :] * (near @ v)


def _means(x: Tensor, first: Tensor, length: int) -> Tensor:
    """The mean of `length` tokens from each of `first` on."""
    parts = [x[:, :, start : start + length].mean(2) for start in first.tolist()]
    none: Tensor = x[:, :, :0]
    return torch.stack(parts, 2) if parts else none


def _weights(
    q: Float64[Tensor, "batch heads rows head_dim"], k: Float64[Tensor, "batch heads keys head_dim"], seen: Tensor
) -> Float64[Tensor, "batch heads rows keys"]:
    """Softmax over the seen keys; zero where there is none."""
    scores: Tensor = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5
    if not k.shape[2]:
        return scores
    scores = scores.masked_fill(~seen, -torch.inf)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min))
    total = weights.sum(-1, keepdim=True)
    return weights / torch.where(total > 0, total, 1.0)


def visible_pairs(problem: Problem, *, stride: int, compressed: int, merged: int, selected: int, window: int) -> int:
    """Compressed keys, keys of the selected blocks and keys of the window, up to the query."""
    size = stride * merged
    return sum(
        compressed_count(i + 1, stride, compressed)
        + i % size
        + 1
        + size * min(i // size, selected + 2)
        + min(i + 1, window)
        for i in range(max(0, problem.offset), problem.offset + problem.tokens)
    )


DEFINITION = Definition(
    name="nsa",
    title="Native sparse attention (NSA)",
    formula=(
        "o_i = Σ_c g_ic softmax_c;  compressed: means of every a·d keys and values, d apart, that end at or before i;  "
        "selected: j ≤ i in blocks of b·d keys: the first, the own, the one before, and the n with the most compressed "
        "weight (each shared out by its strides in a block, summed over the heads of a group; of equal the earlier);  "
        "window: the latest w keys;  g = σ(x), x drawn"
    ),
    source=(
        "arXiv:2502.11089, section 3; compression by means and gates drawn, where a model learns both; one k and v for "
        "all branches; its 16 blocks are the three fixed ones and n = 13"
    ),
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="nsa/branched",
    parameters=(
        Parameter("stride", 16, 1, 1 << 16, "tokens from one compressed block to the next (d)"),
        Parameter("compressed", 2, 1, 1 << 10, "strides of a compressed block (a)"),
        Parameter("merged", 4, 1, 1 << 10, "strides of a selected block (b)"),
        Parameter("selected", 13, 0, 1 << 16, "blocks chosen by weight, beside the three fixed ones (n)"),
        Parameter("window", 512, 1, 1 << 30, "latest keys, the query's own among them"),
    ),
    normalised=False,
    by_group=True,
)
