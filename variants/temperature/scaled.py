"""Fused attention with another scale."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from variants.problem import Problem
from variants.sdpa import bottom_right_mask, fused_workspace_bytes
from variants.variant import Attention, variant


def workspace_bytes(problem: Problem, *, percent: int) -> int:
    """What the fused kernel needs."""
    return fused_workspace_bytes(problem)


@variant(
    "temperature/scaled",
    summary="scaled_dot_product_attention with its scale divided by τ",
    devices=("cpu", "cuda"),
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
)
def build(problem: Problem, *, percent: int) -> Attention:
    """The mask of a causal problem that is not square is built here."""
    square = problem.tokens == problem.kv_tokens
    mask = bottom_right_mask(problem) if problem.causal and not square else None
    scale = 100 / (percent * problem.head_dim**0.5)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        out: Tensor = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=problem.causal and square, scale=scale, enable_gqa=problem.group > 1
        )
        return out

    return run
