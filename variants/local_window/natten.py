"""NATTEN's fused kernels, whose causal windows are those of a sliding window, on CUDA."""

from jaxtyping import Float
from torch import Tensor

from variants.flash_attention import DTYPES, lse_bytes
from variants.natten_attention import REQUIRES, kernel_size
from variants.problem import Problem
from variants.requirement import Limit
from variants.variant import Attention, variant


@variant(
    "local_window/natten",
    summary="the package natten, its causal na1d",
    devices=("cuda",),
    dtypes=DTYPES,
    modes=("forward", "training"),
    workspace_bytes=lse_bytes,
    layout="bnhd",
    requires=(*REQUIRES, Limit(lambda problem: problem.causal, "causal only: its other windows shift at the edges")),
    source="arXiv:2403.04690; arXiv:2504.16922; github.com/SHI-Labs/NATTEN",
)
def build(problem: Problem, *, window: int) -> Attention:
    """The package is imported here; it chooses the kernel for the card. Raises `ValueError` for what it cannot do."""
    from natten import na1d

    size = kernel_size(window, 1, problem.tokens)

    def run(
        q: Float[Tensor, "batch tokens heads head_dim"],
        k: Float[Tensor, "batch tokens heads head_dim"],
        v: Float[Tensor, "batch tokens heads head_dim"],
    ) -> Float[Tensor, "batch tokens heads head_dim"]:
        out: Tensor = na1d(q, k, v, kernel_size=size, is_causal=True)
        return out

    return run
