"""A short convolution along the tokens, for comparison: each channel of the values by itself."""

import math

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition, Parameter
from variants.drawn_gates import by_head
from variants.problem import Problem

SEED = 1901_10430


def filters(heads: int, width: int, channels: int) -> Float64[Tensor, "heads width channels"]:
    """A filter for each head and channel, in place of learned ones: from N(0, 1/width)."""
    drawn: Tensor = by_head(SEED, heads, width * channels).unflatten(1, (width, channels))
    return drawn / math.sqrt(width)


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
    width: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """The sum over the keys under the filter, row by row: a matrix of weights for each channel would be too large."""
    taps = filters(v.shape[1], width, v.shape[3]).to(v.device)
    last = torch.arange(k.shape[2], device=k.device)[None, :] - (rows + (k.shape[2] - q.shape[2]))[:, None]
    tap = (0 if causal else (width - 1) // 2) - last
    inside = (tap >= 0) & (tap < width)
    each = [
        torch.einsum("hte,bhte->bhe", taps[:, own[seen]], v[:, :, seen]) for own, seen in zip(tap, inside, strict=True)
    ]
    out = torch.stack(each, 2) if each else v[:, :, :0]
    return out + 0.0 * (q.sum() + k.sum())


def visible_pairs(problem: Problem, *, width: int) -> int:
    """Keys under the filter of each query."""
    after = 0 if problem.causal else (width - 1) // 2
    return sum(
        max(0, min(position + after, problem.kv_tokens - 1) - max(position + after - width + 1, 0) + 1)
        for position in range(problem.offset, problem.offset + problem.tokens)
    )


def flops_per_head(problem: Problem, *, width: int) -> int:
    """A product and a sum for each channel of a pair."""
    return 2 * problem.head_dim * visible_pairs(problem, width=width)


DEFINITION = Definition(
    name="depthwise_convolution",
    title="Not attention: depthwise convolution",
    formula=(
        "o_ic = Σ_{0≤t<w} f_tc v_{i−t+s, c},  s = ⌊(w − 1)/2⌋, causal 0;  i counted from the last key back, v = 0 "
        "beyond both ends, f frozen, from N(0, 1/w);  q and k are not read"
    ),
    source="arXiv:1901.10430, section 2 (depthwise convolutions)",
    exact=False,
    attention=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="depthwise_convolution/shifted",
    parameters=(Parameter("width", 7, 1, 4096, "taps of the filter"),),
    normalised=False,
    flops_per_head=flops_per_head,
)
