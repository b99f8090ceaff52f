"""torch's own FlashAttention with its window, through the function for packed sequences, on CUDA."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from variants.flash_attention import DTYPES, HEAD_SIZES, SOME_KEYS, lse_bytes
from variants.local_window import reach
from variants.problem import Problem
from variants.requirement import ComputeCapability, Package
from variants.variant import Attention, variant


class GroupedSince:
    """Fewer heads of keys than of queries, from the release on that takes them."""

    def unmet(self, problem: Problem) -> str | None:
        """The reason where heads are grouped and torch is older."""
        return Package("torch", "2.12").unmet(problem) if problem.group > 1 else None


def workspace_bytes(problem: Problem, *, window: int) -> int:
    """The log-sum-exp, and the borders of the sequences."""
    return lse_bytes(problem) + 8 * (problem.batch + 1)


@variant(
    "local_window/torch_varlen",
    summary="torch's FlashAttention with window_size, every item a packed sequence",
    devices=("cuda",),
    dtypes=DTYPES,
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
    layout="bnhd",
    requires=(Package("torch", "2.11"), GroupedSince(), ComputeCapability(8), HEAD_SIZES, SOME_KEYS),
    source="torch.nn.attention.varlen; arXiv:2307.08691",
)
def build(problem: Problem, *, window: int) -> Attention:
    """The borders of the sequences are laid out here; both numbers of window_size are inclusive."""
    from torch.nn.attention.varlen import varlen_attn

    items = torch.arange(problem.batch + 1, dtype=torch.int32, device=problem.device)
    of_queries, of_keys = items * problem.tokens, items * problem.kv_tokens
    grouped: dict[str, Any] = {"enable_gqa": True} if problem.group > 1 else {}
    both = reach(window, problem.causal)

    def run(
        q: Float[Tensor, "batch tokens heads head_dim"],
        k: Float[Tensor, "batch kv_tokens kv_heads head_dim"],
        v: Float[Tensor, "batch kv_tokens kv_heads head_dim"],
    ) -> Float[Tensor, "batch tokens heads head_dim"]:
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        longest = problem.tokens, problem.kv_tokens
        out = varlen_attn(q, k, v, of_queries, of_keys, *longest, window_size=both, **grouped)
        assert isinstance(out, Tensor)  # nothing besides was asked for
        split: Tensor = out.unflatten(0, (problem.batch, problem.tokens))
        return split

    return run
