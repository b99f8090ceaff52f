"""Attention dropout: each weight is struck out with a fixed probability, the others scaled up."""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float64, Int32, Int64
from torch import Tensor

from variants.definition import Definition, Parameter
from variants.full import visible_pairs as pairs_of
from variants.problem import Problem

GOLDEN: Final = -0x61C8864680B583EB  # 2^64 over the golden ratio, odd, as a signed number: the step of SplitMix64
FIRST, SECOND = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # the multipliers of SplitMix64
PAIR_FIRST, PAIR_SECOND = 0x7FEB352D, 0x846CA68B - 2**32  # 32-bit multipliers of low bias (C. Wellons, hash-prospector)


def mixed(state: Int64[Tensor, "*axes"]) -> Int64[Tensor, "*axes"]:
    """SplitMix64's first output from each state, modulo 2^64."""
    x = state + GOLDEN
    x = (x ^ (x >> 30 & 2**34 - 1)) * FIRST
    x = (x ^ (x >> 27 & 2**37 - 1)) * SECOND
    return x ^ (x >> 31 & 2**33 - 1)


@dataclass(frozen=True, slots=True)
class Draws:
    """A number of 32 bits for each query and for each key, from which the draw of a pair follows by itself.

    So that any rectangle of the mask can be drawn where and when it is needed, alike every time.
    """

    queries: Int32[Tensor, "batch heads tokens"]
    keys: Int32[Tensor, " kv_tokens"]
    threshold: int

    def kept(self, at: tuple[int | slice, ...], keys: slice = slice(None)) -> Bool[Tensor, "*rows keys"]:
        """Whether the weights of the queries `at` (item, head, rows) for the keys are kept."""
        x = self.queries[at].unsqueeze(-1) ^ self.keys[keys]
        shifted = x >> 16
        x ^= shifted.bitwise_and_(2**16 - 1)
        x *= PAIR_FIRST
        torch.bitwise_right_shift(x, 15, out=shifted)
        x ^= shifted.bitwise_and_(2**17 - 1)
        x *= PAIR_SECOND
        return x >= self.threshold


def draws(
    batch: int, heads: int, tokens: int, kv_tokens: int, *, dropped_percent: int, seed: int, device: torch.device | str
) -> Draws:
    """The draws of a problem: they depend on the item, the head and the positions, not on the lengths.

    A query's position is counted from the last key back.
    """
    item, head, key = (torch.arange(count, device=device) for count in (batch, heads, kv_tokens))
    position = torch.arange(kv_tokens - tokens, kv_tokens, device=device)
    start = mixed(torch.tensor(2 * seed, device=device))
    queries = mixed(mixed(mixed(start + item)[:, None] + head)[:, :, None] + position)
    last = mixed(mixed(torch.tensor(2 * seed + 1, device=device)) + key)
    return Draws(_low(queries), _low(last), dropped_percent * 2**32 // 100 - 2**31)


def _low(x: Tensor) -> Tensor:
    """The low 32 bits, as signed numbers."""
    return ((x & 2**32 - 1) - 2**31).to(torch.int32) ^ -(2**31)


def draws_of(problem: Problem, dropped_percent: int, seed: int) -> Draws:
    """The draws of a problem, on its device."""
    shape = problem.batch, problem.heads, problem.tokens, problem.kv_tokens
    return draws(*shape, dropped_percent=dropped_percent, seed=seed, device=problem.device)


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
    dropped_percent: int,
    seed: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """Dense softmax, its weights struck out by the draws; a row that sees no key is zero."""
    batch, heads, tokens, keys = *q.shape[:3], k.shape[2]
    drawn = draws(batch, heads, tokens, keys, dropped_percent=dropped_percent, seed=seed, device=q.device)
    kept = Draws(drawn.queries[:, :, rows], drawn.keys, drawn.threshold).kept((slice(None),))
    scores = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) / q.shape[-1] ** 0.5
    place = torch.arange(keys, device=k.device)
    seen = place[None, :] <= (rows + keys - tokens)[:, None] if causal else torch.ones_like(rows)[:, None] > 0 * place
    lowest = torch.finfo(scores.dtype).min
    top = torch.where(seen, scores, lowest).amax(-1, keepdim=True) if keys else scores
    weights = torch.where(seen, scores - top, -torch.inf).exp()
    total = weights.sum(-1, keepdim=True)
    shares = weights / torch.where(total > 0, total, 1.0)
    return torch.einsum("bhij,bhje->bhie", shares * kept * (100 / (100 - dropped_percent)), v)


def visible_pairs(problem: Problem, *, dropped_percent: int, seed: int) -> int:
    """All pairs: a weight that is struck out has been in the sum of its row."""
    return pairs_of(problem)


DEFINITION = Definition(
    name="dropout",
    title="Attention with dropout",
    formula=(
        "o_i = Σ_j m_ij P_ij v_j/(1 − p),  P = softmax of q_i·k_j/√d, m_ij Bernoulli of 1 − p, "
        "drawn by a hash of (seed, item, head, i, j);  causal: j ≤ i"
    ),
    source="arXiv:1706.03762, section 5.4, on the attention weights as its authors' code has it; arXiv:1207.0580",
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="dropout/chunked",
    parameters=(
        Parameter("dropped_percent", 10, 0, 99, "p: how many of a hundred weights are struck out"),
        Parameter("seed", 0, 0, 1 << 30, "of the draws"),
    ),
    normalised=False,
)
