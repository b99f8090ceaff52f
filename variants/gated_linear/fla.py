"""flash-linear-attention's chunk_gla, on CUDA."""

from jaxtyping import Float
from torch import Tensor

from variants.flash_linear import DTYPES, REQUIRES, chunk_bytes, kernel
from variants.gated_linear import log_decays
from variants.problem import Problem
from variants.variant import Attention, variant


@variant(
    "gated_linear/fla",
    summary="the package flash-linear-attention, its chunk_gla",
    devices=("cuda",),
    dtypes=DTYPES,
    modes=("forward", "training"),
    workspace_bytes=chunk_bytes,
    layout="bnhd",
    requires=REQUIRES,
    source="github.com/fla-org/flash-linear-attention, fla/ops/gla",
)
def build(problem: Problem) -> Attention:
    """The log decays go to the card here, tokens before heads."""
    attend = kernel(problem, "gla", "chunk_gla")

    decays = log_decays(problem.heads, problem.tokens, problem.head_dim).transpose(0, 1).float()
    gates = decays.to(problem.device).expand(problem.batch, -1, -1, -1).contiguous()

    def run(
        q: Float[Tensor, "batch tokens heads head_dim"],
        k: Float[Tensor, "batch tokens heads head_dim"],
        v: Float[Tensor, "batch tokens heads head_dim"],
    ) -> Float[Tensor, "batch tokens heads head_dim"]:
        out: Tensor = attend(q, k, v, gates, scale=1.0)[0]
        return out

    return run
