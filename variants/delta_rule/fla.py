"""flash-linear-attention's chunk_delta_rule, on CUDA."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from variants.delta_rule import rates
from variants.dtypes import TORCH_DTYPES
from variants.flash_linear import DTYPES, REQUIRES, chunk_bytes, kernel
from variants.problem import Problem
from variants.variant import Attention, variant


@variant(
    "delta_rule/fla",
    summary="the package flash-linear-attention, its chunk_delta_rule",
    devices=("cuda",),
    dtypes=DTYPES,
    modes=("forward", "training"),
    workspace_bytes=chunk_bytes,
    layout="bnhd",
    requires=REQUIRES,
    source="github.com/fla-org/flash-linear-attention, fla/ops/delta_rule",
)
def build(problem: Problem) -> Attention:
    """The rates go to the card here, tokens before heads; what is timed includes the norms of the keys."""
    attend = kernel(problem, "delta_rule", "chunk_delta_rule")

    beta = rates(problem.heads, problem.tokens).T.to(problem.device, TORCH_DTYPES[problem.dtype])
    beta = beta.expand(problem.batch, -1, -1).contiguous()

    def run(
        q: Float[Tensor, "batch tokens heads head_dim"],
        k: Float[Tensor, "batch tokens heads head_dim"],
        v: Float[Tensor, "batch tokens heads head_dim"],
    ) -> Float[Tensor, "batch tokens heads head_dim"]:
        out: Tensor = attend(q, functional.normalize(k, dim=-1), v, beta, scale=1.0)[0]
        return out

    return run
