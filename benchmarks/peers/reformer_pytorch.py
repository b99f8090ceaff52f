"""reformer-pytorch: attention within buckets of a locality-sensitive hash."""

from collections.abc import Callable

from torch import Tensor

from benchmarks.peer_declaration import Peer
from benchmarks.peer_parts import at_rest
from variants import Problem
from variants.variant import Attention

PACKAGE = "reformer-pytorch"
BUCKET, ROUNDS = 64, 4


def builder(*, causal: bool) -> Callable[[Problem], Attention]:
    """Its module; it draws its hashes anew in every call."""

    def build(_: Problem) -> Attention:
        from reformer_pytorch import LSHAttention

        module = LSHAttention(bucket_size=BUCKET, n_hashes=ROUNDS, causal=causal)
        at_rest(module)

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: ARG001  # it has one tensor for both, as Reformer has
            out: Tensor = module(q.flatten(0, 1), v.flatten(0, 1))[0]
            return out.view(q.shape)

        return run

    return build


def workspace(problem: Problem) -> int:
    """For each round the scores of every token with two buckets, and queries, keys and values sorted and doubled."""
    rows = problem.batch * problem.heads * problem.tokens * ROUNDS
    hashed = rows * max(2 * BUCKET, problem.tokens // BUCKET) * problem.element_bytes
    return 5 * hashed + 12 * ROUNDS * problem.query_bytes + 8 * 10 * rows


PEERS = tuple(
    Peer(
        form="lsh-causal" if causal else "lsh",
        package=PACKAGE,
        variant="lsh",
        parameters={"chunk": BUCKET, "rounds": ROUNDS},
        causal=causal,
        build=builder(causal=causal),
        workspace_bytes=workspace,
        multiple=2 * BUCKET,
        agrees=False,
        note=(
            f"q serves as k, which is not read; {ROUNDS} rounds, hashes drawn anew in every call; chunks of {BUCKET} "
            "are cut across the sorted sequence, a pair of several rounds counts several times, the own key comes last"
        ),
    )
    for causal in (False, True)
)
