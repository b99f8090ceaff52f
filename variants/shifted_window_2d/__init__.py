"""Shifted windows (Swin) over an image: square windows, in half of the heads shifted by half a side along both axes."""

from itertools import pairwise

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
    grid_width: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """Dense softmax over the pixels of each query's window.

    Raises `ValueError` for a causal mask or tokens != kv_tokens, which the method does not have.
    """
    if causal or q.shape[2] != k.shape[2]:
        raise ValueError(ENCODERS_ONLY.reason if causal else SELF_ATTENTION.reason)
    head = torch.arange(q.shape[1], device=q.device)[:, None]
    shift = torch.where(2 * head >= q.shape[1], window // 2, 0)
    pixel = torch.arange(k.shape[2], device=k.device)
    line, column = ((place - shift) // window for place in (pixel // grid_width, pixel % grid_width))
    together = line[:, rows, None] == line[:, None]
    together &= column[:, rows, None] == column[:, None]
    scores = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) / q.shape[-1] ** 0.5
    return torch.einsum("bhij,bhje->bhie", scores.masked_fill(~together, -torch.inf).softmax(-1), v)


def cuts(size: int, window: int, shift: int) -> list[range]:
    """An axis cut into windows: what lies before the shift, whole ones, and the rest."""
    first = shift % window
    edges = sorted({0, *range(first, size, window), size})
    return [range(low, high) for low, high in pairwise(edges)]


def windows(tokens: int, window: int, shift: int, grid_width: int) -> list[list[range]]:
    """The tokens of each window, line by line; the last line may be cut off."""
    height = -(-tokens // grid_width)
    found = []
    for lines in cuts(height, window, shift):
        for columns in cuts(grid_width, window, shift):
            starts = (line * grid_width for line in lines)
            held = [range(start + columns.start, min(start + columns.stop, tokens)) for start in starts]
            found.append([pixels for pixels in held if pixels])
    return [one for one in found if one]


def visible_pairs(problem: Problem, *, window: int, grid_width: int) -> int:
    """The squares of the windows' sizes; the mean over the heads, rounded down."""
    plain = unshifted_heads(problem.heads)
    pairs = 0
    for shift, heads in ((0, plain), (window // 2, problem.heads - plain)):
        held = windows(problem.tokens, window, shift, grid_width) if heads else []
        pairs += heads * sum(sum(map(len, one)) ** 2 for one in held)
    return pairs // problem.heads


DEFINITION = Definition(
    name="shifted_window_2d",
    title="Shifted windows (Swin, 2-D)",
    formula=(
        "token i is the pixel (y, x) = (⌊i/G⌋, i mod G);  softmax over the pixels of equal ⌊(y − s)/W⌋ and "
        "⌊(x − s)/W⌋;  s = 0 in the first ⌈H/2⌉ heads, ⌊W/2⌋ in the others"
    ),
    source=(
        "arXiv:2103.14030, section 3.2: a layer without and one with the shift by turns, here halves of the heads of "
        "one layer; the cyclic shift with its mask is windows cut off at all sides"
    ),
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="shifted_window_2d/tiled",
    parameters=(
        Parameter("window", 7, 1, 1 << 12, "side of a window"),
        Parameter("grid_width", 64, 1, 1 << 20, "pixels of a line of the image; the last line may be shorter"),
    ),
)
