"""SDPA's unfused reference path."""

from torch.nn.attention import SDPBackend

from variants.problem import Problem
from variants.sdpa import forced
from variants.variant import Attention, variant


def workspace_bytes(problem: Problem) -> int:
    """Scores, weights and the scaled copies of q and k; in training the weights' gradients too.

    The half types are computed in float32, and causal masks are made on each call.
    """
    wide = max(4, problem.element_bytes)
    pairs = problem.batch * problem.heads * problem.tokens * problem.kv_tokens
    scaled = (problem.query_bytes + problem.key_bytes * problem.group) // problem.element_bytes * wide
    matrices = 4 if problem.mode == "training" else 3
    return pairs * wide * matrices + 3 * scaled


@variant(
    "full/sdpa_math",
    summary="scaled_dot_product_attention's unfused path",
    devices=("cpu", "cuda"),
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
)
def build(problem: Problem) -> Attention:
    """SDPA held to MATH."""
    return forced(problem, SDPBackend.MATH)
