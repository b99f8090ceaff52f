"""Two products along the sequence, then fused attention over what they leave."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from variants.dtypes import TORCH_DTYPES
from variants.linformer import ENCODERS_ONLY, projections
from variants.problem import Problem
from variants.sdpa import fused_workspace_bytes
from variants.tiles import flatten_heads
from variants.variant import Attention, variant


def workspace_bytes(problem: Problem, *, projected: int) -> int:
    """E and F, which are kept between calls, the projected keys and values, and the fused kernel's own."""
    matrices = 2 * projected * problem.kv_tokens * problem.element_bytes
    short = 2 * problem.batch * problem.kv_heads * projected * problem.head_dim * problem.element_bytes
    copies = 4 if problem.mode == "training" else 1
    return matrices + copies * short + fused_workspace_bytes(problem)


@variant(
    "linformer/projected",
    summary="keys and values projected along the sequence, then fused attention",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    requires=(ENCODERS_ONLY,),
)
def build(problem: Problem, *, projected: int) -> Attention:
    """The projections are drawn here, and cast once."""
    dtype = TORCH_DTYPES[problem.dtype]
    e, f = (x.to(problem.device, dtype) for x in projections(problem.kv_tokens, projected))

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        keys, values = (
            torch.bmm(matrix.expand(x.shape[0] * x.shape[1], -1, -1), flatten_heads(x)).unflatten(0, x.shape[:2])
            for matrix, x in ((e, k), (f, v))
        )
        return functional.scaled_dot_product_attention(q, keys, values, enable_gqa=problem.group > 1)

    return run
