"""The fused kernel for the full heads, tiles for those with a window."""

from variants.head_parts import by_parts, part_problems, repeated_bytes
from variants.hybrid import count_full
from variants.local_window import tiled
from variants.memory_efficient import sdpa_flash
from variants.problem import Problem
from variants.sdpa import fused_workspace_bytes
from variants.variant import Attention, variant


def workspace_bytes(problem: Problem, *, full_heads: int, window: int) -> int:
    """What the kernel and the tiles need, and the parts' outputs."""
    full = count_full(problem.heads, full_heads)
    if full == problem.heads:
        return fused_workspace_bytes(problem)
    if full == 0:
        return tiled.workspace_bytes(problem, window=window)
    parts = part_problems(problem, full)
    each = fused_workspace_bytes(parts[0]), tiled.workspace_bytes(parts[1], window=window)
    return sum(each) + repeated_bytes(problem, full)


def executed_flops(problem: Problem, *, full_heads: int, window: int) -> int:
    """Every pair of the full heads, causal or not, and of the tiles."""
    full = count_full(problem.heads, full_heads)
    pairs = problem.tokens * problem.kv_tokens
    flops = round(4 * problem.batch * full * problem.head_dim * pairs * (3.5 if problem.mode == "training" else 1))
    if full < problem.heads:
        rest = problem.with_(heads=problem.heads - full, kv_heads=problem.heads - full)
        flops += tiled.executed_flops(rest, window=window)
    return flops


@variant(
    "hybrid/by_heads",
    summary="the fused kernel for some heads, window tiles for the others",
    devices=("cpu", "cuda"),
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=sdpa_flash.ON_CUDA,
)
def build(problem: Problem, *, full_heads: int, window: int) -> Attention:
    """Both parts are built here; where there is only one, it is the whole."""
    full = count_full(problem.heads, full_heads)
    if full == problem.heads:
        return sdpa_flash.build(problem)
    if full == 0:
        return tiled.build(problem, window=window)
    parts = part_problems(problem, full)
    return by_parts(problem, full, [sdpa_flash.build(parts[0]), tiled.build(parts[1], window=window)])
