"""Two products along the sequence, then exact attention over what they leave."""

import torch
from jaxtyping import Float
from torch import Tensor

from variants.dtypes import TORCH_DTYPES
from variants.linformer import ENCODERS_ONLY, projections
from variants.problem import Problem
from variants.products import differentiable_product
from variants.short_keys import exact_attention, exact_workspace_bytes
from variants.tiles import flatten_heads
from variants.variant import Attention, variant


def workspace_bytes(problem: Problem, *, projected: int) -> int:
    """E and F, which are kept between calls, the projected keys and values, and what attention to them takes."""
    matrices = 2 * projected * problem.kv_tokens * problem.element_bytes
    short = 2 * problem.batch * problem.kv_heads * projected * problem.head_dim * problem.element_bytes
    copies = 4 if problem.mode == "training" else 2
    return matrices + copies * short + exact_workspace_bytes(problem.with_(kv_tokens=projected))


@variant(
    "linformer/projected",
    summary="keys and values projected along the sequence, then exact attention",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    requires=(ENCODERS_ONLY,),
)
def build(problem: Problem, *, projected: int) -> Attention:
    """The projections are drawn here, and cast once."""
    dtype = TORCH_DTYPES[problem.dtype]
    e, f = (x.to(problem.device, dtype) for x in projections(problem.kv_tokens, projected))
    attend = exact_attention(problem.with_(kv_tokens=projected))

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        keys, values = (_projected(matrix, x) for matrix, x in ((e, k), (f, v)))
        return attend(q, keys, values)

    return run


def _projected(
    matrix: Float[Tensor, "projected tokens"], x: Float[Tensor, "batch heads tokens dim"]
) -> Float[Tensor, "batch heads projected dim"]:
    """The matrix times each head: one product after the other is faster than all in one call."""
    heads = [differentiable_product(matrix, head) for head in flatten_heads(x)]
    return torch.stack(heads).unflatten(0, x.shape[:2]) if heads else matrix @ x
