"""h-transformer-1d: hierarchical attention, blocks halved in number from level to level."""

from benchmarks.peer_declaration import Peer
from benchmarks.peer_parts import through_one_projection
from variants import Problem
from variants.variant import Attention

BLOCK = 128


def build(problem: Problem) -> Attention:
    """Its module, its projections taken out."""
    from h_transformer_1d.h_transformer_1d import HAttention1D

    module = HAttention1D(
        problem.heads * problem.head_dim, heads=problem.heads, dim_head=problem.head_dim, block_size=BLOCK
    )
    return through_one_projection(module, problem)


def workspace(problem: Problem) -> int:
    """Scores within the blocks of all levels, and the coarser and the flipped tensors of each."""
    scores = problem.batch * problem.heads * problem.tokens * BLOCK * problem.element_bytes
    return 4 * scores + 20 * problem.query_bytes


PEERS = (
    Peer(
        form="hierarchical",
        package="h-transformer-1d",
        variant="hierarchical_low_rank",
        parameters={"block": BLOCK, "rank": 4},
        causal=False,
        build=build,
        workspace_bytes=workspace,
        layout="bnhd",
        multiple=4 * BLOCK,
        probe_tokens=16 * BLOCK,  # with fewer it has no levels
        agrees=False,
        note="it averages queries too, sees each far block once a level and weighs the levels unlike our definition; "
        "without its projections",
    ),
)
