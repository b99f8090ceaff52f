"""Chunkwise in Triton: fading states between chunks by one kernel, the chunks by another; backward by three more."""

from variants.lightning import DEFINITION, rates
from variants.problem import Problem
from variants.scan import SELF_CAUSAL
from variants.triton_launch import DTYPES, REQUIRES
from variants.triton_scan import built, chunk_flops, planned
from variants.triton_scan import workspace_bytes as scan_bytes
from variants.variant import Attention, variant


def workspace_bytes(problem: Problem) -> int:
    """The states before the chunks."""
    return scan_bytes(problem, features=False, decay=True)


def executed_flops(problem: Problem) -> int:
    """The formula's work, and the products within each chunk."""
    return DEFINITION.useful_flops(problem) + chunk_flops(problem)


@variant(
    "lightning/triton",
    summary="chunks and the fading states between them, fused Triton kernels",
    devices=("cuda",),
    dtypes=DTYPES,
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=(*REQUIRES, *SELF_CAUSAL),
    source="arXiv:2401.04658, algorithms 1 and 2",
)
def build(problem: Problem) -> Attention:
    """The rates of decay go to the card here, and the tiles are tried there."""
    plan = planned(problem, features=False, log_decay=-rates(problem.heads))
    return built(problem, plan, executed_flops(problem))
