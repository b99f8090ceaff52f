"""The window as a dense additive mask over fused attention: the form that saves nothing."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from variants.dtypes import TORCH_DTYPES
from variants.local_window import reach
from variants.problem import Problem
from variants.sdpa import fused_workspace_bytes
from variants.tiles import hidden_bias
from variants.variant import Attention, variant


def workspace_bytes(problem: Problem, *, window: int) -> int:
    """The mask, which is kept between calls, beside what the fused kernel needs."""
    mask = problem.tokens * problem.kv_tokens * problem.element_bytes
    return mask + fused_workspace_bytes(problem)


def executed_flops(problem: Problem, *, window: int) -> int:
    """Every pair, visible or not."""
    forward = 4 * problem.batch * problem.heads * problem.head_dim * problem.tokens * problem.kv_tokens
    return round(forward * 3.5) if problem.mode == "training" else forward


@variant(
    "local_window/masked",
    summary="scaled_dot_product_attention with a dense additive mask",
    devices=("cpu", "cuda"),
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
)
def build(problem: Problem, *, window: int) -> Attention:
    """The mask is built here, outside the clock, and kept."""
    before, after = reach(window, problem.causal)
    row = torch.arange(problem.tokens, device=problem.device)[:, None] + problem.offset
    key = torch.arange(problem.kv_tokens, device=problem.device)[None, :]
    mask = hidden_bias((key < row - before) | (key > row + after), TORCH_DTYPES[problem.dtype])

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=problem.group > 1)

    return run
