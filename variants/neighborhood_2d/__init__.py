"""Neighbourhood attention over an image: a square window that shifts inwards at the edges."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from variants.definition import Definition, Parameter
from variants.problem import Problem
from variants.requirement import Limit

SELF_ATTENTION = Limit(lambda problem: problem.tokens == problem.kv_tokens, "needs tokens = kv_tokens")


def oracle(
    q: Float64[Tensor, "batch heads tokens head_dim"],
    k: Float64[Tensor, "batch heads kv_tokens head_dim"],
    v: Float64[Tensor, "batch heads kv_tokens value_dim"],
    rows: Int64[Tensor, " rows"],
    *,
    causal: bool,
    window: int,
    dilation: int,
    grid_width: int,
) -> Float64[Tensor, "batch heads rows value_dim"]:
    """Dense softmax over the pixels that lie in the neighbourhood of each query along both axes.

    Raises `ValueError` for tokens != kv_tokens, which the method does not have.
    """
    tokens = k.shape[2]
    if q.shape[2] != tokens:
        raise ValueError(SELF_ATTENTION.reason)
    key = torch.arange(tokens, device=k.device)[None, :]
    near = torch.ones(1, 1, dtype=torch.bool, device=k.device)
    height = -(-tokens // grid_width)
    for size, own, other in (
        (height, rows[:, None] // grid_width, key // grid_width),
        (grid_width, rows[:, None] % grid_width, key % grid_width),
    ):
        place, step = own // dilation, other // dilation  # within the class of the axis
        if causal:
            inside = (step <= place) & (step > place - window)
        else:
            count = (size - 1 - own % dilation) // dilation + 1
            first = torch.minimum(place - window // 2, count - window).clamp(min=0)
            inside = (step >= first) & (step < first + window)
        near = near & inside & (other % dilation == own % dilation)
    scores = torch.einsum("bhid,bhjd->bhij", q[:, :, rows], k) / q.shape[-1] ** 0.5
    return torch.einsum("bhij,bhje->bhie", scores.masked_fill(~near, -torch.inf).softmax(-1), v)


def neighbours(size: int, window: int, dilation: int, causal: bool, place: int) -> range:
    """Which places of an axis of `size` a place sees."""
    residue = place % dilation
    own, count = place // dilation, (size - 1 - residue) // dilation + 1
    first = max(0, own - window + 1 if causal else min(own - window // 2, count - window))
    stop = own + 1 if causal else min(first + window, count)
    return range(residue + first * dilation, residue + stop * dilation, dilation)


def visible_pairs(problem: Problem, *, window: int, dilation: int, grid_width: int) -> int:
    """The product of the neighbours along both axes; those beyond the end of a last, shorter line left out."""
    whole, rest = divmod(problem.tokens, grid_width)
    height = whole + (rest > 0)

    def along(size: int, place: int) -> range:
        return neighbours(size, window, dilation, problem.causal, place)

    columns = [along(grid_width, place) for place in range(min(grid_width, problem.tokens))]
    wide = [len(seen) for seen in columns]
    cut = [sum(place < rest for place in seen) for seen in columns]
    pairs = 0
    for line in range(height):
        seen = along(height, line)
        short = rest > 0 and whole in seen
        here = grid_width if line < whole else rest
        pairs += (len(seen) - short) * sum(wide[:here]) + short * sum(cut[:here])
    return pairs


DEFINITION = Definition(
    name="neighborhood_2d",
    title="Neighbourhood attention (2-D)",
    formula=(
        "token i is the pixel (⌊i/G⌋, i mod G);  softmax over the pixels that lie, along both axes, in the "
        "neighbourhood of the 1-D form: s ≤ p_j < s + W among the n places ≡ (mod δ), "
        "s = max(0, min(p_i − ⌊W/2⌋, n − W));  "
        "causal: p_i − W < p_j ≤ p_i;  pixels beyond the last token do not exist"
    ),
    source=(
        "arXiv:2204.07143, section 3.1; dilated: arXiv:2209.15001, section 3.1; "
        "causal: arXiv:2403.04690; edges and causal form as in NATTEN"
    ),
    exact=False,
    oracle=oracle,
    visible_pairs=visible_pairs,
    default="neighborhood_2d/tiled",
    parameters=(
        Parameter("window", 7, 1, 1 << 12, "side of a neighbourhood; of an even one, one more before than after"),
        Parameter("dilation", 1, 1, 1 << 12, "distance of neighbouring pixels of a neighbourhood"),
        Parameter("grid_width", 64, 1, 1 << 20, "pixels of a line of the image; the last line may be shorter"),
    ),
)
