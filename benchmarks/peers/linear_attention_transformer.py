"""linear-attention-transformer: linear attention with a softmax of queries and keys as its features."""

from functools import partial

from benchmarks.peer_declaration import Peer, query_sizes
from variants import Problem
from variants.variant import Attention

PACKAGE = "linear-attention-transformer"
OTHER_FEATURES = "its features are a softmax over the channels of q and over the tokens of k, its q is scaled by d^−½"


def build(_: Problem) -> Attention:
    """The function alone."""
    from linear_attention_transformer.linear_attention_transformer import linear_attn

    function: Attention = linear_attn
    return function


def build_causal(_: Problem) -> Attention:
    """Buckets of 64 tokens, the function's own default."""
    from linear_attention_transformer.linear_attention_transformer import causal_linear_attn

    return partial(causal_linear_attn, bucket_size=64)


def causal_workspace(problem: Problem) -> int:
    """A state for each bucket, summed up and shifted, and features."""
    states = problem.batch * problem.heads * problem.tokens // 64 * problem.head_dim**2 * problem.element_bytes
    return 4 * states + 5 * problem.query_bytes


PEERS = (
    Peer(
        form="linear",
        package=PACKAGE,
        variant="linear_scan",
        causal=False,
        build=build,
        workspace_bytes=query_sizes(4),
        agrees=False,
        note=OTHER_FEATURES,
    ),
    Peer(
        form="linear-causal",
        package=PACKAGE,
        variant="linear_scan",
        causal=True,
        build=build_causal,
        workspace_bytes=causal_workspace,
        multiple=64,
        agrees=False,
        note="softmax features of q, e^k of k; a query sees the buckets of 64 tokens before its own, and not its own",
    ),
)
