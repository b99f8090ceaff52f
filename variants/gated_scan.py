"""Products of queries and keys whose channels each decay at a rate of their own."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from variants.powers import exp_

SUB_CHUNK = 16


def gated_products(
    queries: Sequence[tuple[Tensor, Tensor]], keys: Sequence[Tensor], at_key: Float[Tensor, "*axes tokens dim"]
) -> list[list[Float[Tensor, "*axes tokens tokens"]]]:
    """Σ_d q_id k_jd e^{at_query_id − at_key_jd} for j up to the end of i's sub-chunk, 0 beyond.

    For each pair (q, at_query) of `queries` and each k of `keys`; all are (*axes, tokens, dim), and
    both exponents are running sums of log decays. Each sub-chunk of queries measures them from its
    own middle: towards earlier sub-chunks no exponent is then more than that of half a sub-chunk, and
    no factor overflows float32 while a channel keeps more than e^{−10} of itself at a step.
    """
    tokens = at_key.shape[-2]
    grid: list[list[list[Tensor]]] = [[[] for _ in keys] for _ in queries]
    for start in range(0, tokens, SUB_CHUNK):
        stop = min(start + SUB_CHUNK, tokens)
        middle = at_key[..., (start + stop) // 2, None, :]
        near = [q[..., start:stop, :] * exp_(at[..., start:stop, :] - middle) for q, at in queries]
        factor = exp_(middle - at_key[..., :stop, :])
        far = [k[..., :stop, :] * factor for k in keys]
        block = torch.cat(near, -2) @ torch.cat(far, -2).mT
        for row, parts in zip(grid, block.split(stop - start, -2), strict=True):
            for cell, part in zip(row, parts.split(stop, -1), strict=True):
                cell.append(functional.pad(part, (0, tokens - stop)))
    return [[torch.cat(cell, -2) for cell in row] for row in grid]


def gated_gradients(
    slopes: Sequence[Sequence[Float[Tensor, "*axes tokens tokens"]]],
    queries: Sequence[tuple[Tensor, Tensor]],
    keys: Sequence[Tensor],
    at_key: Float[Tensor, "*axes tokens dim"],
) -> tuple[list[Float[Tensor, "*axes tokens dim"]], list[Float[Tensor, "*axes tokens dim"]]]:
    """The adjoint of `gated_products`: gradients of queries and keys. No slope reaches beyond i's sub-chunk."""
    tokens = at_key.shape[-2]
    of_queries: list[list[Tensor]] = [[] for _ in queries]
    of_keys = [torch.zeros_like(k) for k in keys]
    for start in range(0, tokens, SUB_CHUNK):
        stop = min(start + SUB_CHUNK, tokens)
        middle = at_key[..., (start + stop) // 2, None, :]
        growth = [exp_(at[..., start:stop, :] - middle) for _, at in queries]
        factor = exp_(middle - at_key[..., :stop, :])
        near = torch.cat([q[..., start:stop, :] * grown for (q, _), grown in zip(queries, growth, strict=True)], -2)
        far = torch.cat([k[..., :stop, :] * factor for k in keys], -2)
        block = torch.cat([torch.cat([x[..., start:stop, :stop] for x in row], -1) for row in slopes], -2)
        for parts, part, grown in zip(of_queries, (block @ far).split(stop - start, -2), growth, strict=True):
            parts.append(part * grown)
        for whole, part in zip(of_keys, (block.mT @ near).split(stop, -2), strict=True):
            whole[..., :stop, :].addcmul_(part, factor)
    return [torch.cat(parts, -2) for parts in of_queries], of_keys


def running_sums(log_decay: Float[Tensor, "*axes tokens dim"]) -> Float[Tensor, "*axes tokens dim"]:
    """Inclusive sums over the tokens of each chunk."""
    return log_decay.cumsum(-2)
