"""linformer: keys and values projected along the sequence."""

from torch import Tensor, nn

from benchmarks.peer_declaration import Peer
from benchmarks.peer_parts import Held, at_rest, joined, parted
from variants import Problem
from variants.dtypes import TORCH_DTYPES
from variants.linformer import projections
from variants.variant import Attention

PROJECTED = 256


def build(problem: Problem) -> Attention:
    """Its module with the definition's E and F, its projections to q, k, v and output taken out."""
    from linformer import LinformerSelfAttention

    width = problem.heads * problem.head_dim
    module = LinformerSelfAttention(width, problem.tokens, k=PROJECTED, heads=problem.heads, dim_head=problem.head_dim)
    at_rest(module).to(TORCH_DTYPES[problem.dtype])
    for own, ours in zip((module.proj_k, module.proj_v), projections(problem.tokens, PROJECTED), strict=True):
        own.copy_(ours.T)
    module.to_q, module.to_k, module.to_v, module.to_out = Held(), Held(), Held(), nn.Identity()

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        module.to_q.held, module.to_k.held, module.to_v.held = joined(q), joined(k), joined(v)
        return parted(module(joined(q)), problem)

    return run


def workspace(problem: Problem) -> int:
    """Scores with the projected keys, twice, both projections and the merged heads."""
    pairs = problem.batch * problem.heads * problem.tokens * PROJECTED
    return (3 * pairs + 2 * problem.tokens * PROJECTED) * problem.element_bytes + 4 * problem.query_bytes


PEERS = (
    Peer(
        form="linformer",
        package="linformer",
        variant="linformer",
        parameters={"projected": PROJECTED},
        causal=False,
        build=build,
        workspace_bytes=workspace,
        layout="bnhd",
        note="with our E and F; without its projections to q, k, v and output",
    ),
)
