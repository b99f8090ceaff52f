"""x-transformers: its attention proper, with the whole score matrix."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from benchmarks.peer_declaration import Peer, score_matrices
from benchmarks.peer_parts import at_rest
from variants import Problem
from variants.learned_sink import sink_logits
from variants.variant import Attention

PACKAGE = "x-transformers"
KEPT = 64


def attention_of(module: Any) -> Attention:
    """The output without what else the module returns."""
    at_rest(module)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = module(q, k, v)[0]
        return out

    return run


def top_k_builder(*, causal: bool) -> Callable[[Problem], Attention]:
    """Softmax over the largest scores."""

    def build(_: Problem) -> Attention:
        from x_transformers.attend import Attend

        return attention_of(Attend(causal=causal, sparse_topk=KEPT))

    return build


def sink_builder(*, causal: bool) -> Callable[[Problem], Attention]:
    """A learned sink, with the definition's logits."""

    def build(problem: Problem) -> Attention:
        from x_transformers.attend import Attend

        module = Attend(causal=causal, heads=problem.heads, head_learned_sink=True)
        module.head_attn_sink.data.copy_(sink_logits(problem.heads))
        return attention_of(module)

    return build


PEERS = (
    *(
        Peer(
            form="top-k-causal" if causal else "top-k",
            package=PACKAGE,
            variant="top_k",
            parameters={"kept": KEPT},
            causal=causal,
            build=top_k_builder(causal=causal),
            workspace_bytes=score_matrices(6),
            note="ties with the last kept score are all kept",
        )
        for causal in (False, True)
    ),
    *(
        Peer(
            form="sink-causal" if causal else "sink",
            package=PACKAGE,
            variant="learned_sink",
            causal=causal,
            build=sink_builder(causal=causal),
            workspace_bytes=score_matrices(6),
            note="with our sink logits",
        )
        for causal in (False, True)
    ),
)
