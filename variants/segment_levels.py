"""Means of segments that double in length from level to level, and which of them stand for far keys."""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from variants.problem import Problem
from variants.tiles import accumulator

HIDDEN = -1e30  # not -inf: a block without far keys must keep a finite log-sum-exp


@dataclass(frozen=True, slots=True)
class Levels:
    """The segments of all levels in one row: `counts[l]` holds the tokens of each segment of level l."""

    segment: int
    counts: tuple[Float[Tensor, " segments"], ...]

    @classmethod
    def of(cls, problem: Problem, block: int, rank: int) -> Self:
        """As many levels as have a block that is far from a query; each has half the segments of that below."""
        keys, segment = problem.kv_tokens, block // rank
        ends = problem.offset, problem.offset + problem.tokens - 1
        counts = []
        while keys and max(abs(end // block - key // block) for end in ends for key in (0, keys - 1)) > 1:
            starts = range(0, keys, segment)
            sizes = [min(segment, keys - start) for start in starts]
            counts.append(torch.tensor(sizes, dtype=torch.float64, device=problem.device))
            block, segment = 2 * block, 2 * segment
        return cls(segment >> len(counts), tuple(counts))

    @property
    def total(self) -> int:
        """Segments of all levels."""
        return sum(len(count) for count in self.counts)

    def means(self, x: Float[Tensor, "heads tokens dim"]) -> Float[Tensor, "heads total dim"]:
        """The means of all segments, level after level, in the dtype of x."""
        if not self.counts:
            return x[:, :0]
        sums = [_sums(x, self.segment, accumulator(x.dtype))]
        for _ in self.counts[1:]:
            sums.append(_sums(sums[-1], 2, sums[-1].dtype))
        sizes = torch.cat(self.counts).to(sums[0].dtype)
        return torch.cat(sums, 1).div_(sizes[:, None]).to(x.dtype)

    def add_gradient(self, x: Float[Tensor, "heads tokens dim"], gradient: Float[Tensor, "heads total dim"]) -> None:
        """The adjoint of `means`: to each token of x its share of the gradients of its segments."""
        if not self.counts:
            return
        shares = (gradient / torch.cat(self.counts).to(gradient.dtype)[:, None]).split([len(c) for c in self.counts], 1)
        share = shares[-1]
        for below in reversed(shares[:-1]):
            share = below + share.repeat_interleave(2, 1)[:, : below.shape[1]]
        whole = x.shape[1] // self.segment
        x[:, : whole * self.segment].unflatten(1, (whole, self.segment)).add_(share[:, :whole].unsqueeze(2))
        x[:, whole * self.segment :].add_(share[:, whole:])

    def far(self, problem: Problem, block: int, rank: int, own: Int64[Tensor, " tiles"]) -> tuple[Tensor, Tensor]:
        """For each block of queries its far segments, (tiles, places), and log g of each; HIDDEN where left over.

        A level has at most three far blocks whose parent is near.
        """
        index, bias = [], []
        first = 0
        for counts in self.counts:
            base = 2 * (own // 2) - 2
            apart = base[:, None] + torch.arange(6, device=own.device) - own[:, None]
            far = (apart < -1) if problem.causal else (apart.abs() > 1)
            order = far.to(torch.int8).sort(dim=1, descending=True, stable=True)
            blocks = (own[:, None] + apart).gather(1, order.indices[:, :3])
            segments = (blocks.unsqueeze(-1) * rank + torch.arange(rank, device=own.device)).flatten(1)
            used = (order.values[:, :3] > 0).repeat_interleave(rank, 1) & (segments >= 0) & (segments < len(counts))
            segments = segments.clamp(0, len(counts) - 1)
            index.append(segments + first)
            bias.append(torch.where(used, counts.log()[segments], HIDDEN))
            first += len(counts)
            own = own // 2
        places, logs = torch.cat(index, 1), torch.cat(bias, 1)
        kept = (logs > HIDDEN).any(0)  # places that no block uses
        return places[:, kept], logs[:, kept]


def _sums(x: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Sums of so many consecutive rows, the last ones fewer where they do not divide the length."""
    whole = x.shape[1] // size * size
    sums = x[:, :whole].unflatten(1, (-1, size)).sum(2, dtype=dtype) if whole else x[:, :0].to(dtype)
    if whole == x.shape[1]:
        return sums
    return torch.cat((sums, x[:, whole:].sum(1, keepdim=True, dtype=dtype)), 1)
