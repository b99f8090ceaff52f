"""Sinks and window as a dense additive mask over fused attention: the form that saves nothing."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from variants.dtypes import TORCH_DTYPES
from variants.problem import Problem
from variants.sdpa import fused_workspace_bytes
from variants.sink_window import STREAMS_ONLY
from variants.tiles import hidden_bias
from variants.variant import Attention, variant


def workspace_bytes(problem: Problem, *, window: int, sinks: int) -> int:
    """The mask, which is kept between calls, beside what the fused kernel needs; bytes while it is built."""
    pairs = problem.tokens * problem.kv_tokens
    return pairs * problem.element_bytes + fused_workspace_bytes(problem.with_(kv_tokens=problem.tokens))


def executed_flops(problem: Problem, *, window: int, sinks: int) -> int:
    """Every pair, visible or not."""
    forward = 4 * problem.batch * problem.heads * problem.head_dim * problem.tokens * problem.kv_tokens
    return round(forward * 3.5) if problem.mode == "training" else forward


@variant(
    "sink_window/masked",
    summary="scaled_dot_product_attention with a dense additive mask",
    devices=("cpu", "cuda"),
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=(STREAMS_ONLY,),
)
def build(problem: Problem, *, window: int, sinks: int) -> Attention:
    """The mask is built here, outside the clock, and kept."""
    row = torch.arange(problem.tokens, device=problem.device)[:, None] + problem.offset
    key = torch.arange(problem.kv_tokens, device=problem.device)[None, :]
    hidden = (key > row) | ((key <= row - window) & (key >= sinks))
    mask = hidden_bias(hidden, TORCH_DTYPES[problem.dtype])

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=problem.group > 1)

    return run
