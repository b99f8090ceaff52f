"""Which of a kernel's tiles is the fastest on the card at hand: timed there, by the builder, on the problem's shape.

Registers, caches and schedulers differ from card to card and from one compiler to the next, so the lists of
`variants.triton_launch` only say which tiles are worth a try.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from variants.dtypes import TORCH_DTYPES
from variants.problem import Problem
from variants.variant import Attention

CLEARLY: Final = 0.97
"""A later choice must take less than this share of an earlier one's time: else each run would choose another."""

RUNS: Final = 5
WORTHWHILE_FLOPS: Final = 2**32
"""Below this a call is over in some tens of microseconds, and the first choice does."""

CYCLES_PER_SECOND: Final = 2e9
"""About a card's clock: the wait need not be exact."""

MOST_QUEUEING_SECONDS: Final = 0.01

Plan = TypeVar("Plan", bound=Any)
"""A named tuple of which some fields are searched."""


def searched(
    starts: Sequence[Plan], choices: Mapping[str, Sequence[Any]], seconds: Callable[[Plan], float]
) -> tuple[Plan, float]:
    """The fastest plan from any of the starts, and its seconds: the fields are searched one after the other.

    Of what is nearly as fast, the first is taken.
    """
    found = [_improved(start, choices, seconds) for start in starts]
    best = found[0]
    for other in found[1:]:
        if other[1] < CLEARLY * best[1]:
            best = other
    return best


def _improved(plan: Plan, choices: Mapping[str, Sequence[Any]], seconds: Callable[[Plan], float]) -> tuple[Plan, float]:
    best = seconds(plan)
    for name, values in choices.items():
        for value in values:
            if value == getattr(plan, name):
                continue
            candidate = plan._replace(**{name: value})
            taken = seconds(candidate)
            if taken < CLEARLY * best:
                best, plan = taken, candidate
    return plan, best


def fastest(
    problem: Problem,
    starts: Sequence[Plan],
    choices: Mapping[str, Sequence[Any]],
    flops: int,
    attend: Callable[..., Tensor],
) -> Plan:
    """The fastest plan on the card; the first start elsewhere, for work that is over at once, and for float32.

    Products of float32 are unrolled into single multiplications, which compile for too long to be tried.
    `choices` are of the fields that are searched from each start; `attend` takes q, k, v and a plan; `flops` is
    the work of a call. What the card cannot launch is no choice; `RuntimeError` where nothing can be launched.
    """
    if problem.device_type != "cuda" or problem.dtype == "float32" or flops < WORTHWHILE_FLOPS:
        return starts[0]
    training = problem.mode == "training"
    shapes = (problem.heads, problem.tokens), *[(problem.kv_heads, problem.kv_tokens)] * 2
    dtype, device = TORCH_DTYPES[problem.dtype], problem.device
    inputs = [
        torch.randn(problem.batch, heads, tokens, problem.head_dim, dtype=dtype, device=device, requires_grad=training)
        for heads, tokens in shapes
    ]

    def call(candidate: Plan) -> None:
        out = attend(*inputs, candidate)
        if training:
            torch.autograd.grad(out, inputs, inputs[0].detach())

    with torch.cuda.device(device):
        found, seconds = searched(starts, choices, lambda candidate: _seconds(lambda: call(candidate)))
    if seconds == float("inf"):
        raise RuntimeError("the card can launch no tile of this kernel")
    return found


def _seconds(call: Callable[[], Any]) -> float:
    """The shortest of a few calls on the present card, after one that compiles; infinite where none can be launched."""
    from triton.runtime.errors import OutOfResources  # there is a card, so there is Triton

    try:
        call()
    except OutOfResources:
        return float("inf")
    cycles = _cycles_of_queueing(call)
    found = []
    for _ in range(RUNS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(cycles)  # else a short call would be timed by the host, which launches all tiles alike
        start.record()
        call()
        stop.record()
        stop.synchronize()
        found.append(float(start.elapsed_time(stop)))
    return min(found) / 1e3


def _cycles_of_queueing(call: Callable[[], Any]) -> int:
    """For how many of its cycles a card is kept busy while the host queues the call; at most some milliseconds."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    seconds = min(MOST_QUEUEING_SECONDS, time.perf_counter() - begin)
    torch.cuda.synchronize()
    return int((1.5 * seconds + 20e-6) * CYCLES_PER_SECOND)


def telling(run: Attention, *parts: object) -> Attention:
    """The callable with an attribute `ran`, which the instrument records: what was chosen, in these parts."""
    run.__dict__["ran"] = ", ".join(map(str, parts))
    return run
