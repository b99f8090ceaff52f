"""Seeded normal draws by head and position, for the parts of a recurrence that are no function of q, k and v."""

import torch
from jaxtyping import Float64
from torch import Tensor

BLOCK = 256


def by_position(seed: int, heads: int, tokens: int, channels: int = 1) -> Float64[Tensor, "heads tokens channels"]:
    """N(0,1) for each head, position and channel, alike for every batch item.

    Drawn block by block, each from a generator of its own, so that the draws of a prefix do not
    depend on the length.
    """
    blocks = [
        torch.randn(heads, BLOCK, channels, dtype=torch.float64, generator=_generator(seed, block))
        for block in range(-(-tokens // BLOCK))
    ]
    return torch.cat([torch.empty(heads, 0, channels, dtype=torch.float64), *blocks], 1)[:, :tokens]


def by_head(seed: int, heads: int, channels: int = 1) -> Float64[Tensor, "heads channels"]:
    """N(0,1) for each head and channel."""
    return torch.randn(heads, channels, dtype=torch.float64, generator=_generator(seed, 0))


def uniform(normal: Float64[Tensor, "*axes"]) -> Float64[Tensor, "*axes"]:
    """U(0,1) from N(0,1)."""
    shares: Tensor = torch.special.ndtr(normal)
    return shares


def _generator(seed: int, block: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_003 * seed + block)
