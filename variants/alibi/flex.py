"""torch's FlexAttention, compiled, with the penalty as a modification of each score."""

import torch

from variants import flex
from variants.alibi import slopes
from variants.flex import Band
from variants.problem import Problem
from variants.variant import Attention, variant


def band_of(problem: Problem) -> Band:
    """All keys, or those up to the query's own."""
    return Band(None, 0 if problem.causal else None)


def workspace_bytes(problem: Problem) -> int:
    """What the compiled kernel needs, and the slopes."""
    return flex.workspace_bytes(problem, band_of(problem)) + 4 * problem.heads


def executed_flops(problem: Problem) -> int:
    """Every pair of every block on the way."""
    return flex.executed_flops(problem, band_of(problem))


@variant(
    "alibi/flex",
    summary="FlexAttention, compiled, with the penalty as a score modification",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    dtypes=flex.DTYPES,
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=flex.REQUIRES,
    source="arXiv:2412.05496; the penalty: arXiv:2108.12409, section 3",
    compiled=True,
)
def build(problem: Problem) -> Attention:
    """Compiled here, for seconds at each new shape."""
    slope = torch.tensor(slopes(problem.heads), dtype=torch.float32, device=problem.device)
    return flex.compiled(problem, band_of(problem), flex.linear_penalty(slope, problem.offset))
