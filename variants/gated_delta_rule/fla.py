"""flash-linear-attention's chunk_gated_delta_rule, on CUDA."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from variants.dtypes import TORCH_DTYPES
from variants.flash_linear import DTYPES, REQUIRES, chunk_bytes
from variants.gated_delta_rule import log_decays, rates
from variants.problem import Problem
from variants.variant import Attention, variant


@variant(
    "gated_delta_rule/fla",
    summary="the package flash-linear-attention, its chunk_gated_delta_rule",
    devices=("cuda",),
    dtypes=DTYPES,
    modes=("forward", "training"),
    workspace_bytes=chunk_bytes,
    layout="bnhd",
    requires=REQUIRES,
    source="github.com/fla-org/flash-linear-attention, fla/ops/gated_delta_rule",
)
def build(problem: Problem) -> Attention:
    """Rates and log decays go to the card here, tokens before heads; what is timed includes the norms of the keys."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    beta = rates(problem.heads, problem.tokens).T.to(problem.device, TORCH_DTYPES[problem.dtype])
    decays = log_decays(problem.heads, problem.tokens).T.to(problem.device).float()
    beta, decays = (x.expand(problem.batch, -1, -1).contiguous() for x in (beta, decays))

    def run(
        q: Float[Tensor, "batch tokens heads head_dim"],
        k: Float[Tensor, "batch tokens heads head_dim"],
        v: Float[Tensor, "batch tokens heads head_dim"],
    ) -> Float[Tensor, "batch tokens heads head_dim"]:
        out: Tensor = chunk_gated_delta_rule(q, functional.normalize(k, dim=-1), v, decays, beta, scale=1.0)[0]
        return out

    return run
