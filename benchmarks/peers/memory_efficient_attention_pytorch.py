"""memory-efficient-attention-pytorch: exact attention by chunks, in two ways."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from benchmarks.peer_declaration import Peer
from variants import Problem
from variants.variant import Attention

PACKAGE = "memory-efficient-attention-pytorch"
QUERIES, KEYS = 512, 1024


def builder(*, causal: bool) -> Callable[[Problem], Attention]:
    """Chunks of its default sizes."""

    def build(_: Problem) -> Attention:
        from memory_efficient_attention_pytorch.memory_efficient_attention import memory_efficient_attention

        return partial(memory_efficient_attention, causal=causal, q_bucket_size=QUERIES, k_bucket_size=KEYS)

    return build


def flash_builder(*, causal: bool) -> Callable[[Problem], Attention]:
    """Its FlashAttention in plain torch, with tiles of the same sizes."""

    def build(_: Problem) -> Attention:
        from memory_efficient_attention_pytorch.flash_attention import FlashAttentionFunction

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Tensor = FlashAttentionFunction.apply(q, k, v, None, causal, QUERIES, KEYS)
            return out

        return run

    return build


def workspace(problem: Problem) -> int:
    """One tile's scores several times over, and each chunk of queries' sums for every chunk of keys."""
    rows = problem.batch * problem.heads * min(QUERIES, problem.tokens)
    chunks = -(-problem.kv_tokens // KEYS)
    sums = 4 * chunks * rows * problem.head_dim
    tiles = 5 * rows * min(KEYS, problem.kv_tokens)
    return (tiles + sums) * problem.element_bytes + 4 * problem.query_bytes


PEERS = tuple(
    Peer(
        form=f"{form}-causal" if causal else form,
        package=PACKAGE,
        variant="memory_efficient/chunked",
        causal=causal,
        build=make(causal=causal),
        workspace_bytes=workspace,
    )
    for form, make in (("chunked", builder), ("flash", flash_builder))
    for causal in (False, True)
)
