"""Chunkwise in Triton: the states between chunks by one kernel, the chunks by another; backward by three more."""

from variants.linear_scan import DEFINITION
from variants.problem import Problem
from variants.triton_launch import DTYPES, REQUIRES
from variants.triton_scan import built, chunk_flops, planned
from variants.triton_scan import workspace_bytes as scan_bytes
from variants.variant import Attention, variant


def workspace_bytes(problem: Problem) -> int:
    """The states and normalisers before the chunks."""
    return scan_bytes(problem, features=True, decay=False)


def executed_flops(problem: Problem) -> int:
    """The formula's work, and for causal problems the products within each chunk."""
    return DEFINITION.useful_flops(problem) + chunk_flops(problem)


@variant(
    "linear_scan/triton",
    summary="chunks and the states between them, fused Triton kernels",
    devices=("cuda",),
    dtypes=DTYPES,
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=REQUIRES,
    source="arXiv:2006.16236; chunkwise form: arXiv:2312.06635, section 4",
)
def build(problem: Problem) -> Attention:
    """The tiles are tried on the card here, and compiled."""
    plan = planned(problem, features=True)
    return built(problem, plan, executed_flops(problem))
