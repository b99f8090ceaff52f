"""Chunkwise-parallel: within a chunk by a masked product, between chunks by the fading state."""

from variants.constant_decay import chunk_flops, chunked, chunked_bytes
from variants.problem import Problem
from variants.retention import DEFINITION, decays
from variants.scan import SELF_CAUSAL
from variants.variant import Attention, variant


def executed_flops(problem: Problem) -> int:
    """The formula's work, and the products within each chunk."""
    return DEFINITION.useful_flops(problem) + chunk_flops(problem)


@variant(
    "retention/chunked",
    summary="chunks by masked products, the fading state between them",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=chunked_bytes,
    executed_flops=executed_flops,
    requires=SELF_CAUSAL,
    source="arXiv:2307.08621, equation 7",
)
def build(problem: Problem) -> Attention:
    """The fading within a chunk is computed here."""
    return chunked(problem, decays(problem.heads).log(), problem.head_dim**-0.5)
