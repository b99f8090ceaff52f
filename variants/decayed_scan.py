"""Scans whose state fades by a factor for each token, chunk by chunk and token by token, plain and normalised.

Rows are (batch * heads, tokens, dim).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional

from variants.powers import exp_
from variants.scan import Gradients, split_chunks


def running_states(
    state: Float[Tensor, "rows key_dim value_dim"],
    steps: Float[Tensor, "rows chunks key_dim value_dim"],
    kept: Float[Tensor, "#rows #chunks #key_dim 1"],
    backwards: bool = False,
) -> tuple[Float[Tensor, "rows chunks key_dim value_dim"], Float[Tensor, "rows key_dim value_dim"]]:
    """The state before each chunk and that after the last: S ← kept S + step.

    `backwards` from the last chunk on: the state after each, and that before the first.
    """
    states = [state]
    pairs = list(zip(kept.expand(-1, steps.shape[1], -1, -1).unbind(1), steps.unbind(1), strict=True))
    for factor, step in reversed(pairs) if backwards else pairs:
        states.append(torch.addcmul(step, factor, states[-1]))
    # Dense, so that a product copies nothing.
    return torch.stack(states[-2::-1] if backwards else states[:-1], 1), states[-1]


class Tiles(NamedTuple):
    """What the decay leaves: of key j at query i, of the state at i, of key j and of the state at the chunk's end."""

    inner: Float[Tensor, "rows chunks chunk chunk"]
    reach: Float[Tensor, "rows chunks chunk 1"]
    rest: Float[Tensor, "rows chunks chunk 1"]
    whole: Float[Tensor, "rows chunks 1 1"]


def decay_tiles(log_decay: Float64[Tensor, "rows chunks chunk"], wide: torch.dtype) -> Tiles:
    """Sums of log decays over the segments of each chunk.

    Sums and their differences are in float64: in float32 the difference of two long sums has
    lost the digits of a short segment.
    """
    total = log_decay.cumsum(-1)
    inner = exp_((total.unsqueeze(-1) - total.unsqueeze(-2)).to(wide)).tril_()
    end = total[..., -1:]
    reach, rest, whole = (x.exp().to(wide).unsqueeze(-1) for x in (total, end - total, end))
    return Tiles(inner, reach, rest, whole)


def decayed_chunks(state: Tensor, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> tuple[Tensor, Tensor]:
    """o_i = Σ_{j≤i} D_ij (q_i·k_j) v_j: within a chunk by a masked product, between chunks by the state."""
    q, k, v = (split_chunks(x) for x in (q, k, v))
    before, after = running_states(state, (k * tiles.rest).mT @ v, tiles.whole)
    tile = ((q @ k.mT).mul_(tiles.inner) @ v).addcmul_(tiles.reach, q @ before)
    return tile.flatten(1, 2), after


class _Chunks(NamedTuple):
    """A group of chunks: keys as the state keeps them, the states between the chunks, the weights within each."""

    q: Tensor
    k: Tensor
    v: Tensor
    kept: Tensor
    before: Tensor
    weights: Tensor


def _run_again(state: Tensor, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> _Chunks:
    # Dense once, not once for each product.
    q, k, v = (split_chunks(x.contiguous()) for x in (q, k, v))
    kept = k * tiles.rest
    before, _ = running_states(state, kept.mT @ v, tiles.whole)
    return _Chunks(q, k, v, kept, before, (q @ k.mT).mul_(tiles.inner))


def _gradients(chunks: _Chunks, grad: Tensor, after: Tensor, tiles: Tiles) -> Gradients:
    q, k, v, kept, before, weights = chunks
    read = grad * tiles.reach
    behind, first = running_states(after, q.mT @ read, tiles.whole, backwards=True)
    dv = (weights.mT @ grad).add_(kept @ behind)
    inner = (grad @ v.mT).mul_(tiles.inner)
    dq = (inner @ k).add_(read @ before.mT)
    dk = (inner.mT @ q).addcmul_(tiles.rest, v @ behind.mT)
    return dq.flatten(1, 2), dk.flatten(1, 2), dv.flatten(1, 2), first


def decayed_gradients(
    slopes: tuple[Tensor, Tensor], state: Tensor, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles
) -> Gradients:
    """The adjoint of `decayed_chunks`: ten products where the graph of its operations has twelve, and fewer copies."""
    grad = split_chunks(slopes[0].contiguous())
    return _gradients(_run_again(state, q, k, v, tiles), grad, slopes[1], tiles)


def normalised_gradients(
    slopes: tuple[Tensor, Tensor], state: Tensor, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles
) -> Gradients:
    """The adjoint of `decayed_chunks` of features and values with ones, then `normalised`; that of v without ones."""
    chunks = _run_again(state, q, k, with_ones(v), tiles)
    sums = (chunks.weights @ chunks.v).addcmul_(tiles.reach, chunks.q @ chunks.before)
    total = sums[..., -1:]
    above = split_chunks(slopes[0].contiguous()) / torch.where(total > 0, total, 1.0)
    below = (above * sums[..., :-1]).sum(-1, keepdim=True).div_(total).neg_()
    grad = torch.cat((above, torch.where(total > 0, below, 0.0)), -1)
    dq, dk, dv, before = _gradients(chunks, grad, slopes[1], tiles)
    return dq, dk, dv[..., :-1], before


def decayed_tokens(state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """S ← e^a S + k vᵀ, o = qᵀS: token by token; `log_decay` is (rows, tokens, 1), or one for each key channel."""
    decay = log_decay.exp().to(state.dtype).unsqueeze(3)
    queries, keys, values = q.unsqueeze(2).unbind(1), k.unsqueeze(3).unbind(1), v.unsqueeze(2).unbind(1)
    outs = []
    for query, key, value, kept in zip(queries, keys, values, decay.unbind(1), strict=True):
        state = torch.addcmul(state * kept, key, value)
        outs.append(query @ state)
    return torch.cat(outs, 1), state


def with_ones(v: Float[Tensor, "rows tokens dim"]) -> Float[Tensor, "rows tokens dim+1"]:
    """Values and a column of ones, whose sums are the normaliser."""
    return functional.pad(v, (0, 1), value=1.0)


def normalised(sums: Float[Tensor, "rows tokens dim+1"]) -> Float[Tensor, "rows tokens dim"]:
    """Weighted values over weights; zero where there is no weight."""
    total = sums[..., -1:]
    return sums[..., :-1] / torch.where(total > 0, total, 1.0)
