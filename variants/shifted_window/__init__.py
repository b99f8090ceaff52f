"""Shifted windows (Swin) in one dimension: disjoint windows, in half of the heads shifted by half a window."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition, Parameter
from variants.problem import Problem
from variants.requirement import Limit

ENCODERS_ONLY = Limit(lambda problem: not problem.causal, "no causal form: a window is seen as a whole")
SELF_ATTENTION = Limit(lambda problem: problem.tokens == problem.kv_tokens, "needs tokens = kv_tokens")


def unshifted_heads(heads: int) -> int:
    """The first half of the heads, rounded up."""
    return heads - heads // 2


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
    window: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """Dense softmax over the tokens of each query's window.

    Raises `ValueError` for a causal mask or tokens != kv_tokens, which the method does not have.
    """
    if causal or q.shape[2] != k.shape[2]:
        raise ValueError(ENCODERS_ONLY.reason if causal else SELF_ATTENTION.reason)
    head = torch.arange(q.shape[1], device=q.device)[:, None, None]
    shift = torch.where(2 * head >= q.shape[1], window // 2, 0)
    key = torch.arange(k.shape[2], device=k.device)
    together = (rows[:, None] - shift) // window == (key[None, :] - shift) // window
    scores = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) / q.shape[-1] ** 0.5
    return torch.einsum("bhij,bhje->bhie", scores.masked_fill(~together, -torch.inf).softmax(-1), v)


def window_sizes(tokens: int, window: int, shift: int) -> list[int]:
    """Tokens of each window: what lies before the shift, whole windows, and the rest."""
    first = min(shift, tokens)
    whole, rest = divmod(tokens - first, window)
    return [size for size in (first, *[window] * whole, rest) if size]


def visible_pairs(problem: Problem, *, window: int) -> int:
    """The squares of the windows' sizes; the mean over the heads, rounded down."""
    plain = unshifted_heads(problem.heads)
    heads = (0, plain), (window // 2, problem.heads - plain)
    pairs = sum(n * sum(size**2 for size in window_sizes(problem.tokens, window, shift)) for shift, n in heads)
    return pairs // problem.heads


DEFINITION = Definition(
    name="shifted_window",
    title="Shifted windows (Swin, 1-D)",
    formula="softmax over ⌊(i − s)/W⌋ = ⌊(j − s)/W⌋;  s = 0 in the first ⌈H/2⌉ heads, ⌊W/2⌋ in the others",
    source=(
        "arXiv:2103.14030, section 3.2: a layer without and one with the shift by turns, here halves of the heads of "
        "one layer; the cyclic shift with its mask is windows cut off at both ends"
    ),
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="shifted_window/tiled",
    parameters=(Parameter("window", 256, 1, 1 << 20, "tokens of a window"),),
)
