"""The penalties as a dense additive mask of each head over fused attention."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from variants.alibi import distance_bias
from variants.dtypes import TORCH_DTYPES
from variants.problem import Problem
from variants.sdpa import fused_workspace_bytes
from variants.tiles import accumulator
from variants.variant import Attention, variant


def workspace_bytes(problem: Problem) -> int:
    """The mask of every head, in at least float32, beside what the fused kernel needs."""
    mask = problem.heads * problem.tokens * problem.kv_tokens * max(4, problem.element_bytes)
    return mask + fused_workspace_bytes(problem.with_(causal=False))


def executed_flops(problem: Problem) -> int:
    """Every pair, causal or not."""
    forward = 4 * problem.batch * problem.heads * problem.head_dim * problem.tokens * problem.kv_tokens
    return round(forward * 3.5) if problem.mode == "training" else forward


@variant(
    "alibi/masked",
    summary="scaled_dot_product_attention with a dense mask for each head",
    devices=("cpu", "cuda"),
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
)
def build(problem: Problem) -> Attention:
    """The masks are built here, outside the clock, and kept."""
    row = torch.arange(problem.tokens, device=problem.device)[:, None] + problem.offset
    ahead = torch.arange(problem.kv_tokens, device=problem.device)[None, :] - row
    dtype = TORCH_DTYPES[problem.dtype]
    # The CPU's kernel takes a wider mask, and a long distance has no exact number in a half type;
    # of three axes it takes none, and torch would take another kernel.
    mask = distance_bias(problem, ahead, accumulator(dtype) if problem.device_type == "cpu" else dtype).unsqueeze(0)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=problem.group > 1)

    return run
