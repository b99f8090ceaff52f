"""entmax: sparsemax and 1.5-entmax of the whole score matrix."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.peer_declaration import Peer, score_matrices
from variants import Problem
from variants.variant import Attention

NOTE = "the products of scores and values are plain matrix products of torch"


def builder(function: str, *, causal: bool) -> Callable[[Problem], Attention]:
    """Its function over the rows of the scores, hidden ones at minus infinity."""

    def build(problem: Problem) -> Attention:
        import entmax

        project = getattr(entmax, function)
        hidden = torch.ones(problem.tokens, problem.kv_tokens, dtype=torch.bool).triu(1)

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            scores = (q * q.shape[3] ** -0.5) @ k.mT
            if causal:
                scores = scores.masked_fill_(hidden, -torch.inf)
            out: Tensor = project(scores, dim=-1) @ v
            return out

        return run

    return build


PEERS = tuple(
    Peer(
        form=f"{function}-causal" if causal else function,
        package="entmax",
        variant=function,
        causal=causal,
        build=builder(function, causal=causal),
        workspace_bytes=score_matrices(14),
        note=NOTE,
    )
    for function in ("sparsemax", "entmax15")
    for causal in (False, True)
)
