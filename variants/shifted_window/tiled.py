"""Each window a tile of its own; shifted and unshifted heads one after the other."""

from jaxtyping import Float
from torch import Tensor

from variants.head_parts import by_parts, part_problems, repeated_bytes
from variants.merged_bands import attention, bands_workspace_bytes, in_order, split
from variants.problem import Problem
from variants.shifted_window import ENCODERS_ONLY, SELF_ATTENTION, unshifted_heads, visible_pairs
from variants.tiles import Band
from variants.variant import Attention, variant


def bands_of(tokens: int, window: int, shift: int) -> list[Band]:
    """The windows: what lies before the shift, the whole ones together, and the rest."""
    first = min(shift, tokens)
    whole, rest = divmod(tokens - first, window)
    last = tokens - rest
    bands = [Band(0, first, 1, 0, first, None)] if first else []
    if whole:
        bands.append(Band(first, window, whole, first, window, None))
    if rest:
        bands.append(Band(last, rest, 1, last, rest, None))
    return bands


def parts_of(problem: Problem, window: int) -> list[tuple[Problem, list[Band]]]:
    """The heads that are not shifted and those that are, each with its windows; a single head is not."""
    if problem.heads == 1:
        return [(problem, bands_of(problem.tokens, window, 0))]
    parts = part_problems(problem, unshifted_heads(problem.heads))
    return [(part, bands_of(part.tokens, window, shift)) for part, shift in zip(parts, (0, window // 2), strict=True)]


def workspace_bytes(problem: Problem, *, window: int) -> int:
    """What the windows of half of the heads need, and the halves' outputs."""
    training = problem.mode == "training"
    parts = parts_of(problem, window)
    each = [bands_workspace_bytes(part, bands, split(bands) if training else None) for part, bands in parts]
    if len(parts) == 1:
        return each[0]
    return max(each) + repeated_bytes(problem, parts[0][0].heads)


def executed_flops(problem: Problem, *, window: int) -> int:
    """Just the visible pairs."""
    pairs = visible_pairs(problem, window=window) + 1
    forward = 4 * problem.batch * problem.heads * problem.head_dim * pairs
    return round(forward * 3.5) if problem.mode == "training" else forward


@variant(
    "shifted_window/tiled",
    summary="each window a tile, in half of the heads shifted",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=(ENCODERS_ONLY, SELF_ATTENTION),
)
def build(problem: Problem, *, window: int) -> Attention:
    """The windows are laid out here."""
    training = problem.mode == "training"
    runs = [_over(bands, split(bands) if training else None) for _, bands in parts_of(problem, window)]
    return runs[0] if len(runs) == 1 else by_parts(problem, unshifted_heads(problem.heads), runs)


def _over(forth: list[Band], back: list[Band] | None) -> Attention:
    steps = in_order(forth)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return attention(q, k, v, steps, back)

    return run
