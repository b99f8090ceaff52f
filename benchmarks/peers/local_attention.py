"""local-attention: windows by look-around over buckets."""

from collections.abc import Callable

from benchmarks.peer_declaration import Peer
from benchmarks.peer_parts import at_rest
from variants import Problem
from variants.variant import Attention

PACKAGE = "local-attention"


def builder(size: int, *, causal: bool, exact: bool) -> Callable[[Problem], Attention]:
    """Buckets of `size` tokens; with `exact` the window moves with the query, else from bucket to bucket."""

    def build(_: Problem) -> Attention:
        from local_attention import LocalAttention

        module = LocalAttention(size, causal=causal, look_backward=1, exact_windowsize=exact, autopad=False)
        run: Attention = at_rest(module)
        return run

    return build


def workspace(size: int, buckets: int) -> Callable[[Problem], int]:
    """Scores of each query with the keys of its buckets, four times over; keys and values gathered for each bucket."""

    def predict(problem: Problem) -> int:
        keys = size * buckets
        rows = problem.batch * problem.heads * problem.tokens
        scores = 4 * rows * keys * problem.element_bytes
        return scores + (4 * buckets + 4) * problem.query_bytes

    return predict


PEERS = (
    Peer(
        form="window-causal",
        package=PACKAGE,
        variant="local_window",
        parameters={"window": 257},
        causal=True,
        build=builder(256, causal=True, exact=True),
        workspace_bytes=workspace(256, 2),
        multiple=256,
        note="its window of 256 is 256 keys and the query's own; without rotary embeddings",
    ),
    Peer(
        form="window",
        package=PACKAGE,
        variant="local_window",
        parameters={"window": 256},
        causal=False,
        build=builder(128, causal=False, exact=True),
        workspace_bytes=workspace(128, 3),
        multiple=128,
        note="without rotary embeddings",
    ),
    Peer(
        form="blocks-causal",
        package=PACKAGE,
        variant="block_local",
        parameters={"block": 128, "look_back": 1},
        causal=True,
        build=builder(128, causal=True, exact=False),
        workspace_bytes=workspace(128, 2),
        multiple=128,
        note="without rotary embeddings",
    ),
    Peer(
        form="blocks",
        package=PACKAGE,
        variant="block_local",
        parameters={"block": 128, "look_back": 1},
        causal=False,
        build=builder(128, causal=False, exact=False),
        workspace_bytes=workspace(128, 3),
        multiple=128,
        note="without rotary embeddings",
    ),
)
