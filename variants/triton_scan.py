"""Linear attention by chunks in Triton, from q, k and v to gradients; what is summed is told by a plan."""

from types import ModuleType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.powers import LOG2_E
from variants.problem import Problem
from variants.tile_search import fastest, telling
from variants.triton_launch import (
    Launch,
    device_code,
    dot_mode,
    on_device,
    padded,
    row_products,
    tile_count,
)
from variants.variant import Attention

CHUNK = 64
COLUMNS = 64
PROGRAMS = 264
"""Twice the multiprocessors of a large card: a sum over all keys is split until there are as many programs."""


KERNELS = ("states", "queries", "keys")


class Plan(NamedTuple):
    """What is summed: `rates` are log2 of each head's decay, None without; `features` also divides by the sums.

    All kernels take `chunk` rows. Tiles of the states have `state_columns` rows and columns: each is a program that
    goes through the chunks one after the other, so that few heads want many. Other tiles have `columns`.
    """

    causal: bool
    features: bool
    rates: Float32[Tensor, " heads"] | None
    scale: float
    chunk: int
    columns: int
    state_columns: int
    states: Launch
    queries: Launch
    keys: Launch


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, kernels: ModuleType, plan: Plan) -> Tensor:
        call = _Call(kernels, plan, q, k)
        # Queries before the first key belong to no chunk.
        make = torch.zeros if call.blind else torch.empty
        out = make(q.shape, dtype=q.dtype, device=q.device)
        training = any(ctx.needs_input_grad)  # type: ignore[attr-defined]  # set by apply
        norms = q.new_ones(q.shape[:3] if plan.features and training else (1,), dtype=torch.float32)
        with on_device(q):
            states, totals = call.states(k, v, norms, norms, reverse=False)
            kernels.outputs[(call.query_programs,)](
                *(q, k, v, states, totals, out, norms, call.rates, *call.query_sizes(states)),
                *(*q.stride(), *k.stride(), *v.stride(), *out.stride()),
                **call.constants(plan.columns),
                KEEP=training,
                **plan.queries.options,
            )
        if training:
            ctx.save_for_backward(q, k, v, out, norms)
            ctx.call = call  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, norms = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        call: _Call = ctx.call  # type: ignore[attr-defined]  # set in forward
        kernels, plan = call.kernels, call.plan
        make = torch.zeros if call.blind else torch.empty
        dq = make(q.shape, dtype=q.dtype, device=q.device)
        dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
        given = [step for x in (q, k, v, grad) for step in x.stride()]
        with on_device(q):
            below = row_products(kernels, out, grad, norms) if plan.features else norms
            states, totals = call.states(k, v, norms, norms, reverse=False)
            kernels.query_gradient[(call.query_programs,)](
                *(q, k, v, grad, norms, below, states, totals, dq, call.rates, *call.query_sizes(states)),
                *(*given, *dq.stride()),
                **call.constants(plan.columns),
                **plan.queries.options,
            )
            states, totals = call.states(q, grad, norms, below, reverse=True)
            kernels.key_gradients[(call.key_programs,)](
                *(q, k, v, grad, norms, below, states, totals, dk, dv, call.rates, *call.key_sizes(states)),
                *(*given, *dk.stride(), *dv.stride()),
                **call.constants(plan.columns),
                **plan.keys.options,
            )
        return dq, dk, dv, None, None


