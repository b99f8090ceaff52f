"""flash-linear-attention's chunk_linear_attn, on CUDA."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from variants.flash_linear import REQUIRES, chunk_bytes, kernel
from variants.problem import Problem
from variants.variant import Attention, variant


@variant(
    "linear_scan/fla",
    summary="the package flash-linear-attention, its chunk_linear_attn",
    devices=("cuda",),
    dtypes=("bfloat16",),  # it keeps sums over all keys in the type of q, which overflow in float16
    modes=("forward", "training"),
    workspace_bytes=chunk_bytes,
    layout="bnhd",
    requires=REQUIRES,
    source="github.com/fla-org/flash-linear-attention, fla/ops/linear_attn",
)
def build(problem: Problem) -> Attention:
    """The package is imported here; what is timed includes the features, as its own layer computes them."""
    attend = kernel(problem, "linear_attn", "chunk_linear_attn")

    def run(
        q: Float[Tensor, "batch tokens heads head_dim"],
        k: Float[Tensor, "batch tokens heads head_dim"],
        v: Float[Tensor, "batch tokens heads head_dim"],
    ) -> Float[Tensor, "batch tokens heads head_dim"]:
        out: Tensor = attend(functional.elu(q) + 1, functional.elu(k) + 1, v, scale=1.0, normalize=True)[0]
        return out

    return run
