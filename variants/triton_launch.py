"""What the Triton variants share on the host: requirements, tile sizes that fit the card, and the launch itself."""

import importlib
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from variants.problem import Problem
from variants.requirement import ComputeCapability, Limit, Package

DTYPES: Final = ("float32", "bfloat16", "float16")
REQUIRES: Final = (
    Package("triton", "3.6"),
    ComputeCapability(8),
    Limit(lambda problem: problem.head_dim <= 256, "head_dim ≤ 256"),
    Limit(lambda _: os.environ.get("TRITON_INTERPRET", "0") in ("", "0"), "needs TRITON_INTERPRET to be unset"),
)
ROW_TILE: Final = 64


class Launch(NamedTuple):
    """Warps of a program, and tiles in flight."""

    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        """What the compiler takes."""
        return {"num_warps": self.warps, "num_stages": self.stages}

    def __str__(self) -> str:
        """As a row of results says it."""
        return f"w{self.warps} s{self.stages}"


class Tile(NamedTuple):
    """Rows of the tile that a program owns, rows of those that it visits, warps, and tiles in flight."""

    own: int
    visited: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        """What the compiler takes."""
        return Launch(self.warps, self.stages).options

    def __str__(self) -> str:
        """As a row of results says it."""
        return f"{self.own}×{self.visited} {Launch(self.warps, self.stages)}"


def device_code(name: str) -> ModuleType:
    """The module `variants.kernels_<name>`, compiled for the card."""
    return importlib.import_module(f"variants.kernels_{name}")


def padded(head_dim: int) -> int:
    """The power of two, at least 16, that a tile is wide: the least that a matrix product takes."""
    return max(16, 1 << (head_dim - 1).bit_length())


_SOFTMAX: Final[dict[str, dict[int, list[Tile]]]] = {
    "forward": {
        64: [Tile(128, 64, 4, 3), Tile(128, 128, 8, 3), Tile(64, 64, 4, 3), Tile(64, 64, 4, 2)],
        128: [Tile(128, 64, 8, 3), Tile(128, 128, 8, 2), Tile(64, 64, 4, 3), Tile(128, 32, 8, 2), Tile(64, 32, 4, 2)],
        256: [Tile(128, 32, 8, 2), Tile(64, 64, 8, 2), Tile(64, 32, 8, 2), Tile(32, 32, 4, 2)],
    },
    "queries": {
        64: [Tile(128, 64, 8, 2), Tile(64, 64, 4, 3), Tile(64, 32, 4, 2)],
        128: [Tile(128, 64, 8, 2), Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(32, 32, 4, 2)],
        256: [Tile(64, 32, 8, 2), Tile(32, 16, 4, 2)],
    },
    "keys": {
        64: [Tile(128, 64, 8, 2), Tile(64, 64, 4, 2), Tile(64, 32, 4, 2)],
        128: [Tile(128, 32, 8, 2), Tile(64, 64, 8, 2), Tile(64, 32, 4, 2), Tile(64, 16, 4, 2)],
        256: [Tile(64, 16, 8, 2), Tile(32, 16, 4, 2)],
    },
}
"""By kernel and padded head size, likely best first.

Compiled for sm_90 in bfloat16 the first leave a thread its registers at 128, but for the low-rank kernel over keys,
which spills about a hundred bytes with any of them; for sm_80 most spill as little.
"""

_FLOAT32: Final = {64: [Tile(32, 32, 4, 2), Tile(16, 16, 4, 2)], 128: [Tile(16, 16, 4, 2)], 256: [Tile(16, 16, 4, 2)]}
"""Full float32 products are unrolled into single multiplications: larger tiles compile for half a minute, and spill."""


def softmax_tiles(problem: Problem, kernel: str) -> list[Tile]:
    """The tiles of the kernels `forward`, `queries` and `keys` of a softmax, best first."""
    if problem.tokens <= 16:  # decoding
        return [Tile(16, 64, 4, 3), Tile(16, 32, 4, 2), Tile(16, 16, 4, 2)]
    if problem.dtype == "float32":
        return _FLOAT32[max(64, padded(problem.head_dim))]
    return _SOFTMAX[kernel][max(64, padded(problem.head_dim))]


def fitting(problem: Problem, choices: Sequence[Tile], owned: int, visited: int) -> list[Tile]:
    """The tiles whose matrices fit the card's shared memory, in their order; `RuntimeError` where none does.

    `owned` and `visited` count the matrices of each kind that are held, the latter once for each stage.
    """
    properties = torch.cuda.get_device_properties(problem.device)
    most = int(properties.shared_memory_per_block_optin)  # type: ignore[attr-defined]  # torch leaves it out of its stubs
    if found := [tile for tile in choices if shared_bytes(problem, tile, owned, visited) <= most]:
        return found
    raise RuntimeError(f"no tile of this kernel fits the {most} bytes of shared memory of {properties.name}")


def shared_bytes(problem: Problem, tile: Tile, owned: int, visited: int) -> int:
    """Shared memory of the tiles that a program holds."""
    row = padded(problem.head_dim) * problem.element_bytes
    lines = 2 * 4 * tile.stages * (tile.own + tile.visited)  # a float32 or two for each row
    return row * (owned * tile.own + visited * tile.stages * tile.visited) + lines


def dot_mode(kernels: ModuleType, dtype: torch.dtype) -> str:
    """How a kernel multiplies: in full float32 for float32, never in the shorter tf32."""
    if kernels.INTERPRETED and dtype is torch.bfloat16:
        return "emulated"
    return "ieee"


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current card, which need not be the tensors'."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def tile_count(length: int, tile: int) -> int:
    """Tiles that cover a length."""
    return -(-length // tile)


def row_products(kernels: ModuleType, out: Tensor, grad: Tensor, norms: Tensor | None = None) -> Tensor:
    """Σ_d out · grad of each row in float32, (batch, heads, tokens); with `norms` minus that, over the row's norm."""
    batch, heads, tokens, width = out.shape
    sums = torch.empty(batch, heads, tokens, dtype=torch.float32, device=out.device)
    kernels.row_products[(batch * heads * tile_count(tokens, ROW_TILE),)](
        *(out, grad, sums if norms is None else norms, sums, tokens, heads, *out.stride(), *grad.stride()),
        WIDTH=width,
        BLOCK=padded(width),
        ROWS=ROW_TILE,
        NORMALISED=norms is not None,
    )
    return sums
