"""NATTEN's fused kernels, on CUDA."""

from jaxtyping import Float
from torch import Tensor

from variants.flash_attention import DTYPES, lse_bytes
from variants.natten_attention import REQUIRES, kernel_size
from variants.problem import Problem
from variants.variant import Attention, variant


@variant(
    "neighborhood/natten",
    summary="the package natten, its na1d",
    devices=("cuda",),
    dtypes=DTYPES,
    modes=("forward", "training"),
    workspace_bytes=lse_bytes,
    layout="bnhd",
    requires=REQUIRES,
    source="arXiv:2403.04690; arXiv:2504.16922; github.com/SHI-Labs/NATTEN",
)
def build(problem: Problem, *, window: int, dilation: int) -> Attention:
    """The package is imported here; it chooses the kernel for the card. Raises `ValueError` for what it cannot do."""
    from natten import na1d

    size = kernel_size(window, dilation, problem.tokens)

    def run(
        q: Float[Tensor, "batch tokens heads head_dim"],
        k: Float[Tensor, "batch tokens heads head_dim"],
        v: Float[Tensor, "batch tokens heads head_dim"],
    ) -> Float[Tensor, "batch tokens heads head_dim"]:
        out: Tensor = na1d(q, k, v, kernel_size=size, dilation=dilation, is_causal=problem.causal)
        return out

    return run
