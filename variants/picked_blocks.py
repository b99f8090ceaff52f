"""Tokens in blocks, and the picked blocks of a score matrix gathered, as many for each row of blocks as it has."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from variants.kv_groups import taken
from variants.tiles import CACHE_ELEMENTS


@dataclass(frozen=True, slots=True)
class Blocks:
    """The tokens of one axis in blocks: `counts` (blocks, 1) holds how many each has; the last may be filled up."""

    block: int
    tokens: int
    counts: Tensor

    @classmethod
    def of(cls, tokens: int, block: int, device: str) -> "Blocks":
        """Blocks of at most all tokens."""
        block = min(block, max(1, tokens))
        starts = torch.arange(0, tokens, block, device=device)
        return cls(block, tokens, (tokens - starts).clamp(max=block).unsqueeze(1))

    def split(self, x: Float[Tensor, "heads tokens dim"], filling: float = 0.0) -> Tensor:
        """(heads, blocks, block, dim); a view where the last block is whole."""
        missing = len(self.counts) * self.block - self.tokens
        whole = functional.pad(x, (0, 0, 0, missing), value=filling) if missing else x
        blocks: Tensor = whole.unflatten(1, (len(self.counts), self.block))
        return blocks

    def means(self, x: Float[Tensor, "heads tokens dim"], dtype: torch.dtype) -> Float[Tensor, "heads blocks dim"]:
        """The means of the blocks."""
        return self.split(x).sum(2, dtype=dtype) / self.counts

    def add_gradient(self, x: Float[Tensor, "heads tokens dim"], gradient: Tensor) -> None:
        """The adjoint of `means`."""
        x += (gradient / self.counts).repeat_interleave(self.block, 1)[:, : self.tokens]


def pick(q: Tensor, k: Tensor, count: int) -> Bool[Tensor, "heads rows columns"]:
    """The blocks of the matrix that are refined, from the means in float64; of equal ones the earlier."""
    logits = (q @ k.mT).div_(q.shape[2] ** 0.5)
    rank = logits.sub_(logits.amax(-1, keepdim=True)).mul_(2**20).round_().flatten(1)
    least = rank.topk(count, -1).values[:, -1:]
    above, level = rank > least, rank == least
    free = count - above.sum(-1, keepdim=True)
    return (above | (level & (level.cumsum(-1) <= free))).view(logits.shape)


def chunks(exact: Bool[Tensor, "heads rows columns"], elements: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rows of blocks with equally many refined blocks, and the blocks' columns, as many as fit the cache.

    `elements` of a refined block. Yields the heads and rows, (chunk,) each, and the columns (chunk, refined).
    """
    counts = exact.sum(-1)
    for count in counts.unique().tolist():
        heads, rows = (counts == count).nonzero(as_tuple=True)
        step = max(1, CACHE_ELEMENTS // max(1, count * elements))
        for own, row in zip(heads.split(step), rows.split(step), strict=True) if count else ():
            columns = exact[own, row].nonzero(as_tuple=True)[1].view(-1, count)
            yield own, row, columns


def places(own: Tensor, columns: Tensor, x: Float[Tensor, "heads blocks block dim"]) -> Int64[Tensor, "chunk refined"]:
    """Where the blocks lie among those of all heads; grouped queries share one head."""
    return columns + own.unsqueeze(1) * x.shape[1] if x.shape[0] > 1 else columns


def gathered(
    x: Float[Tensor, "blocks block dim"], place: Int64[Tensor, "chunk refined"]
) -> Float[Tensor, "1 chunk keys dim"]:
    """The tokens of the chosen blocks of each row, one block after another."""
    return taken(x, place).flatten(1, 2).unsqueeze(0)


def filling_bias(columns: Tensor, keys: Blocks, dtype: torch.dtype) -> Tensor | None:
    """-inf for the places with which the last block is filled up; None where it is whole."""
    if len(keys.counts) * keys.block == keys.tokens:
        return None
    place = torch.arange(keys.block, device=columns.device)
    hidden = columns.unsqueeze(-1) * keys.block + place >= keys.tokens
    return (
        torch.zeros(hidden.shape, dtype=dtype, device=columns.device)
        .masked_fill_(hidden, -torch.inf)
        .view(1, len(columns), 1, -1)
    )
