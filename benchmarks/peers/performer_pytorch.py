"""performer-pytorch: FAVOR+."""

from collections.abc import Callable

from benchmarks.peer_declaration import Peer
from benchmarks.peer_parts import at_rest
from variants import Problem
from variants.favor import projection
from variants.variant import Attention

PACKAGE = "performer-pytorch"
FEATURES = 256
NOTE = "with our ω; it adds 1e-4 to each feature, after a division by the largest of all keys"


def builder(*, causal: bool) -> Callable[[Problem], Attention]:
    """Its module with the definition's ω in place of its own draw."""

    def build(problem: Problem) -> Attention:
        from performer_pytorch import FastAttention

        module = FastAttention(problem.head_dim, nb_features=FEATURES, causal=causal)
        module.projection_matrix.copy_(projection(problem.head_dim, FEATURES))
        run: Attention = at_rest(module)
        return run

    return build


def feature_bytes(problem: Problem) -> int:
    """The features of all queries, or of all keys."""
    return problem.batch * problem.heads * problem.tokens * FEATURES * problem.element_bytes


def causal_workspace(problem: Problem) -> int:
    """For each token of one of 128 chunks a state of its own, several times over."""
    chunk = -(-problem.tokens // 128)
    states = problem.batch * problem.heads * chunk * FEATURES * problem.head_dim * problem.element_bytes
    return 4 * states + 8 * feature_bytes(problem) + 2 * problem.query_bytes


PEERS = (
    Peer(
        form="favor",
        package=PACKAGE,
        variant="favor",
        parameters={"features": FEATURES},
        causal=False,
        build=builder(causal=False),
        workspace_bytes=lambda problem: 7 * feature_bytes(problem) + 3 * problem.query_bytes,
        note=NOTE,
    ),
    Peer(
        form="favor-causal",
        package=PACKAGE,
        variant="favor",
        parameters={"features": FEATURES},
        causal=True,
        build=builder(causal=True),
        workspace_bytes=causal_workspace,
        note=f"{NOTE}; the form that it takes without its CUDA extension",
    ),
)
