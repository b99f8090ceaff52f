"""The first heads and the others, for definitions that treat them differently."""

import torch
from torch import Tensor

from variants.problem import Problem
from variants.variant import Attention


def part_problems(problem: Problem, first: int) -> list[Problem]:
    """The problems of the first heads and of the others; 0 < `first` < heads.

    Where the cut falls within the queries of one of several key-value heads, the keys are repeated.
    """
    group = problem.group
    if first % group == 0:
        return [problem.with_(heads=n, kv_heads=n // group) for n in (first, problem.heads - first)]
    kv_heads = [1, 1] if problem.kv_heads == 1 else [first, problem.heads - first]
    return [problem.with_(heads=n, kv_heads=kv) for n, kv in zip((first, problem.heads - first), kv_heads, strict=True)]


def by_parts(problem: Problem, first: int, runs: list[Attention]) -> Attention:
    """One callable of two: `runs[0]` for the first heads, `runs[1]` for the others; 0 < `first` < heads."""
    heads = [part.heads for part in part_problems(problem, first)]
    kv_heads = [part.kv_heads for part in part_problems(problem, first)]
    repeats = problem.group if sum(kv_heads) == problem.heads else 1

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if repeats > 1:
            k, v = (x.repeat_interleave(repeats, 1) for x in (k, v))
        # Queries of one key-value head on both sides of the cut: both see it.
        ks, vs = ((x, x) if sum(kv_heads) > x.shape[1] else x.split(kv_heads, 1) for x in (k, v))
        parts = zip(runs, q.split(heads, 1), ks, vs, strict=True)
        return torch.cat([one(own_q, own_k, own_v) for one, own_q, own_k, own_v in parts], 1)

    return run


def repeated_bytes(problem: Problem, first: int) -> int:
    """Bytes of keys and values that `by_parts` repeats, and of the parts' outputs; in training of gradients too."""
    kv_heads = sum(part.kv_heads for part in part_problems(problem, first))
    repeated = 2 * problem.key_bytes * problem.group if kv_heads > problem.kv_heads + 1 else 0
    shared = 4 * problem.key_bytes if kv_heads == problem.kv_heads + 1 else 0
    if problem.mode != "training":
        return repeated + problem.query_bytes
    return 3 * repeated + shared + problem.input_output_bytes // 2
