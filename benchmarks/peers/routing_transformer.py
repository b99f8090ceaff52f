"""routing-transformer: attention within clusters of queries and keys."""

from collections.abc import Callable

from torch import Tensor

from benchmarks.peer_declaration import Peer
from benchmarks.peer_parts import at_rest
from variants import Problem
from variants.variant import Attention

PACKAGE = "routing-transformer"
WINDOW = 256


def builder(*, causal: bool) -> Callable[[Problem], Attention]:
    """Its module; the first call, which is not timed, finds the clusters' centres."""

    def build(problem: Problem) -> Attention:
        from routing_transformer.routing_transformer import KmeansAttention

        module = KmeansAttention(
            num_clusters=max(1, problem.tokens // WINDOW),
            window_size=WINDOW,
            num_heads=problem.heads,
            head_dim=problem.head_dim,
            causal=causal,
        )
        at_rest(module)

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Tensor = module(q, k, v)[0]
            return out

        return run

    return build


def workspace(problem: Problem) -> int:
    """Scores within the clusters several times over; what is gathered, with an index for each element."""
    rows = problem.batch * problem.heads * problem.tokens
    clusters = max(1, problem.tokens // WINDOW)
    return (4 * rows * (WINDOW + 1) + 6 * rows * clusters) * problem.element_bytes + 22 * problem.query_bytes


PEERS = tuple(
    Peer(
        form="kmeans-causal" if causal else "kmeans",
        package=PACKAGE,
        variant="routing",
        parameters={"members": WINDOW},
        causal=causal,
        build=builder(causal=causal),
        workspace_bytes=workspace,
        multiple=WINDOW,
        agrees=False,
        note=f"clusters of {WINDOW} tokens by k-means of the first call's q and k, then kept"
        + ("; each cluster has a random key and value besides" if causal else ""),
    )
    for causal in (False, True)
)
