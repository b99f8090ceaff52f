"""Chunks of query rows with the keys that they see, and the causal mask within a chunk."""

import torch
from jaxtyping import Float
from torch import Tensor

from variants.problem import Problem


def row_chunks(problem: Problem, step: int) -> list[tuple[slice, slice]]:
    """Slices of at most `step` of the rows that see a key, each with the keys up to the last that it sees."""
    first = max(0, -problem.offset) if problem.causal else 0
    stop = problem.tokens if problem.kv_tokens else 0
    pieces = []
    for start in range(first, stop, step):
        end = min(start + step, stop)
        pieces.append((slice(start, end), slice(0, end + problem.offset if problem.causal else problem.kv_tokens)))
    return pieces


def pairs_of(problem: Problem, step: int) -> int:
    """Pairs of all chunks, the hidden ones included."""
    count: int = sum((rows.stop - rows.start) * seen.stop for rows, seen in row_chunks(problem, step))
    return count


def hide_later(scores: Float[Tensor, "rows keys"], first: int) -> None:
    """-inf, in place, where a key comes after its query; the first row's own key is `first`."""
    later = torch.ones(scores.shape[0], scores.shape[1] - first, dtype=torch.bool, device=scores.device).triu_(1)
    scores[:, first:].masked_fill_(later, -torch.inf)
