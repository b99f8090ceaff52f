"""torch's own GRU, all key-value heads as one batch; grouped queries share its states."""

import torch
from jaxtyping import Float
from torch import Tensor

from variants.dtypes import TORCH_DTYPES
from variants.gru import CAUSAL_ONLY, SELF_ATTENTION, weights
from variants.problem import Problem
from variants.tiles import SCRATCH_BYTES, accumulator, flatten_heads
from variants.values_only import also_of
from variants.variant import Attention, variant


def workspace_bytes(problem: Problem) -> int:
    """Values by token, gates of every token and their states; in training also each step's parts."""
    wide = max(4, problem.element_bytes)
    values = problem.batch * problem.kv_heads * problem.kv_tokens * problem.head_dim * wide
    held = 6 * problem.head_dim**2 * wide + SCRATCH_BYTES
    return held + values * (24 if problem.mode == "training" else 7)


@variant(
    "gru/library",
    summary="torch.nn.GRU with frozen weights",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    requires=(CAUSAL_ONLY, SELF_ATTENTION),
)
def build(problem: Problem) -> Attention:
    """The weights are drawn here, and cast once. A half type is widened: its state would drift."""
    wide = accumulator(TORCH_DTYPES[problem.dtype])
    unit = torch.nn.GRU(problem.head_dim, problem.head_dim, bias=False, device=problem.device, dtype=wide)
    with torch.no_grad():
        for own, drawn in zip(("weight_ih_l0", "weight_hh_l0"), weights(problem.head_dim), strict=True):
            unit.get_parameter(own).copy_(drawn)
    unit.requires_grad_(False)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        if not v.numel():
            return q + 0 * (k + v).sum()
        states, _ = unit(flatten_heads(v).to(wide).transpose(0, 1))
        out = states.transpose(0, 1).unflatten(0, v.shape[:2]).repeat_interleave(problem.group, 1).to(q.dtype)
        return also_of(out.contiguous(), q, k)

    return run
