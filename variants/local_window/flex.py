"""torch's FlexAttention, compiled, with a map of the blocks that the window crosses or holds whole."""

from variants import flex
from variants.flex import Band
from variants.local_window import reach
from variants.problem import Problem
from variants.variant import Attention, variant


def band_of(problem: Problem, window: int) -> Band:
    """The window."""
    return Band(*reach(window, problem.causal))


def workspace_bytes(problem: Problem, *, window: int) -> int:
    """What the compiled kernel needs."""
    return flex.workspace_bytes(problem, band_of(problem, window))


def executed_flops(problem: Problem, *, window: int) -> int:
    """Every pair of every block that the window touches."""
    return flex.executed_flops(problem, band_of(problem, window))


@variant(
    "local_window/flex",
    summary="FlexAttention, compiled, over the blocks that the window touches",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    dtypes=flex.DTYPES,
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=flex.REQUIRES,
    source="arXiv:2412.05496",
    compiled=True,
)
def build(problem: Problem, *, window: int) -> Attention:
    """Compiled here, for seconds at each new shape."""
    return flex.compiled(problem, band_of(problem, window))
