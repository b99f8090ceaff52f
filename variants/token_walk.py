"""What the oracles of recurrences share: a walk through the tokens with a state, read at the wanted rows."""

from collections.abc import Callable

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

SEGMENT = 256
"""Tokens between two states that are kept for the backward pass, which walks through each segment again."""


def walk(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    rows: Int64[Tensor, " rows"],
    state: Float64[Tensor, "batch heads head_dim value_dim"],
    step: Callable[..., Tensor],
    *streams: Float64[Tensor, "*batch heads tokens _"],
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """o_t = S_tᵀ q_t at those rows, with S_t = `step(S_{t−1}, *what each stream holds at t)`; S_{−1} is `state`."""
    wanted = set(rows.tolist())
    end = max(wanted, default=-1) + 1
    outs: dict[int, Tensor] = {}

    def segment(state: Tensor, first: int, *parts: Tensor) -> tuple[Tensor, ...]:
        found = []
        # Unbound as a whole: the gradient of one index would be as large as all tokens.
        for t, (query, *values) in enumerate(zip(*(x.unbind(-2) for x in parts), strict=True), first):
            if t >= end:
                break
            state = step(state, *values)
            if t in wanted:
                found.append(torch.einsum("bhd,bhde->bhe", query, state))
        return state, *found

    differentiable = any(x.requires_grad for x in (q, *streams))
    for number, parts in enumerate(zip(*(x.split(SEGMENT, -2) for x in (q, *streams)), strict=True)):
        first = number * SEGMENT
        if first >= end:
            break
        if differentiable:
            state, *found = checkpoint(segment, state, first, *parts, use_reentrant=False, preserve_rng_state=False)
        else:
            state, *found = segment(state, first, *parts)
        outs.update(zip(sorted(t for t in wanted if first <= t < first + SEGMENT), found, strict=True))
    if not outs:  # a sum over nothing, so that an empty output still leads back to its inputs
        nothing: Tensor = sum((x[..., :0, :].sum() for x in (q, *streams)), state.sum())
        return nothing * state.new_zeros(*state.shape[:2], 0, state.shape[3])
    return torch.stack([outs[t] for t in rows.tolist()], 2)
