"""NATTEN's fused kernels over an image, on CUDA."""

from jaxtyping import Float
from torch import Tensor

from variants.flash_attention import DTYPES, lse_bytes
from variants.natten_attention import REQUIRES, kernel_size
from variants.problem import Problem
from variants.variant import Attention, variant


@variant(
    "neighborhood_2d/natten",
    summary="the package natten, its na2d",
    devices=("cuda",),
    dtypes=DTYPES,
    modes=("forward", "training"),
    workspace_bytes=lse_bytes,
    layout="bnhd",
    requires=REQUIRES,
    source="arXiv:2403.04690; arXiv:2504.16922; github.com/SHI-Labs/NATTEN",
)
def build(problem: Problem, *, window: int, dilation: int, grid_width: int) -> Attention:
    """The package is imported here; it chooses the kernel for the card. Raises `ValueError` for what it cannot do."""
    from natten import na2d

    height, rest = divmod(problem.tokens, grid_width)
    if rest:
        raise ValueError(f"NATTEN needs whole lines: {problem.tokens} tokens are no multiple of {grid_width}")
    sizes = kernel_size(window, dilation, height), kernel_size(window, dilation, grid_width)

    def run(
        q: Float[Tensor, "batch tokens heads head_dim"],
        k: Float[Tensor, "batch tokens heads head_dim"],
        v: Float[Tensor, "batch tokens heads head_dim"],
    ) -> Float[Tensor, "batch tokens heads head_dim"]:
        images = (x.unflatten(1, (height, grid_width)) for x in (q, k, v))
        out: Tensor = na2d(*images, kernel_size=sizes, dilation=dilation, is_causal=problem.causal)
        return out.flatten(1, 2)

    return run
