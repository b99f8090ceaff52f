"""What the variants that call the package flash-linear-attention share."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, Final

from variants.problem import Problem
from variants.requirement import ComputeCapability, Limit, Package

DTYPES: Final = ("bfloat16", "float16")
"""Its kernels multiply float32 in tf32, and some refuse it."""

REQUIRES: Final = (
    Package("fla-core", "0.4"),  # what flash-linear-attention takes its kernels from
    ComputeCapability(8),
    Limit(lambda problem: problem.causal, "causal only"),
    Limit(lambda problem: problem.tokens == problem.kv_tokens, "needs tokens = kv_tokens"),
    Limit(lambda problem: problem.group == 1, "no grouped queries (kv_heads = heads only)"),
    Limit(lambda problem: problem.head_dim <= 256, "head_dim ≤ 256"),
    # It takes fewer tokens than heads for axes in the wrong order, and warns or raises.
    Limit(lambda problem: problem.tokens >= max(1, problem.heads), "needs at least as many tokens as heads"),
)

CHUNK: Final = 64

RETUNE_FROM: Final = 8
"""Tiles are chosen anew for a problem so many times as large as the one that they were chosen for."""

_CHOSEN: Final = {"rows": 0}
"""Of what problem the package's tiles are, which it keeps for the process."""


def kernel(problem: Problem, module: str, name: str) -> Callable[..., Any]:
    """A function of the package, which is imported here, with tiles that were chosen for about such a problem.

    Left to itself it keeps what it chose for the first problem of a head size, however short, and on the disk too.
    """
    os.environ["FLA_CACHE_RESULTS"] = "0"
    function: Callable[..., Any] = getattr(importlib.import_module(f"fla.ops.{module}"), name)
    rows = problem.batch * problem.heads * problem.tokens
    if rows >= RETUNE_FROM * _CHOSEN["rows"]:
        _forget_tiles()
        _CHOSEN["rows"] = rows
    return function


def _forget_tiles() -> None:
    for name, module in list(sys.modules.items()):
        if not name.startswith("fla.ops."):
            continue
        for found in vars(module).values():
            layer = found
            while layer is not None:  # an autotuner lies below what sets its constants
                if isinstance(cache := getattr(layer, "cache", None), dict) and hasattr(layer, "configs"):
                    cache.clear()
                layer = getattr(layer, "fn", None)


def chunk_bytes(problem: Problem) -> int:
    """The states before its chunks, the products within them and two rows a token; in training all of them twice."""
    rows = problem.batch * problem.heads
    states = rows * (problem.tokens // CHUNK + 1) * problem.head_dim**2 * 4
    own = rows * problem.tokens * (2 * CHUNK + 3 * problem.head_dim) * 4
    return 2 * (states + own) if problem.mode == "training" else states + own
