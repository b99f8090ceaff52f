"""A convolution as long as the sequence, for comparison: each channel of the values by itself."""

import math

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition, Parameter
from variants.drawn_gates import by_position
from variants.full import visible_pairs as pairs_of
from variants.problem import Problem
from variants.requirement import Limit

CAUSAL_ONLY = Limit(lambda problem: problem.causal, "causal only: its filter reaches back")
SEED = 2302_10866
FASTEST, SLOWEST = 0.3, 1.5  # reaches after which the first and the last channel's window has fallen to a hundredth


def decays(channels: int, reach: int) -> Float64[Tensor, " channels"]:
    """How fast each channel's window falls: from the slowest to the fastest in even steps."""
    slowest, fastest = (math.log(100) / (share * reach) for share in (SLOWEST, FASTEST))
    return torch.linspace(slowest, fastest, channels, dtype=torch.float64)


def filters(heads: int, taps: int, channels: int, reach: int) -> Float64[Tensor, "heads taps channels"]:
    """A filter for each head and channel, in place of learned ones: N(0,1) under a falling window, of norm about 1.

    The first taps do not depend on how many there are.
    """
    fall = decays(channels, reach)
    window = torch.exp(-torch.arange(taps)[:, None] * fall) * (-torch.expm1(-2 * fall)).sqrt()
    drawn: Tensor = by_position(SEED, heads, taps, channels) * window
    return drawn


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
    reach: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """The sum over the taps, row by row.

    Raises `ValueError` where not causal, which the operator is not.
    """
    if not causal:
        raise ValueError(CAUSAL_ONLY.reason)
    taps = filters(v.shape[1], v.shape[2], v.shape[3], reach).to(v.device)
    counts = [max(0, row + 1 + k.shape[2] - q.shape[2]) for row in rows.tolist()]
    each = [(taps[:, :count].flip(1) * v[:, :, :count]).sum(2) for count in counts]
    out = torch.stack(each, 2) if each else v[:, :, :0]
    return out + 0.0 * (q.sum() + k.sum())


def visible_pairs(problem: Problem, *, reach: int) -> int:
    """Each token takes part in every step of a transform of twice as many."""
    return problem.kv_tokens * math.ceil(math.log2(max(1, 2 * problem.kv_tokens)))


def flops_per_head(problem: Problem, *, reach: int) -> int:
    """The lesser of a product and a sum for each tap, and two real transforms of twice the length and their product.

    A real transform of n counts 2.5 n log2 n, half of a complex one's 5 n log2 n.
    """
    length = 2 * problem.kv_tokens
    transforms = 2 * 2.5 * length * math.log2(length) + 6 * (length / 2 + 1) if length else 0.0
    return problem.head_dim * min(2 * pairs_of(problem), round(transforms))


DEFINITION = Definition(
    name="long_convolution",
    title="Not attention: long convolution",
    formula=(
        "o_ic = Σ_{0≤t≤i} h_tc v_{i−t, c}, h_tc = g_tc e^{−λ_c t} √(1 − e^{−2λ_c}), g frozen, from N(0,1), λ_c from "
        "ln 100/(1.5 R) to ln 100/(0.3 R) in even steps;  i counted from the last key back;  q and k are not read"
    ),
    source="arXiv:2302.10866, section 3: the convolution without its gates; window rates as in its authors' code",
    exact=False,
    attention=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="long_convolution/fft",
    parameters=(Parameter("reach", 4096, 1, 1 << 24, "R: tokens over which the filters fall"),),
    normalised=False,
    flops_per_head=flops_per_head,
)
