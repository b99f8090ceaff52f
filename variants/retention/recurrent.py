"""The scan as written: the state fades and takes up one key after the other."""

from variants.constant_decay import recurrent, recurrent_bytes
from variants.problem import Problem
from variants.retention import decays
from variants.scan import SELF_CAUSAL
from variants.variant import Attention, variant


@variant(
    "retention/recurrent",
    summary="the fading state grown key by key",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=recurrent_bytes,
    requires=SELF_CAUSAL,
)
def build(problem: Problem) -> Attention:
    """The decays are cast here."""
    return recurrent(problem, decays(problem.heads).log(), problem.head_dim**-0.5)
