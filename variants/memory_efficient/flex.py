"""torch's FlexAttention, compiled; causal, with a map of the blocks that hold a visible pair."""

from variants import flex
from variants.flex import Band
from variants.problem import Problem
from variants.variant import Attention, variant


def band_of(problem: Problem) -> Band:
    """All keys, or those up to the query's own."""
    return Band(None, 0 if problem.causal else None)


def workspace_bytes(problem: Problem) -> int:
    """What the compiled kernel needs."""
    return flex.workspace_bytes(problem, band_of(problem))


def executed_flops(problem: Problem) -> int:
    """Every pair of every block on the way."""
    return flex.executed_flops(problem, band_of(problem))


@variant(
    "memory_efficient/flex",
    summary="FlexAttention, compiled",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    dtypes=flex.DTYPES,
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=flex.REQUIRES,
    source="arXiv:2412.05496",
    compiled=True,
)
def build(problem: Problem) -> Attention:
    """Compiled here, for seconds at each new shape."""
    return flex.compiled(problem, band_of(problem))
