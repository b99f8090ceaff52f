"""The scan as written: the state fades and takes up one key after the other."""

from variants.constant_decay import recurrent, recurrent_bytes
from variants.lightning import rates
from variants.problem import Problem
from variants.scan import SELF_CAUSAL
from variants.variant import Attention, variant


@variant(
    "lightning/recurrent",
    summary="the fading state grown key by key",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=recurrent_bytes,
    requires=SELF_CAUSAL,
)
def build(problem: Problem) -> Attention:
    """The rates are cast here."""
    return recurrent(problem, -rates(problem.heads), 1.0)
