"""torch's scaled_dot_product_attention, held to one of its kernels."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from variants.dtypes import TORCH_DTYPES
from variants.problem import Problem
from variants.tiles import hidden_bias
from variants.variant import Attention


def forced(problem: Problem, backend: SDPBackend) -> Attention:
    """Full attention by one kernel of SDPA; RuntimeError at the call where that kernel cannot run.

    torch aligns `is_causal` to the upper left, so a causal problem that is not square gets a
    dense mask, built here.
    """
    square = problem.tokens == problem.kv_tokens
    mask = None if square or not problem.causal else bottom_right_mask(problem)
    is_causal = problem.causal and square

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        with sdpa_kernel(backend):
            return functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=problem.group > 1
            )

    return run


def bottom_right_mask(problem: Problem) -> Tensor | None:
    """The additive causal mask that lets the last query see the last key; None where it hides nothing."""
    row = torch.arange(problem.tokens, device=problem.device)[:, None] + problem.offset
    key = torch.arange(problem.kv_tokens, device=problem.device)[None, :]
    return hidden_bias(key > row, TORCH_DTYPES[problem.dtype])


def fused_workspace_bytes(problem: Problem) -> int:
    """The log-sum-exp, the mask of a causal problem that is not square, and the CPU kernel's tile buffers."""
    oblong = problem.causal and problem.tokens != problem.kv_tokens
    mask = problem.tokens * problem.kv_tokens * problem.element_bytes if oblong else 0
    lse = max(4, problem.element_bytes) * problem.batch * problem.heads * problem.tokens
    return mask + lse + torch.get_num_threads() * 4 * 2**20
