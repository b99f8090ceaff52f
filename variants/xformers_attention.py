"""What the variants that call xformers share."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from variants.problem import Problem
from variants.variant import Attention


def calling(problem: Problem, kernels: tuple[Any, Any] | None = None) -> Attention:
    """memory_efficient_attention by its own choice, or by one pair of kernels, forward and backward.

    The bias is xformers' own object; a single query sees every key and needs none. Grouped queries use the form
    with five axes.
    """
    from xformers import ops  # optional, and slow to import

    masked = problem.causal and problem.tokens > 1
    bias = ops.fmha.attn_bias.LowerTriangularFromBottomRightMask() if masked else None

    def run(
        q: Float[Tensor, "batch tokens heads head_dim"],
        k: Float[Tensor, "batch kv_tokens kv_heads head_dim"],
        v: Float[Tensor, "batch kv_tokens kv_heads head_dim"],
    ) -> Float[Tensor, "batch tokens heads head_dim"]:
        if problem.group == 1:
            out: Tensor = ops.memory_efficient_attention(q, k, v, attn_bias=bias, op=kernels)
            return out
        grouped = q.unflatten(2, (problem.kv_heads, problem.group))
        spread = (x.unsqueeze(3).expand(-1, -1, -1, problem.group, -1) for x in (k, v))
        merged: Tensor = ops.memory_efficient_attention(grouped, *spread, attn_bias=bias, op=kernels)
        return merged.flatten(2, 3)

    return run
