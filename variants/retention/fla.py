"""flash-linear-attention's chunk_retention, on CUDA."""

from jaxtyping import Float
from torch import Tensor

from variants.flash_linear import DTYPES, REQUIRES, chunk_bytes, kernel
from variants.problem import Problem
from variants.variant import Attention, variant


@variant(
    "retention/fla",
    summary="the package flash-linear-attention, its chunk_retention",
    devices=("cuda",),
    dtypes=DTYPES,
    modes=("forward", "training"),
    workspace_bytes=chunk_bytes,
    layout="bnhd",
    requires=REQUIRES,
    source="github.com/fla-org/flash-linear-attention, fla/ops/retention",
)
def build(problem: Problem) -> Attention:
    """The package is imported here. Its rates of decay and its scale are those of the definition."""
    attend = kernel(problem, "retention", "chunk_retention")

    scale = problem.head_dim**-0.5

    def run(
        q: Float[Tensor, "batch tokens heads head_dim"],
        k: Float[Tensor, "batch tokens heads head_dim"],
        v: Float[Tensor, "batch tokens heads head_dim"],
    ) -> Float[Tensor, "batch tokens heads head_dim"]:
        out: Tensor = attend(q, k, v, scale=scale)[0]
        return out

    return run
