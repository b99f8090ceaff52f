"""Small rectangles of queries over the rectangle of keys that they see together; equal masks share a batch."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from variants.dtypes import TORCH_DTYPES
from variants.gathered_tiles import Tiles, attention, split
from variants.gathered_tiles import executed_flops as flops_of
from variants.gathered_tiles import workspace_bytes as bytes_of
from variants.neighborhood_2d import SELF_ATTENTION, neighbours
from variants.problem import Problem
from variants.tiles import accumulator, hidden_bias
from variants.variant import Attention, variant

SIDE = 8  # of a tile of queries: larger ones waste fewer copies and more hidden pairs


@dataclass(frozen=True, slots=True)
class Stretch:
    """Some places of an axis, the places that they see together, and of which of those each sees which."""

    own: tuple[int, ...]
    seen: tuple[int, ...]
    mask: tuple[tuple[bool, ...], ...]


def stretches(size: int, window: int, dilation: int, causal: bool) -> Iterator[Stretch]:
    """An axis cut into stretches of at most `SIDE` places of one residue class."""
    for residue in range(min(dilation, size)):
        places = range(residue, size, dilation)
        for index in range(0, len(places), SIDE):
            own = places[index : index + SIDE]
            sees = [neighbours(size, window, dilation, causal, place) for place in own]
            together = range(sees[0].start, sees[-1].stop, dilation)
            mask = tuple(tuple(place in one for place in together) for one in sees)
            yield Stretch(tuple(own), tuple(together), mask)


def tiles_of(problem: Problem, window: int, dilation: int, grid_width: int) -> list[Tiles]:
    """Every pixel in one tile; tiles of one mask together."""
    height = -(-problem.tokens // grid_width)
    width = min(grid_width, problem.tokens)  # of a single, shorter line nothing else is looked at
    down = list(stretches(height, window, dilation, problem.causal))
    across = [one for one in stretches(grid_width, window, dilation, problem.causal) if one.own[0] < width]
    groups: dict[tuple[object, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
    shapes: dict[tuple[object, ...], Tensor] = {}
    for lines in down:
        for columns in across:
            rows, keys = (_pixels(a, b, grid_width) for a, b in ((lines.own, columns.own), (lines.seen, columns.seen)))
            real, there = rows < problem.tokens, keys < problem.tokens
            cut = not bool(there.all() and real.all())
            key = lines.mask, columns.mask, (tuple(real.tolist()), tuple(there.tolist())) if cut else None
            if not bool(real.any()):
                continue
            groups[key].append((rows[real], keys[there]))
            if key not in shapes:
                both = torch.kron(torch.tensor(lines.mask).int(), torch.tensor(columns.mask).int()).bool()
                shapes[key] = both[real][:, there]
    return [_group(problem, groups[key], shapes[key]) for key in groups]


def _pixels(lines: tuple[int, ...], columns: tuple[int, ...], grid_width: int) -> Tensor:
    return (torch.tensor(lines)[:, None] * grid_width + torch.tensor(columns)).flatten()


def _group(problem: Problem, tiles: list[tuple[Tensor, Tensor]], mask: Tensor) -> Tiles:
    rows, keys = (torch.stack(each).to(problem.device) for each in zip(*tiles, strict=True))
    return Tiles(rows, keys, hidden_bias(~mask.to(problem.device), accumulator(TORCH_DTYPES[problem.dtype])))


def workspace_bytes(problem: Problem, *, window: int, dilation: int, grid_width: int) -> int:
    """What the gathered tiles need."""
    groups = tiles_of(problem.with_(device="cpu"), window, dilation, grid_width)
    return bytes_of(problem, groups, split(groups, problem))


def executed_flops(problem: Problem, *, window: int, dilation: int, grid_width: int) -> int:
    """Every pair of every tile."""
    return flops_of(problem, tiles_of(problem.with_(device="cpu"), window, dilation, grid_width))


@variant(
    "neighborhood_2d/tiled",
    summary=f"squares of {SIDE}² queries, each over the pixels that it sees, gathered",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=(SELF_ATTENTION,),
)
def build(problem: Problem, *, window: int, dilation: int, grid_width: int) -> Attention:
    """The tiles, their indices and their masks are laid out here."""
    groups = split(tiles_of(problem, window, dilation, grid_width), problem)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return attention(q, k, v, groups)

    return run
