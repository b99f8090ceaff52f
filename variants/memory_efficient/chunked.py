"""Online softmax over tiles of queries and keys: no score matrix at any time."""

from jaxtyping import Float
from torch import Tensor

from variants.online_softmax import online_softmax, online_workspace_bytes, seen_keys, tile_rows, tiles
from variants.problem import Problem
from variants.variant import Attention, variant


def executed_flops(problem: Problem) -> int:
    """The pairs of every tile that holds a visible one."""
    pairs = 0
    for start in range(0, problem.tokens, tile_rows(problem)):
        stop = min(start + tile_rows(problem), problem.tokens)
        pairs += (stop - start) * seen_keys(problem, slice(start, stop))[1]
    forward = 4 * problem.batch * problem.heads * problem.head_dim * pairs
    return round(forward * 3.5) if problem.mode == "training" else forward


@variant(
    "memory_efficient/chunked",
    summary="online softmax over tiles, gradients by recomputation",
    devices=("cpu", "cuda"),
    modes=("forward", "training", "decode"),
    workspace_bytes=online_workspace_bytes,
    executed_flops=executed_flops,
    source="arXiv:2112.05682, section 2; arXiv:2205.14135, algorithm 1",
)
def build(problem: Problem) -> Attention:
    """The tiles and the biases of those on the diagonal are laid out here."""
    plan = tiles(problem)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return online_softmax(q, k, v, plan)

    return run