class _Call:
    """The shapes of one call, and what the kernels take of them."""

    def __init__(self, kernels: ModuleType, plan: Plan, q: Tensor, k: Tensor) -> None:
        self.kernels, self.plan = kernels, plan
        self.batch, self.heads, self.tokens, self.width = q.shape
        self.kv_heads, self.kv_tokens = k.shape[1:3]
        self.dtype = q.dtype
        self.rates = q.new_zeros(1, dtype=torch.float32) if plan.rates is None else plan.rates
        self.offset = self.kv_tokens - self.tokens if plan.causal else 0
        self.blind = self.offset < 0
        self.first_chunk = max(0, self.offset) // plan.chunk
        covered = self.tokens + self.offset if self.tokens else 0
        self.query_chunks = max(0, tile_count(covered, plan.chunk) - self.first_chunk)
        self.key_chunks = tile_count(self.kv_tokens, plan.chunk)
        self.wide = padded(self.width) // min(plan.columns, padded(self.width))
        self.state_tiles = (padded(self.width) // min(plan.state_columns, padded(self.width))) ** 2

    @property
    def query_programs(self) -> int:
        return self.batch * self.heads * self.query_chunks * self.wide

    @property
    def key_programs(self) -> int:
        return self.batch * self.kv_heads * self.key_chunks * self.wide

    def query_sizes(self, states: Tensor) -> tuple[int | float, ...]:
        """What the kernels over chunks of queries take between the tensors and their strides."""
        group = self.heads // self.kv_heads
        sizes = (self.tokens, self.kv_tokens, self.heads, group, states.shape[1], self.offset, states.shape[2])
        return *sizes, self.first_chunk, max(1, self.query_chunks), self.plan.scale

    def key_sizes(self, states: Tensor) -> tuple[int | float, ...]:
        """The same of the kernel over chunks of keys."""
        group = self.heads // self.kv_heads
        sizes = (self.tokens, self.kv_tokens, self.kv_heads, group, self.offset, states.shape[2])
        return *sizes, self.key_chunks, self.plan.scale

    def constants(self, columns: int) -> dict[str, Any]:
        """What the kernels with so many columns are compiled for."""
        mode = dot_mode(self.kernels, self.dtype)
        return {
            "WIDTH": self.width,
            "BLOCK": padded(self.width),
            "TILE": min(columns, padded(self.width)),
            "CHUNK": self.plan.chunk,
            "CAUSAL": self.plan.causal,
            "DECAY": self.plan.rates is not None,
            "NORMALISED": self.plan.features,
            "FEATURES": self.plan.features,
            "HALF": self.dtype is torch.bfloat16,
            # A sum over all keys may leave float16's range. tf32 has its digits, and float32's range.
            "DOT": "tf32" if self.dtype is torch.float16 else mode,
        }

    def states(self, x: Tensor, y: Tensor, norms: Tensor, below: Tensor, *, reverse: bool) -> tuple[Tensor, Tensor]:
        """States (batch, heads, slots, dim, dim) and normalisers without the last: a slot for each chunk, or one.

        Heads are those of the keys where neither decay nor direction tells queries apart.
        """
        heads = self.heads if reverse or self.plan.rates is not None else self.kv_heads
        chunks = self.key_chunks if self.plan.causal else tile_count(x.shape[2], self.plan.chunk)
        splits = 1
        if not self.plan.causal:
            programs = max(1, self.batch * heads * self.state_tiles)
            splits = max(1, min(tile_count(PROGRAMS, programs), chunks // 4))
        slots = chunks if self.plan.causal else splits
        # In bfloat16 they are rounded as factors anyway; sums of splits are not.
        exact = not self.plan.causal or self.dtype is not torch.bfloat16
        dtype = torch.float32 if exact else torch.bfloat16
        states = torch.empty(self.batch, heads, slots, self.width, self.width, dtype=dtype, device=x.device)
        shape = (self.batch, heads, slots, self.width) if self.plan.features else (1,)
        totals = torch.empty(shape, dtype=torch.float32, device=x.device)
        self.kernels.chunk_states[(self.batch * heads * self.state_tiles * splits,)](
            *(x, y, norms, below, states, totals, self.rates, x.shape[2], chunks, heads, x.shape[1]),
            *(self.offset if reverse else 0, splits, tile_count(chunks, splits), *x.stride(), *y.stride()),
            **{name: value for name, value in self.constants(self.plan.state_columns).items() if name != "CAUSAL"},
            REVERSE=reverse,
            TOTAL=not self.plan.causal,
            **self.plan.states.options,
        )
        if splits > 1:
            states = states.sum(2, keepdim=True)
            totals = totals.sum(2, keepdim=True) if self.plan.features else totals
        return states, totals


def attend(
    q: Float[Tensor, "batch heads tokens head_dim"],
    k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    kernels: ModuleType,
    plan: Plan,
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Linear attention by the kernels of `variants.kernels_scan`."""
    out: Tensor = _Scan.apply(q, k, v, kernels, plan)  # type: ignore[no-untyped-call]  # torch types no apply
    return out


def planned(
    problem: Problem, *, features: bool, scale: float = 1.0, log_decay: Float64[Tensor, " heads"] | None = None
) -> Plan:
    """The plan of a problem on the card; `log_decay` is natural, in float64."""
    rates = None if log_decay is None else (log_decay * LOG2_E).to(problem.device, torch.float32)
    wide = problem.dtype != "bfloat16"
    columns = 32 if wide and padded(problem.head_dim) > 64 else COLUMNS
    return Plan(
        causal=problem.causal,
        features=features,
        rates=rates,
        scale=scale,
        chunk=CHUNK if not wide else CHUNK // 2,
        columns=columns,
        state_columns=columns,
        states=Launch(4, 3 if not wide else 2),
        queries=Launch(4, 2),
        keys=Launch(4 if wide else 8, 2),
    )


def starts(problem: Problem, plan: Plan) -> list[Plan]:
    """The plan, and where registers allow it another whose tiles hold all columns, with more warps."""
    width = min(128, padded(problem.head_dim))
    if problem.dtype != "bfloat16" or width <= plan.columns:
        return [plan]
    wide = {name: getattr(plan, name)._replace(warps=8) for name in KERNELS}
    return [plan, plan._replace(columns=width, state_columns=width, **wide)]


def choices(problem: Problem) -> dict[str, list[Any]]:
    """What is worth a try on the card, of each kernel of the problem's mode."""
    launches = [Launch(warps, stages) for warps in (4, 8) for stages in (2, 3, 4)]
    return {
        "state_columns": [64, 32] if problem.dtype == "bfloat16" else [32],
        **dict.fromkeys(_kernels(problem), launches),
    }


def _kernels(problem: Problem) -> tuple[str, ...]:
    return KERNELS if problem.mode == "training" else KERNELS[:2]


def built(problem: Problem, plan: Plan, flops: int) -> Attention:
    """The callable of a variant, its plan tried on the card; `flops` is the work of a call."""
    kernels = device_code("scan")
    tried = choices(problem)
    plan = fastest(problem, starts(problem, plan), tried, flops, lambda q, k, v, plan: attend(q, k, v, kernels, plan))

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return attend(q, k, v, kernels, plan)

    sizes = f"{plan.chunk}×{plan.columns}", f"{plan.state_columns}²"
    return telling(run, *sizes, *(getattr(plan, name) for name in _kernels(problem)))


def workspace_bytes(problem: Problem, *, features: bool, decay: bool) -> int:
    """The states of all chunks, or the sums of the splits; in training those that run back, and three numbers a row."""
    rows = problem.batch * (problem.heads if decay else problem.kv_heads)
    chunk = CHUNK if problem.dtype == "bfloat16" else CHUNK // 2
    state = problem.head_dim * (problem.head_dim + (1 if features else 0))
    slots = tile_count(problem.kv_tokens, chunk) if problem.causal else PROGRAMS // max(1, rows) + 2
    size = 2 if problem.causal and problem.dtype == "bfloat16" else 4
    forward = rows * slots * state * size
    if problem.mode != "training":
        return forward + 4
    back = problem.batch * problem.heads * slots * state * size
    return forward + back + 3 * 4 * problem.batch * problem.heads * problem.tokens


def chunk_flops(problem: Problem) -> int:
    """The products within each chunk, which the formula does not ask for; in training those of all passes."""
    chunk = CHUNK if problem.dtype == "bfloat16" else CHUNK // 2
    inside = 4 * problem.batch * problem.heads * problem.head_dim * problem.tokens * chunk if problem.causal else 0
    return round(inside * 3.5) if problem.mode == "training" else inside
