"""Each window a tile of its own, gathered from its lines; shifted and unshifted heads one after the other."""

from collections import defaultdict

import torch
from jaxtyping import Float
from torch import Tensor

from variants.gathered_tiles import Tiles, attention, split
from variants.gathered_tiles import executed_flops as flops_of
from variants.gathered_tiles import workspace_bytes as bytes_of
from variants.head_parts import by_parts, part_problems, repeated_bytes
from variants.problem import Problem
from variants.shifted_window_2d import ENCODERS_ONLY, SELF_ATTENTION, unshifted_heads, windows
from variants.variant import Attention, variant


def tiles_of(problem: Problem, window: int, shift: int, grid_width: int) -> list[Tiles]:
    """The windows, those of one size together; nothing is hidden within them."""
    sizes: dict[int, list[Tensor]] = defaultdict(list)
    for lines in windows(problem.tokens, window, shift, grid_width):
        pixels = torch.cat([torch.arange(line.start, line.stop) for line in lines])
        sizes[len(pixels)].append(pixels)
    stacked = [torch.stack(held).to(problem.device) for held in sizes.values()]
    return [Tiles(pixels, pixels, None) for pixels in stacked]


def parts_of(problem: Problem, window: int, grid_width: int) -> list[tuple[Problem, list[Tiles]]]:
    """The heads that are not shifted and those that are, each with its windows; a single head is not."""
    parts = [problem] if problem.heads == 1 else part_problems(problem, unshifted_heads(problem.heads))
    shifts = (0, window // 2)[: len(parts)]
    return [(part, tiles_of(part, window, shift, grid_width)) for part, shift in zip(parts, shifts, strict=True)]


def workspace_bytes(problem: Problem, *, window: int, grid_width: int) -> int:
    """What the windows of half of the heads need, and the halves' outputs."""
    parts = parts_of(problem.with_(device="cpu"), window, grid_width)
    each = [bytes_of(part, groups, split(groups, part)) for part, groups in parts]
    if len(parts) == 1:
        return each[0]
    return max(each) + min(each) + repeated_bytes(problem, parts[0][0].heads)


def executed_flops(problem: Problem, *, window: int, grid_width: int) -> int:
    """Just the visible pairs."""
    return sum(flops_of(part, groups) for part, groups in parts_of(problem.with_(device="cpu"), window, grid_width))


@variant(
    "shifted_window_2d/tiled",
    summary="each window a tile, gathered; in half of the heads shifted",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=(ENCODERS_ONLY, SELF_ATTENTION),
)
def build(problem: Problem, *, window: int, grid_width: int) -> Attention:
    """The windows are laid out here."""
    runs = [_over(split(groups, part)) for part, groups in parts_of(problem, window, grid_width)]
    return runs[0] if len(runs) == 1 else by_parts(problem, unshifted_heads(problem.heads), runs)


def _over(groups: list[Tiles]) -> Attention:
    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return attention(q, k, v, groups)

    return run
