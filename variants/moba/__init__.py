"""Mixture of block attention: each query sees its own block and the past blocks that a gate picks for it."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition, Parameter
from variants.problem import Problem
from variants.requirement import Limit

DECODERS_ONLY = Limit(lambda problem: problem.causal, "causal only: the gate picks among past blocks")


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
    block: int,
    selected: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """Dense softmax over the keys of the picked blocks; a row that sees no key is zero.

    Raises `ValueError` without a causal mask, which the paper does not define.
    """
    if not causal:
        raise ValueError(DECODERS_ONLY.reason)
    keys = k.shape[2]
    position = rows + (keys - q.shape[2])
    home = torch.arange(keys, device=k.device) // block
    own = torch.div(position, block, rounding_mode="floor")
    picked = (home[None, :] == own[:, None]).expand(*q.shape[:2], -1, -1)
    past = keys // block
    if past and selected > 1:
        means = torch.stack([k[:, :, home == index].mean(2) for index in range(past)], dim=2)
        gate = torch.einsum("bhid,bhnd->bhin", q[:, :, rows], means)
        gate = gate.masked_fill(torch.arange(past, device=k.device)[None, :] >= own[:, None], -torch.inf)
        order = gate.sort(dim=-1, descending=True, stable=True)
        for place in range(min(selected - 1, past)):
            index, value = order.indices[..., place, None], order.values[..., place, None]
            picked = picked | ((home == index) & (value > -torch.inf))
    seen = picked & (torch.arange(keys, device=k.device)[None, :] <= position[:, None])
    scores = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~seen, -torch.inf)
    top = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min) if keys else scores
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True)
    return torch.einsum("bhij,bhje->bhie", weights, v) / torch.where(total > 0, total, 1.0)


def visible_pairs(problem: Problem, *, block: int, selected: int) -> int:
    """Keys of the own block up to the query, and whole past blocks; the gate, one product a block, is left out."""
    positions = range(max(0, problem.offset), problem.offset + problem.tokens)
    return sum(position % block + 1 + block * min(selected - 1, position // block) for position in positions)


DEFINITION = Definition(
    name="moba",
    title="Mixture of block attention (MoBA)",
    formula=(
        "softmax over j ≤ i in the own block and in the n − 1 past blocks with the largest q_i·mean(k of the block); "
        "of equal gates the earlier block"
    ),
    source="arXiv:2502.13189, section 2.2; the own block is one of the n, as in its authors' code",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="moba/routed",
    parameters=(
        Parameter("block", 128, 1, 1 << 20, "tokens of a block"),
        Parameter("selected", 3, 1, 1 << 16, "blocks that a query sees, its own among them"),
    ),
)
