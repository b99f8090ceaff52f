"""The sum as it stands, query by query: one pass over the values for each, which for a single query is the least."""

import torch
from jaxtyping import Float
from torch import Tensor

from variants.dtypes import TORCH_DTYPES
from variants.full import visible_pairs as pairs_of
from variants.long_convolution import CAUSAL_ONLY, filters
from variants.problem import Problem
from variants.tiles import SCRATCH_BYTES, accumulator
from variants.variant import Attention, variant


def workspace_bytes(problem: Problem, *, reach: int) -> int:
    """The filters, and one head's values widened and weighed."""
    wide = max(4, problem.element_bytes)
    one = problem.kv_tokens * problem.head_dim * wide
    return problem.heads * one + (1 + (problem.element_bytes < wide)) * problem.batch * one + SCRATCH_BYTES


def executed_flops(problem: Problem, *, reach: int) -> int:
    """A product and a sum for each tap of each query."""
    return 2 * problem.batch * problem.heads * problem.head_dim * pairs_of(problem)


@variant(
    "long_convolution/direct",
    summary="a sum over the taps for each query",
    devices=("cpu", "cuda"),
    modes=("forward", "decode"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=(CAUSAL_ONLY,),
)
def build(problem: Problem, *, reach: int) -> Attention:
    """The filters are drawn here, the last tap first."""
    wide = accumulator(TORCH_DTYPES[problem.dtype])
    drawn = filters(problem.heads, problem.kv_tokens, problem.head_dim, reach)
    reversed_taps = drawn.flip(1).to(problem.device, wide)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        for head in range(problem.heads):
            values = v[:, head // problem.group].to(wide)
            for row in range(max(0, -problem.offset), problem.tokens):
                count = row + problem.offset + 1
                taps = reversed_taps[head, problem.kv_tokens - count :]
                out[:, head, row] = (values[:, :count] * taps).sum(1)
        return out

    return run
