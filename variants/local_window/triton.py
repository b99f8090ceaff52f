"""One fused kernel in Triton that visits only the tiles of keys within reach; backward by two more."""

from types import ModuleType
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.local_window import DEFINITION, reach
from variants.powers import LOG2_E
from variants.problem import Problem
from variants.tile_search import fastest, telling
from variants.triton_launch import (
    DTYPES,
    REQUIRES,
    Tile,
    device_code,
    dot_mode,
    fitting,
    on_device,
    padded,
    row_products,
    softmax_tiles,
    tile_count,
)
from variants.variant import Attention, variant


class Plan(NamedTuple):
    """How far a query sees, and the tiles of the three kernels."""

    before: int
    after: int
    forward: Tile
    queries: Tile
    keys: Tile


class _Window(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, kernels: ModuleType, plan: Plan) -> Tensor:
        batch, heads, tokens, width = q.shape
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        training = any(ctx.needs_input_grad)  # type: ignore[attr-defined]  # set by apply
        lse = torch.empty(q.shape[:3] if training else (1,), dtype=torch.float32, device=q.device)
        tile = plan.forward
        with on_device(q):
            kernels.forward[(batch * heads * tile_count(tokens, tile.own),)](
                *(q, k, v, out, lse, *_sizes(q, k, heads), plan.before, plan.after, width**-0.5 * LOG2_E),
                *(*q.stride(), *k.stride(), *v.stride(), *out.stride()),
                **_constants(kernels, q, tile.own, tile.visited),
                KEEP=training,
                **tile.options,
            )
        if training:
            ctx.save_for_backward(q, k, v, out, lse)
            ctx.plan = kernels, plan  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        kernels, plan = ctx.plan  # type: ignore[attr-defined]  # set in forward
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        batch, heads, tokens, width = q.shape
        kv_heads, kv_tokens = k.shape[1:3]
        scales = (plan.before, plan.after, width**-0.5 * LOG2_E, width**-0.5)
        given = [step for x in (q, k, v, grad) for step in x.stride()]
        with on_device(q):
            delta = row_products(kernels, out, grad)
            tile = plan.queries
            kernels.query_gradient[(batch * heads * tile_count(tokens, tile.own),)](
                *(q, k, v, grad, lse, delta, dq, *_sizes(q, k, heads), *scales, *given, *dq.stride()),
                **_constants(kernels, q, tile.own, tile.visited),
                **tile.options,
            )
            tile = plan.keys
            kernels.key_gradients[(batch * kv_heads * tile_count(kv_tokens, tile.own),)](
                *(q, k, v, grad, lse, delta, dk, dv, *_sizes(q, k, kv_heads), *scales),
                *(*given, *dk.stride(), *dv.stride()),
                **_constants(kernels, q, tile.visited, tile.own),
                **tile.options,
            )
        return dq, dk, dv, None, None


def _sizes(q: Tensor, k: Tensor, heads: int) -> tuple[int, ...]:
    """Tokens, keys, heads of the grid, group and offset, as all three kernels take them."""
    return q.shape[2], k.shape[2], heads, q.shape[1] // k.shape[1], k.shape[2] - q.shape[2]


def _constants(kernels: ModuleType, q: Tensor, rows: int, keys: int) -> dict[str, int | str]:
    mode = dot_mode(kernels, q.dtype)
    return {"WIDTH": q.shape[3], "BLOCK": padded(q.shape[3]), "ROWS": rows, "KEYS": keys, "DOT": mode}


def attend(
    q: Float[Tensor, "batch heads tokens head_dim"],
    k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    kernels: ModuleType,
    plan: Plan,
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Window attention by the kernels of `variants.kernels_window`."""
    out: Tensor = _Window.apply(q, k, v, kernels, plan)  # type: ignore[no-untyped-call]  # torch types no apply
    return out


def workspace_bytes(problem: Problem, *, window: int) -> int:
    """In training the log-sum-exp and Σ out·gradient of each row, both in float32."""
    return 8 * problem.batch * problem.heads * problem.tokens if problem.mode == "training" else 4


def executed_flops(problem: Problem, *, window: int) -> int:
    """Every pair of the tiles that are visited; the backward pass computes its scores twice."""
    before, after = reach(window, problem.causal)
    rows = 16 if problem.tokens <= 16 else 128
    span = min(problem.kv_tokens, before + after + rows)
    forward = 4 * problem.batch * problem.heads * problem.head_dim * problem.tokens * span
    return round(forward * 4.5) if problem.mode == "training" else forward


@variant(
    "local_window/triton",
    summary="one fused Triton kernel over the tiles within reach",
    devices=("cuda",),
    dtypes=DTYPES,
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=REQUIRES,
    source=f"{DEFINITION.source}; online softmax and backward pass: arXiv:2307.08691, algorithms 1 and 2",
)
def build(problem: Problem, *, window: int) -> Attention:
    """Tiles are tried on the card here, and compiled."""
    kernels = device_code("window")
    choices = {
        "forward": fitting(problem, softmax_tiles(problem, "forward"), owned=1, visited=2),
        "queries": fitting(problem, softmax_tiles(problem, "queries"), owned=2, visited=2),
        "keys": fitting(problem, softmax_tiles(problem, "keys"), owned=2, visited=2),
    }
    names = list(choices) if problem.mode == "training" else ["forward"]
    plan = fastest(
        problem,
        [Plan(*reach(window, problem.causal), *(tiles[0] for tiles in choices.values()))],
        {name: choices[name] for name in names},
        executed_flops(problem, window=window),
        lambda q, k, v, plan: attend(q, k, v, kernels, plan),
    )

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return attend(q, k, v, kernels, plan)

    return telling(run, *(getattr(plan, name) for name in names))
