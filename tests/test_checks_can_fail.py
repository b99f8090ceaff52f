"""Every check sees a wrong answer: a check that cannot fail proves nothing."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import call_contract, memory, worker
from benchmarks.accuracy import (
    checked_rows,
    gradient_error,
    mean_of_values,
    measure_errors,
    measure_gradient_error,
    relative_error,
)
from benchmarks.measurement import Case
from benchmarks.memory import InstrumentFault, measure_cpu_bytes, self_test
from benchmarks.worker import Bench, answer
from tests.ready_variants import draw
from variants import Problem
from variants.catalogue import load
from variants.definition import Definition
from variants.dtypes import TORCH_DTYPES
from variants.problem import DTYPE_BYTES
from variants.tolerance import GRADIENT_TOLERANCE, IMPLEMENTATION_TOLERANCE
from variants.variant import Attention, Variant

Wrong = Callable[[Attention, Problem, Tensor, Tensor, Tensor], Tensor]
"""A wrong answer, made from the right implementation and the inputs."""


def install(monkeypatch: pytest.MonkeyPatch, name: str, wrong: Callable[..., Any], layout: str = "bhnd") -> None:
    """Let the instrument find a variant whose answers are wrong, in the layout that it asks for."""
    right = load(name)

    def build(problem: Problem, **parameters: int) -> Attention:
        run = right.build(problem, **parameters)
        if layout == "bhnd":
            return lambda q, k, v: wrong(run, problem, q, k, v)

        def swapped(*inputs: Tensor) -> Tensor:
            return run(*(x.transpose(1, 2) for x in inputs)).transpose(1, 2)

        return lambda q, k, v: wrong(swapped, problem, q, k, v)

    monkeypatch.setattr(worker, "load", lambda _: replace(right, build=build, layout=layout))


def prepare(name: str, problem: Problem, **parameters: int) -> dict[str, Any]:
    """What the instrument answers for a case."""
    case = Case.of(name, load(name).definition.resolve(parameters), problem, "normal")
    return answer(Bench("default"), "prepare", (case, 1, False))


# ---- the output


def unchanged(run: Attention, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return run(q, k, v)


def one_token_late(run: Attention, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return run(q, k, v).roll(1, 2)


def wrong_scale(run: Attention, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return run(1.01 * q, k, v)


def no_scale(run: Attention, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return run(q * problem.head_dim**0.5, k, v)


def mean_value(run: Attention, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return v.repeat_interleave(problem.group, 1).mean(2, keepdim=True).expand_as(q)


def other_heads(run: Attention, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return run(q, k.flip(1), v.flip(1))


def interleaved_groups(run: Attention, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Key-value head h mod Hkv instead of ⌊h · Hkv / H⌋."""
    order = torch.arange(problem.heads).view(problem.group, -1).T.flatten()
    return run(q[:, order], k, v)[:, order.argsort()]


