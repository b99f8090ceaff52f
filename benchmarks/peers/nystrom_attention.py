"""nystrom-attention: attention through landmarks."""

from benchmarks.peer_declaration import Peer
from benchmarks.peer_parts import through_one_projection
from variants import Problem
from variants.variant import Attention

LANDMARKS = 64


def build(problem: Problem) -> Attention:
    """Its module, its projections taken out and its convolution over the values left out."""
    from nystrom_attention import NystromAttention

    module = NystromAttention(
        dim=problem.heads * problem.head_dim,
        dim_head=problem.head_dim,
        heads=problem.heads,
        num_landmarks=LANDMARKS,
        residual=False,
    )
    return through_one_projection(module, problem)


def workspace(problem: Problem) -> int:
    """Scores of all tokens with the landmarks, on either side, twice; q scaled, and the merged heads."""
    pairs = problem.batch * problem.heads * problem.tokens * LANDMARKS
    squares = problem.batch * problem.heads * LANDMARKS**2
    return (6 * pairs + 12 * squares) * problem.element_bytes + 6 * problem.query_bytes


PEERS = (
    Peer(
        form="landmarks",
        package="nystrom-attention",
        variant="nystrom",
        parameters={"landmarks": LANDMARKS},
        causal=False,
        build=build,
        workspace_bytes=workspace,
        layout="bnhd",
        multiple=LANDMARKS,
        note="without its projections and its convolution; its pseudo-inverse has one scale for all heads and items",
    ),
)
