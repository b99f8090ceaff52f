"""The scan as written: one key after the other into the state."""

import torch
from jaxtyping import Float
from torch import Tensor

from variants.problem import Problem
from variants.tiles import SCRATCH_BYTES, accumulator
from variants.variant import Attention, variant


def feature(x: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """elu(x) + 1, in at least float32."""
    return torch.nn.functional.elu(x.to(accumulator(x.dtype))) + 1


def workspace_bytes(problem: Problem) -> int:
    """Features and output in at least float32, and the state; in training the state of every step."""
    wide = max(4, problem.element_bytes)
    rows = problem.batch * problem.heads
    state = rows * problem.head_dim * problem.head_dim * wide
    streams = rows * (2 * problem.tokens + 2 * problem.kv_tokens) * problem.head_dim * wide
    if problem.mode != "training":
        return streams + 3 * state + SCRATCH_BYTES
    steps = problem.kv_tokens if problem.causal else 1
    return 3 * streams + (steps + 3) * state + rows * problem.kv_tokens * problem.head_dim * wide * 4 + SCRATCH_BYTES


@variant(
    "linear_scan/recurrent",
    summary="the state grown key by key",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
)
def build(problem: Problem) -> Attention:
    """Nothing to set up."""

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        queries, keys = feature(q), feature(k).repeat_interleave(problem.group, 1)
        values = v.to(keys.dtype).repeat_interleave(problem.group, 1)
        kept = any(x.requires_grad for x in (queries, keys, values))
        # Empty sums: zeros from which gradients reach k and v even where there is no key.
        total = keys[:, :, :0].sum(2)
        state = total.unsqueeze(-1) * values[:, :, :0].sum(2).unsqueeze(-2)
        if problem.kv_tokens == 0:
            return (queries @ state).to(q.dtype)
        if not problem.causal:
            for key, value in zip(keys.unbind(2), values.unbind(2), strict=True):
                state, total = grow(state, total, key, value, kept)
            return read(state, total, queries).to(q.dtype)
        offset = problem.offset
        rows = [torch.zeros_like(values[:, :, 0])] * max(0, -offset)
        for position, (key, value) in enumerate(zip(keys.unbind(2), values.unbind(2), strict=True)):
            state, total = grow(state, total, key, value, kept)
            if position >= offset:
                rows.append(read(state, total, queries[:, :, position - offset : position - offset + 1]).squeeze(2))
        return (torch.stack(rows, 2) if rows else queries @ state).to(q.dtype)

    return run


def grow(state: Tensor, total: Tensor, key: Tensor, value: Tensor, kept: bool) -> tuple[Tensor, Tensor]:
    """State and normaliser with one more key; in place unless the old ones are `kept` for gradients."""
    outer = key.unsqueeze(-1) * value.unsqueeze(-2)
    if kept:
        return state + outer, total + key
    return state.add_(outer), total.add_(key)


def read(state: Tensor, total: Tensor, queries: Tensor) -> Tensor:
    """The rows φ(q)ᵀS / φ(q)ᵀz."""
    return (queries @ state) / (queries @ total.unsqueeze(-1))