def one_wrong_row(run: Attention, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = run(q, k, v).clone()
    out[0, 0, -1] = out[0, 0, 0]
    return out


def rounded(run: Attention, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return run(q, k, v).bfloat16().to(q.dtype)


def one_nan(run: Attention, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = run(q, k, v).clone()
    out[0, 0, 20, 3] = math.nan
    return out


def one_infinity(run: Attention, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = run(q, k, v).clone()
    out[0, 0, 20, 3] = math.inf
    return out


def leaking(run: Attention, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Sees one key of the future."""
    return load("full/matmul").build(problem.with_(kv_tokens=problem.kv_tokens + 1))(
        q, *(torch.cat((x[:, :, 1:], x[:, :, -1:], x[:, :, -1:]), 2) for x in (k, v))
    )


def seeing_all(run: Attention, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """No causal mask."""
    return load("full/matmul").build(problem.with_(causal=False))(q, k, v)


def upper_left(run: Attention, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The causal mask from the first key on, not from the last one back."""
    return run(q, k[:, :, : q.shape[2]], v[:, :, : q.shape[2]])


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_a_right_answer_passes(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    install(monkeypatch, "full/matmul", unchanged)
    found = prepare("full/matmul", Problem(tokens=48, heads=4, kv_heads=2, causal=True, dtype=dtype))
    assert found["status"] == "ok"
    assert found["implementation_error"] <= IMPLEMENTATION_TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
@pytest.mark.parametrize(
    "wrong",
    [one_token_late, no_scale, mean_value, other_heads, interleaved_groups, leaking, seeing_all, one_nan, one_infinity],
)
def test_a_wrong_answer_is_seen_in_every_dtype(monkeypatch: pytest.MonkeyPatch, wrong: Wrong, dtype: str) -> None:
    install(monkeypatch, "full/matmul", wrong)
    found = prepare("full/matmul", Problem(tokens=48, heads=4, kv_heads=2, causal=True, dtype=dtype))
    assert found["status"] == "wrong"
    assert set(found) == {"status", "reason"}
    said = "the output holds infinities or NaN" if wrong in (one_nan, one_infinity) else "implementation error "
    assert found["reason"].startswith(said)


@pytest.mark.parametrize("wrong", [wrong_scale, one_wrong_row, rounded])
def test_a_slightly_wrong_answer_is_seen_in_float32(monkeypatch: pytest.MonkeyPatch, wrong: Wrong) -> None:
    install(monkeypatch, "full/matmul", wrong)
    found = prepare("full/matmul", Problem(tokens=1024, heads=4))
    assert found["status"] == "wrong"
    assert found["reason"].endswith("> 2e-05")


@pytest.mark.parametrize("mode", ["forward", "training"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_a_half_type_no_kernel_errs_more_than_twice_as_much_as_the_plain_formula(
    monkeypatch: pytest.MonkeyPatch, dtype: str, mode: str
) -> None:
    problem = Problem(tokens=100, heads=4, kv_heads=2, causal=True, dtype=dtype, mode=mode)
    right = prepare("full/matmul", problem)
    plain = right["plain_error"]
    assert 0 < right["implementation_error"] <= 1.5 * plain  # this variant takes the same steps
    assert (right.get("plain_gradient_error") is None) == (mode == "forward")

    def blurred(run: Attention, _: Problem, *inputs: Tensor) -> Tensor:
        return run(*inputs) * (1 + 2.5 * plain)

    assert 3 * plain < IMPLEMENTATION_TOLERANCE[dtype]
    install(monkeypatch, "full/matmul", blurred)
    found = prepare("full/matmul", problem)
    assert found["status"] == "wrong"
    assert found["reason"].endswith(f"more than 2 times the plain formula's in {dtype}, {plain:.2e}")
    longer = prepare("full/matmul", problem.with_(tokens=2**11, kv_tokens=2**11, heads=1, kv_heads=1))
    assert longer["status"] == "ok" and longer["plain_error"] is None  # beyond what is cheap the tolerance must do


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_a_mask_from_the_wrong_corner_is_seen(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    right = load("full/matmul")
    square = right.build(Problem(tokens=30, causal=True, dtype=dtype))
    install(monkeypatch, "full/matmul", lambda _, *given: upper_left(square, *given))
    found = prepare("full/matmul", Problem(tokens=30, kv_tokens=40, causal=True, dtype=dtype))
    assert found["status"] == "wrong"


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("off_by", [-1, 1])
@pytest.mark.parametrize("name", ["local_window/tiled", "local_window/masked"])
def test_a_window_of_one_key_more_or_less_is_seen(
    monkeypatch: pytest.MonkeyPatch, name: str, off_by: int, causal: bool
) -> None:
    right = load(name)

    def build(problem: Problem, *, window: int) -> Attention:
        return right.build(problem, window=window + (off_by if causal else 2 * off_by))

    monkeypatch.setattr(worker, "load", lambda _: replace(right, build=build))
    found = prepare(name, Problem(tokens=1024, heads=2, causal=causal), window=256)
    assert found["status"] == "wrong"


@pytest.mark.parametrize("change", [{"rank": 2}, {"rank": 8}, {"block": 64}])
def test_another_rank_or_block_is_seen(monkeypatch: pytest.MonkeyPatch, change: dict[str, int]) -> None:
    right = load("blockwise_low_rank/merged")
    monkeypatch.setattr(
        worker, "load", lambda _: replace(right, build=lambda problem, **given: right.build(problem, **given | change))
    )
    assert prepare("blockwise_low_rank/merged", Problem(tokens=1024, heads=2))["status"] == "wrong"


def test_an_error_far_from_both_ends_of_a_long_output_is_seen() -> None:
    problem = Problem(tokens=4000, heads=1, head_dim=8)
    definition = load("full/matmul").definition
    q, k, v = draw(problem)
    rows = checked_rows(problem)
    assert len(rows) == len(set(rows.tolist())) == 256
    assert {*range(8), *range(3992, 4000)} <= set(rows.tolist())
    out = torch.zeros_like(q)
    out[:, :, rows] = definition.reference(q, k, v, causal=False, rows=rows).float()
    assert measure_errors(out, (q, k, v), problem, definition, {}).implementation < 1e-6
    out[:, :, 1900:2100] += 0.01  # a stretch of one twentieth
    assert measure_errors(out, (q, k, v), problem, definition, {}).implementation > 1e-3


@pytest.mark.parametrize(("tokens", "count"), [(1024, 1024), (1025, 256), (131072, 256)])
def test_a_long_problem_is_checked_on_a_sample_with_both_ends(tokens: int, count: int) -> None:
    rows = checked_rows(Problem(tokens=tokens)).tolist()
    assert len(set(rows)) == len(rows) == count
    assert rows[:8] == list(range(8)) and rows[-8:] == list(range(tokens - 8, tokens))


def test_errors_tell_a_wrong_kernel_from_a_coarse_approximation() -> None:
    problem = Problem(tokens=200, heads=2, dtype="float64")
    inputs = draw(problem)
    variant = load("local_window/tiled")
    right = variant.build(problem, window=16)(*inputs)
    coarse = measure_errors(right, inputs, problem, variant.definition, {"window": 16})
    assert coarse.implementation < 1e-12
    assert coarse.approximation > 0.5
    exact = load("full/matmul").build(problem)(*inputs)
    wrong = measure_errors(exact, inputs, problem, variant.definition, {"window": 16})
    assert wrong.implementation > 0.5
    assert wrong.approximation == coarse.approximation  # a matter of the definition, whatever the kernel did


def test_one_wrong_row_shows_in_the_quantiles() -> None:
    problem = Problem(tokens=500, heads=1, dtype="float64")
    inputs = draw(problem)
    definition = load("full/matmul").definition
    out = definition.reference(*inputs, causal=False)
    out[0, 0, 77] *= 1.5
    errors = measure_errors(out, inputs, problem, definition, {})
    assert errors.row_p50 == 0.0
    assert abs(errors.row_max - 0.5) < 1e-12
    assert errors.row_p99 < 0.5


@pytest.mark.parametrize("causal", [False, True])
def test_the_floor_is_the_mean_of_the_visible_values(causal: bool) -> None:
    problem = Problem(tokens=5, kv_tokens=4, heads=4, kv_heads=2, head_dim=3, causal=causal)
    v = draw(problem)[2].double()
    mean = mean_of_values(v, torch.arange(5), problem)
    for head in range(4):
        for row in range(5):
            seen = v[0, head // 2, : row if causal else 4]  # the first of five queries stands before all keys
            expected = seen.mean(0) if len(seen) else torch.zeros(3).double()
            torch.testing.assert_close(mean[0, head, row], expected)
    inputs = draw(problem)
    exact = load("full/matmul").definition.reference(*inputs, causal=causal)
    errors = measure_errors(mean, inputs, problem, load("full/matmul").definition, {})
    assert errors.implementation == errors.mean_of_v == relative_error(mean, exact) > 0.1


def test_an_output_where_nothing_is_seen_must_be_nought() -> None:
    problem = Problem(tokens=3, kv_tokens=0, heads=1, head_dim=2, causal=True)
    inputs = draw(problem)
    definition = load("full/matmul").definition
    assert measure_errors(torch.zeros(1, 1, 3, 2), inputs, problem, definition, {}).implementation == 0
    assert measure_errors(torch.ones(1, 1, 3, 2), inputs, problem, definition, {}).implementation > 1


# ---- later calls, and what every call must keep to


def from_the_second_call_on(spoil: Callable[[Tensor], Tensor], *, every: int = 1) -> Wrong:
    """Right once; then changed, at every second call with `every=2`."""
    made: list[None] = []

    def wrong(run: Attention, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        made.append(None)
        out = run(q, k, v)
        return spoil(out) if len(made) > 1 and (len(made) - 1) % every == 0 else out

    return wrong


def kept(*, copy: bool) -> Wrong:
    """The first output again, or copies of it."""
    outs: list[Tensor] = []

    def wrong(run: Attention, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outs.append(outs[0] if outs else run(q, k, v))
        return outs[0].clone() if copy else outs[0]

    return wrong


def one_buffer() -> Wrong:
    """Right, in memory that the call before has given away."""
    buffer = torch.empty(0)
    return lambda run, _, q, k, v: buffer.resize_(q.shape).copy_(run(q, k, v))


def emptying(index: int, amount: float) -> Wrong:
    def wrong(run: Attention, problem: Problem, *inputs: Tensor) -> Tensor:
        out = run(*inputs)
        inputs[index].mul_(amount)
        return out

    return wrong


def sorting(run: Attention, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Right every time, since the order of keys is nothing to full attention."""
    out = run(q, k, v)
    k.copy_(k.flip(2))
    v.copy_(v.flip(2))
    return out


def input_itself(run: Attention, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.copy_(run(q, k, v))


Making = Callable[[], Wrong]
LATER: dict[str, tuple[Making, str]] = {
    "half as much again": (
        lambda: from_the_second_call_on(lambda out: 1.5 * out),
        "in a later call: implementation error 5",
    ),
    "noughts": (
        lambda: from_the_second_call_on(torch.zeros_like, every=2),
        "in a later call: implementation error 1.00e+00",
    ),
    "itself": (lambda: kept(copy=False), "returned the memory of an earlier output; each output must have its own"),
    "copies": (lambda: kept(copy=True), "returned its first output again, though v was another"),
    "buffer": (one_buffer, "returned the memory of an earlier output; each output must have its own"),
    "empties": (lambda: emptying(2, 0.0), "changed its input v"),
    "doubles": (lambda: emptying(0, 2.0), "changed its input q"),
    "sorts": (lambda: sorting, "changed its input k, v"),
    "into q": (lambda: input_itself, "returned the memory of q; each output must have its own"),
}


@pytest.mark.parametrize("layout", ["bhnd", "bnhd"])
@pytest.mark.parametrize(("making", "said"), LATER.values(), ids=LATER)
def test_a_call_that_goes_wrong_later_or_touches_what_is_not_its_own_is_seen(
    monkeypatch: pytest.MonkeyPatch, making: Making, said: str, layout: str
) -> None:
    install(monkeypatch, "full/matmul", making(), layout)
    found = prepare("full/matmul", Problem(tokens=48, heads=4))
    assert (found["status"], found["reason"][: len(said)]) == ("wrong", said)


def test_an_output_that_is_kept_is_seen_without_a_call_on_other_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_contract, "DEPENDENCE_UP_TO_SECONDS", -1.0)
    install(monkeypatch, "full/matmul", kept(copy=False))
    assert prepare("full/matmul", Problem(tokens=48, heads=4))["status"] == "wrong"
    install(monkeypatch, "full/matmul", from_the_second_call_on(torch.zeros_like))
    assert prepare("full/matmul", Problem(tokens=48, heads=4))["status"] == "wrong"


def test_an_output_of_noughts_may_come_again() -> None:
    assert prepare("full/matmul", Problem(tokens=5, kv_tokens=0))["status"] == "ok"


Spoil = Callable[[Tensor], Any]
FORMS: dict[str, tuple[Spoil, str]] = {
    "row": (lambda out: out[:, :, 1:], "returned (1, 8, 63, 64) float32; must be (1, 8, 64, 64) float32"),
    "dtype": (lambda out: out.double(), "returned (1, 8, 64, 64) float64; must be (1, 8, 64, 64) float32"),
    "both": (lambda out: out[:, :, 1:].double(), "returned (1, 8, 63, 64) float64; must be (1, 8, 64, 64) float32"),
    "axis": (lambda out: out[0], "returned (8, 64, 64) float32; must be (1, 8, 64, 64) float32"),
    "none": (lambda _: None, "returned None; must be (1, 8, 64, 64) float32"),
    "tuple": (lambda out: (out, out), "returned a tuple; must be (1, 8, 64, 64) float32"),
    "device": (lambda out: out.to("meta"), "returned a tensor on meta; must be on cpu"),
}


@pytest.mark.parametrize("mode", ["forward", "training"])
@pytest.mark.parametrize(("spoil", "said"), FORMS.values(), ids=FORMS)
def test_an_output_of_another_form_is_wrong(
    monkeypatch: pytest.MonkeyPatch, spoil: Spoil, said: str, mode: str
) -> None:
    install(monkeypatch, "full/matmul", lambda run, _, *inputs: spoil(run(*inputs)))
    found = prepare("full/matmul", Problem(tokens=64, mode=mode))
    assert found == {"status": "wrong", "reason": said}


def test_a_builder_that_returns_nothing_to_be_called_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    right = load("full/matmul")
    monkeypatch.setattr(worker, "load", lambda _: replace(right, build=lambda _: None))
    found = prepare("full/matmul", Problem(tokens=8))
    said = "the builder returned None; must be what is called with q, k and v"
    assert found == {"status": "wrong", "reason": said}


@pytest.mark.parametrize(
    ("taken", "said"),
    [
        ("qkv", "returned an output without a gradient; in training it must be one of q, k and v"),
        ("k", "its output has no gradient of k; where the formula has none it is nought"),
    ],
)
def test_an_output_that_is_cut_off_from_its_inputs_is_wrong_in_training(
    monkeypatch: pytest.MonkeyPatch, taken: str, said: str
) -> None:
    def cut(run: Attention, problem: Problem, *inputs: Tensor) -> Tensor:
        return run(*(x.detach() if name in taken else x for name, x in zip("qkv", inputs, strict=True)))

    install(monkeypatch, "full/matmul", cut)
    assert prepare("full/matmul", Problem(tokens=8))["status"] == "ok"
    found = prepare("full/matmul", Problem(tokens=8, mode="training"))
    assert found == {"status": "wrong", "reason": said}


@pytest.mark.parametrize("dtype", TORCH_DTYPES.values(), ids=str)
def test_every_bit_and_every_place_has_its_part_in_a_fingerprint(dtype: torch.dtype) -> None:
    x = torch.randn(3, 2**16, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = {call_contract.fingerprint(x)}
    for change in (
        lambda y: y.neg_(),
        lambda y: y.view(-1)[-1].add_(1),
        lambda y: y.copy_(y.flip(0)),
        lambda y: y.copy_(y.roll(1, 1)),
        lambda y: y[0, :2].copy_(y[0, :2].flip(0)),
        lambda y: y[2].zero_(),
    ):
        changed = x.clone()
        change(changed)  # type: ignore[no-untyped-call]  # lambdas in a tuple
        found.add(call_contract.fingerprint(changed))
    assert len(found) == 7
    assert call_contract.fingerprint(x.clone()) in found


# ---- gradients


def spoil_one(index: int, spoil: Callable[[Tensor], Tensor]) -> Wrong:
    """The right output, with the gradient of one input changed on its way."""

    def wrong(run: Attention, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        inputs = [q, k, v]
        if inputs[index].requires_grad:
            inputs[index] = inputs[index].clone()
            inputs[index].register_hook(spoil)
        return run(*inputs)

    return wrong


SPOILT: dict[str, Callable[[Tensor], Tensor]] = {
    "scaled": lambda grad: 1.1 * grad,
    "nought": torch.zeros_like,
    "late": lambda grad: grad.roll(1, 2),
    "nan": lambda grad: torch.full_like(grad, math.nan),
    "one-nan": lambda grad: grad.index_fill(2, torch.tensor([5]), math.nan),
    "infinite": lambda grad: torch.full_like(grad, math.inf),
}


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("index", [0, 1, 2], ids=["q", "k", "v"])
def test_a_wrong_gradient_is_seen(
    monkeypatch: pytest.MonkeyPatch, index: int, spoil: Callable[[Tensor], Tensor], dtype: str
) -> None:
    install(monkeypatch, "full/matmul", spoil_one(index, spoil))
    problem = Problem(tokens=32, heads=4, kv_heads=2, causal=True, dtype=dtype, mode="training")
    found = prepare("full/matmul", problem)
    assert found["status"] == "wrong"
    assert found["reason"].startswith("gradient error ")


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_a_right_gradient_passes(dtype: str) -> None:
    problem = Problem(tokens=32, heads=4, kv_heads=2, causal=True, dtype=dtype, mode="training")
    found = prepare("full/matmul", problem)
    assert found["status"] == "ok"
    assert found["gradient_error"] <= GRADIENT_TOLERANCE[dtype]


def test_a_wrong_gradient_of_a_long_problem_is_seen() -> None:
    problem = Problem(tokens=1200, heads=1, head_dim=8, mode="training", dtype="float64")
    variant = load("memory_efficient/sdpa_flash")

    def run(slope: float) -> Callable[[], tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tensor]]:
        def once() -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tensor]:
            q, k, v = (x.requires_grad_() for x in draw(problem))
            out = variant.build(problem)(q, k, v)
            return slope * out - (slope - 1) * out.detach(), (q, k, v), torch.randn_like(out)

        return once

    assert measure_gradient_error(run(1.0), problem, variant.definition, {}) < 1e-11
    assert abs(measure_gradient_error(run(1.5), problem, variant.definition, {}) - 0.5) < 1e-6


def test_a_gradient_that_is_nought_by_the_formula_has_the_scale_of_the_largest() -> None:
    large, nought = torch.full((4,), 2.0), torch.zeros(4)
    assert gradient_error((large, nought + 1e-9), (large.double(), nought.double())) < 1e-6
    assert gradient_error((large, nought + 1.0), (large.double(), nought.double())) > 10
    assert gradient_error((), ()) == 0.0
    for place in range(3):
        grads = [large.clone() for _ in range(3)]
        grads[place][0] = math.nan
        assert math.isnan(gradient_error(tuple(grads), [large.double()] * 3))


# ---- what raises becomes a row


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (RuntimeError("kernel refused\nC++ stack"), "error", "RuntimeError: kernel refused"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"), "out_of_memory", "can't allocate memory"),
        (MemoryError(), "out_of_memory", "MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "out_of_memory", "CUDA out of memory"),
        (ValueError(), "error", "ValueError: ValueError"),
        (AssertionError("x" * 1000), "error", "AssertionError: xxx"),
    ],
)
def test_what_a_variant_raises_becomes_a_status(
    monkeypatch: pytest.MonkeyPatch, error: Exception, status: str, said: str
) -> None:
    def fail(run: Attention, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise error

    install(monkeypatch, "full/matmul", fail)
    found = prepare("full/matmul", Problem(tokens=8))
    assert found["status"] == status
    assert said in found["reason"]
    assert "\n" not in found["reason"] and len(found["reason"]) < 400


def test_what_cannot_run_is_unsupported_with_every_reason() -> None:
    found = prepare("memory_efficient/xformers", Problem(tokens=8, dtype="float64"))
    assert found["status"] == "unsupported"
    assert found["reason"].startswith("needs CUDA; no float64")
    case = Case.of("full/matmul", {}, Problem(tokens=4096), "captured")
    assert answer(Bench("default"), "prepare", (case, 1, False)) == {
        "status": "unsupported",
        "reason": "captured inputs hold 512 tokens: 4096 is too long",
    }


# ---- the memory instrument


def test_the_memory_self_test_passes_here() -> None:
    self_test()


@pytest.mark.parametrize("reading", [(0, 0, []), (2**26, 0, []), (2**26 + 4096, 2**26, []), (2**27, 2**26, [])])
def test_a_wrong_reading_fails_the_memory_self_test(
    monkeypatch: pytest.MonkeyPatch, reading: tuple[int, int, list[str]]
) -> None:
    monkeypatch.setattr(memory, "measure_cpu_bytes", lambda _: reading)
    with pytest.raises(InstrumentFault, match=f"a tensor of {2**26} bytes reads as {reading[0]}"):
        self_test()


def test_a_failed_self_test_leaves_the_machine_undescribed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "measure_cpu_bytes", lambda _: (1, 1, []))
    found = answer(Bench("default"), "machine", ("cpu", 1))
    assert found["status"] == "error"
    assert found["reason"].startswith("InstrumentFault: a tensor of")


def test_a_leak_is_seen() -> None:
    kept: list[Tensor] = []
    _, held, _ = measure_cpu_bytes(lambda: kept.append(torch.empty(1000, dtype=torch.uint8)))
    assert held == 1000


# ---- the table of tolerances


@pytest.mark.parametrize("table", [IMPLEMENTATION_TOLERANCE, GRADIENT_TOLERANCE], ids=["output", "gradient"])
def test_a_narrower_dtype_may_stray_further(table: dict[str, float]) -> None:
    assert table["float64"] < table["float32"] < table["float16"] < table["bfloat16"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_next_narrower_dtype_does_not_pass_for_a_wider_one(dtype: str) -> None:
    narrower = {"float64": torch.float32, "float32": torch.float16}[dtype]
    problem = Problem(tokens=64, heads=2, dtype=dtype)
    inputs = draw(problem)
    definition: Definition = load("full/matmul").definition
    variant: Variant = load("full/matmul")
    out = variant.build(problem)(*(x.to(narrower) for x in inputs)).to(inputs[0].dtype)
    assert measure_errors(out, inputs, problem, definition, {}).implementation > IMPLEMENTATION_TOLERANCE[dtype]
