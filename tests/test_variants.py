"""Every variant that runs on this machine, against its own definition's oracle."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.accuracy import gradient_error, relative_error
from benchmarks.inputs import KINDS, make_inputs
from tests.ready_variants import READY, call, draw, reference, reference_gradients, small_parameters
from variants import Problem
from variants.catalogue import load
from variants.definition import Definition, InvalidParameter, Parameter
from variants.dtypes import TORCH_DTYPES
from variants.problem import DTYPE_BYTES
from variants.tolerance import GRADIENT_TOLERANCE, IMPLEMENTATION_TOLERANCE

every_variant = pytest.mark.parametrize("name", READY)
both_masks = pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])

SHAPES: dict[str, dict[str, Any]] = {
    "no-tokens": {"tokens": 0},
    "no-batch": {"tokens": 9, "batch": 0},
    "no-keys": {"tokens": 5, "kv_tokens": 0},
    "no-queries": {"tokens": 0, "kv_tokens": 5},
    "one": {"tokens": 1},
    "seven": {"tokens": 7},
    "tile": {"tokens": 64},
    "no-multiple": {"tokens": 301},
    "one-query": {"tokens": 1, "kv_tokens": 83},
    "more-keys": {"tokens": 35, "kv_tokens": 83},
    "more-queries": {"tokens": 83, "kv_tokens": 35},
    "many-more-queries": {"tokens": 140, "kv_tokens": 3},
    "grouped": {"tokens": 67, "heads": 6, "kv_heads": 2},
    "one-kv-head": {"tokens": 35, "kv_tokens": 67, "heads": 4, "kv_heads": 1, "batch": 3},
    "head-dim-32": {"tokens": 67, "head_dim": 32},
    "head-dim-40": {"tokens": 67, "head_dim": 40},
    "head-dim-64": {"tokens": 67, "head_dim": 64},
    "head-dim-1": {"tokens": 19, "head_dim": 1},
}
NARROW = ("no-multiple", "more-keys", "more-queries", "grouped", "one-kv-head")
every_shape = pytest.mark.parametrize(
    ("shape", "cache"),
    [pytest.param(shape, 2**18, id=name) for name, shape in SHAPES.items()]
    + [pytest.param(SHAPES[name], 2**11, id=f"{name}-narrow-cache") for name in NARROW],
)


def problem_of(**fields: Any) -> Problem:
    return Problem(**{"heads": 2, "head_dim": 16} | fields)


@pytest.fixture
def small_steps(cache: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that hold all heads and tiles at once, and steps that hold few: both paths must be right."""
    for module in in_steps(len(sys.modules)):
        monkeypatch.setattr(module, "CACHE_ELEMENTS", cache)


@lru_cache(maxsize=1)
def in_steps(_: int) -> list[ModuleType]:
    """The modules that work in steps, looked for again where more modules were imported."""
    found = [module for name, module in sys.modules.items() if name.startswith("variants.")]
    return [module for module in found if hasattr(module, "CACHE_ELEMENTS")]


# ---- the output


@every_shape
@both_masks
@every_variant
@pytest.mark.usefixtures("small_steps")
def test_output_is_the_oracles(name: str, causal: bool, shape: dict[str, Any]) -> None:
    problem = problem_of(**shape, causal=causal)
    inputs = draw(problem)
    out = call(name, problem, inputs)
    assert out.shape == inputs[0].shape and out.dtype == inputs[0].dtype
    assert out.isfinite().all()
    assert relative_error(out.double(), reference(name, problem, inputs)) <= IMPLEMENTATION_TOLERANCE["float32"]


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
@pytest.mark.parametrize(
    "shape",
    [{"tokens": 301}, {"tokens": 40, "kv_tokens": 75}, {"tokens": 67, "heads": 6, "kv_heads": 2, "head_dim": 64}],
    ids=["long", "more-keys", "grouped"],
)
@both_masks
@every_variant
def test_output_is_within_the_tolerance_of_its_dtype(
    name: str, causal: bool, shape: dict[str, Any], dtype: str
) -> None:
    problem = problem_of(**shape, causal=causal, dtype=dtype)
    inputs = draw(problem)
    out = call(name, problem, inputs)
    assert out.dtype == TORCH_DTYPES[dtype]
    assert relative_error(out.double(), reference(name, problem, inputs)) <= IMPLEMENTATION_TOLERANCE[dtype]


@both_masks
@every_variant
def test_output_beyond_the_default_window_and_blocks(name: str, causal: bool) -> None:
    chosen = load(name).definition.resolve()
    problem = problem_of(tokens=1111, causal=causal)  # four windows, eight blocks, two spans of chunked keys
    inputs = draw(problem)
    out = call(name, problem, inputs, chosen)
    expected = reference(name, problem, inputs, chosen)
    assert relative_error(out.double(), expected) <= IMPLEMENTATION_TOLERANCE["float32"]


@pytest.mark.parametrize("window", [1, 2, 3, 63, 64, 65, 500])
@both_masks
@pytest.mark.parametrize("name", [name for name in READY if "window" in small_parameters(name)])
def test_every_window(name: str, causal: bool, window: int) -> None:
    problem = problem_of(tokens=200, kv_tokens=230, causal=causal, dtype="float64")
    inputs = draw(problem)
    chosen = load(name).definition.resolve({"window": window})
    out = call(name, problem, inputs, chosen)
    assert relative_error(out, reference(name, problem, inputs, chosen)) < 1e-13


@pytest.mark.parametrize(("block", "rank"), [(1, 1), (2, 1), (7, 7), (16, 1), (32, 4), (64, 64), (300, 3)])
@both_masks
@pytest.mark.parametrize("name", [name for name in READY if "rank" in small_parameters(name)])
def test_every_block_and_rank(name: str, causal: bool, block: int, rank: int) -> None:
    problem = problem_of(tokens=100, kv_tokens=130, causal=causal, dtype="float64")
    inputs = draw(problem)
    chosen = load(name).definition.resolve({"block": block, "rank": rank})
    out = call(name, problem, inputs, chosen)
    assert relative_error(out, reference(name, problem, inputs, chosen)) < 1e-13


@pytest.mark.parametrize("shape", [{}, {"heads": 8, "kv_heads": 2, "batch": 2}, {"tokens": 3}], ids=str)
@pytest.mark.parametrize("name", [name for name in READY if "decode" in load(name).modes])
def test_decoding(name: str, shape: dict[str, Any]) -> None:
    problem = Problem.of_length(77, mode="decode", causal=True, heads=2, head_dim=16).with_(**{"kv_heads": 2} | shape)
    inputs = draw(problem)
    out = call(name, problem, inputs)
    assert relative_error(out.double(), reference(name, problem, inputs)) <= IMPLEMENTATION_TOLERANCE["float32"]


@both_masks
@every_variant
def test_large_logits(name: str, causal: bool) -> None:
    problem = problem_of(tokens=301, causal=causal)
    q, k, v = draw(problem)
    inputs = (30 * q, k, v)
    out = call(name, problem, inputs)
    assert out.isfinite().all()
    assert relative_error(out.double(), reference(name, problem, inputs)) <= IMPLEMENTATION_TOLERANCE["float32"]


@pytest.mark.parametrize("kind", KINDS)
@both_masks
@every_variant
def test_every_kind_of_input(name: str, causal: bool, kind: str) -> None:
    problem = problem_of(tokens=200, head_dim=64, causal=causal)
    inputs = make_inputs(problem, kind)
    out = call(name, problem, inputs)
    assert relative_error(out.double(), reference(name, problem, inputs)) <= IMPLEMENTATION_TOLERANCE["float32"]


# ---- what holds of any attention


@both_masks
@every_variant
def test_rows_sum_to_one(name: str, causal: bool) -> None:
    if not load(name).definition.normalised:
        pytest.skip("its definition has no normaliser")
    problem = problem_of(tokens=301, causal=causal)
    q, k, v = draw(problem)
    out = call(name, problem, (q, k, torch.ones_like(v)))
    torch.testing.assert_close(out, torch.ones_like(out), rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [{"tokens": 150}, {"tokens": 90, "kv_tokens": 150}], ids=["square", "more-keys"])
@pytest.mark.parametrize("change_at", [1, 63, 64, 100, 149])
@every_variant
def test_no_output_moves_when_later_tokens_change(name: str, change_at: int, shape: dict[str, int]) -> None:
    problem = problem_of(**shape, causal=True)
    q, k, v = draw(problem)
    before = call(name, problem, (q, k, v))
    k[:, :, change_at:] = 7.0
    v[:, :, change_at:] = -1e3
    row = max(0, change_at - problem.offset)
    q[:, :, row:] = 5.0
    after = call(name, problem, (q, k, v))
    assert not leaks(name, before[:, :, :row], after[:, :, :row], after[:, :, row:])
    assert not torch.allclose(before[:, :, row:], after[:, :, row:])


def leaks(name: str, before: Tensor, after: Tensor, changed: Tensor) -> bool:
    """Whether an output moved: not by a bit, or in the frequency domain by no more than the rounding of all outputs.

    There the error of each row is about eps · log2 n of the typical size of all rows (Higham, Accuracy and
    Stability of Numerical Algorithms, section 24.1), whichever row it is.
    """
    if not load(name).spectral:
        return not torch.equal(before, after)
    steps = math.log2(2 * (before.shape[2] + changed.shape[2]) + 2)
    rounding = torch.finfo(before.dtype).eps * steps * torch.cat([after, changed], 2).square().mean().sqrt()
    return bool((before - after).abs().amax() > 4 * rounding) if before.numel() else False


@pytest.mark.parametrize("change_at", [63, 149])
def test_a_leak_larger_than_rounding_is_seen_in_the_frequency_domain(change_at: int) -> None:
    """A ten-thousandth of the next value added to each output: far less than any tap of a filter."""
    problem = problem_of(tokens=150, causal=True)
    q, k, v = draw(problem)

    def leaking(values: Tensor) -> Tensor:
        return call("long_convolution/fft", problem, (q, k, values)) + 1e-4 * values.roll(-1, 2)

    before = leaking(v)
    v[:, :, change_at:] = -1e3
    after = leaking(v)
    assert leaks("long_convolution/fft", before[:, :, :change_at], after[:, :, :change_at], after[:, :, change_at:])


@both_masks
@every_variant
def test_one_item_does_not_depend_on_the_rest_of_the_batch(name: str, causal: bool) -> None:
    problem = problem_of(tokens=150, batch=3, heads=4, kv_heads=2, causal=causal, dtype="float64")
    q, k, v = draw(problem)
    together = call(name, problem, (100 * q, 100 * k, v))
    alone = call(name, problem, (100 * q, 100 * k, v))
    q[0] *= 100
    k[0] *= 100
    k[1:] *= 1e-3
    v[1:] = 1e6
    among_others = call(name, problem, (q, k, v))
    assert torch.equal(together, alone)  # the same call gives the same bits
    torch.testing.assert_close(among_others[0], together[0], rtol=1e-12, atol=1e-12)
    single = call(name, problem.with_(batch=1), (q[:1], k[:1], v[:1]))
    torch.testing.assert_close(single[0], together[0], rtol=1e-12, atol=1e-12)


def transposed(x: Tensor) -> Tensor:
    """As a projection leaves it: tokens before heads in memory."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def sliced(x: Tensor) -> Tensor:
    """Every second token of the last part of wider heads."""
    wide = torch.full((*x.shape[:2], 2 * x.shape[2], x.shape[3] + 5), torch.nan, dtype=x.dtype)
    wide[:, :, ::2, 5:] = x
    return wide[:, :, ::2, 5:]


def repeated(x: Tensor) -> Tensor:
    """One head for all, with stride 0."""
    return x[:, :1].expand_as(x)


@pytest.mark.parametrize(
    "shape",
    [{"tokens": 150}, {"tokens": 67, "kv_tokens": 75, "heads": 4, "kv_heads": 2}],
    ids=["square", "more-keys-grouped"],
)
@pytest.mark.parametrize("lay_out", [transposed, sliced, repeated])
@both_masks
@every_variant
def test_strides_do_not_matter_and_inputs_are_left_alone(
    name: str, causal: bool, lay_out: Callable[[Tensor], Tensor], shape: dict[str, int]
) -> None:
    problem = problem_of(**shape, batch=2, causal=causal, dtype="float64", mode="training")
    inputs = tuple(lay_out(x).requires_grad_() for x in draw(problem))
    assert not all(x.is_contiguous() for x in inputs)
    plain = tuple(x.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for x in inputs)
    outs = [call(name, problem, given) for given in (inputs, plain)]
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-12, atol=1e-12)
    slope = lay_out(torch.randn_like(plain[0]))
    strided, contiguous = (
        torch.autograd.grad(out, given, slope) for out, given in zip(outs, (inputs, plain), strict=True)
    )
    torch.testing.assert_close(strided, contiguous, rtol=1e-11, atol=1e-11)
    assert all(torch.equal(x, y) for x, y in zip(inputs, plain, strict=True))


@every_variant
def test_channels_before_tokens_in_memory_are_read_rightly_or_refused(name: str) -> None:
    problem = problem_of(tokens=67, causal=True, dtype="float64")
    inputs = draw(problem)
    by_channel = tuple(x.mT.contiguous().mT for x in inputs)
    try:
        out = call(name, problem, by_channel)
    except RuntimeError as error:
        if "No available kernel" not in str(error):  # torch's own kernels ask for a last stride of 1
            raise
    else:
        assert relative_error(out, reference(name, problem, inputs)) <= IMPLEMENTATION_TOLERANCE["float64"]


# ---- gradients


def gradients(
    name: str, problem: Problem, parameters: dict[str, int] | None = None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """A variant's gradients of q, k and v, and its oracle's, for a random gradient of the output."""
    inputs = tuple(x.requires_grad_() for x in draw(problem))
    wide = tuple(x.detach().double().requires_grad_() for x in inputs)
    out = call(name, problem, inputs, parameters)
    slope = torch.randn_like(out)
    got = torch.autograd.grad(out, inputs, slope)
    return got, reference_gradients(name, problem, wide, slope.double(), parameters)


trained = pytest.mark.parametrize("name", [name for name in READY if "training" in load(name).modes])


@every_shape
@both_masks
@trained
@pytest.mark.usefixtures("small_steps")
def test_gradients_are_the_oracles(name: str, causal: bool, shape: dict[str, Any]) -> None:
    got, expected = gradients(name, problem_of(**shape, causal=causal, dtype="float64", mode="training"))
    assert [x.shape for x in got] == [x.shape for x in expected]
    assert gradient_error(got, expected) <= GRADIENT_TOLERANCE["float64"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "shape", [{"tokens": 150}, {"tokens": 40, "kv_tokens": 75, "heads": 6, "kv_heads": 2}], ids=str
)
@both_masks
@trained
def test_gradients_are_within_the_tolerance_of_their_dtype(
    name: str, causal: bool, shape: dict[str, Any], dtype: str
) -> None:
    got, expected = gradients(name, problem_of(**shape, causal=causal, dtype=dtype, mode="training"))
    assert {x.dtype for x in got} == {TORCH_DTYPES[dtype]}
    assert gradient_error(got, expected) <= GRADIENT_TOLERANCE[dtype]


@both_masks
@trained
def test_gradients_beyond_the_default_window_and_blocks(name: str, causal: bool) -> None:
    chosen = load(name).definition.resolve()
    problem = problem_of(tokens=1111, heads=1, causal=causal, dtype="float64", mode="training")
    got, expected = gradients(name, problem, chosen)
    assert gradient_error(got, expected) <= GRADIENT_TOLERANCE["float64"]


@trained
def test_one_gradient_alone(name: str) -> None:
    problem = problem_of(tokens=67, causal=True, dtype="float64", mode="training")
    for index in range(3):
        inputs = list(draw(problem))
        inputs[index].requires_grad_()
        out = call(name, problem, tuple(inputs))
        (alone,) = torch.autograd.grad(out, inputs[index], torch.ones_like(out))
        wide = list(draw(problem))
        wide[index].requires_grad_()
        (expected,) = torch.autograd.grad(reference(name, problem, tuple(wide)).sum(), wide[index])
        assert gradient_error((alone,), (expected,)) <= 1e-9


# ---- half precision


def plain_attention(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax between two products, every step rounded to the inputs' dtype: what a kernel is held to."""
    k, v = (x.repeat_interleave(problem.group, 1) for x in (k, v))
    scores = (q * problem.head_dim**-0.5) @ k.mT
    if problem.causal:
        hidden = torch.ones(problem.tokens, problem.kv_tokens, dtype=torch.bool).triu(problem.offset + 1)
        scores = scores.masked_fill(hidden, -torch.inf)
    return torch.softmax(scores, -1) @ v


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@both_masks
@pytest.mark.parametrize("name", [name for name in READY if load(name).definition.exact])
def test_half_precision_errs_at_most_twice_as_much_as_the_plain_formula(name: str, causal: bool, dtype: str) -> None:
    problem = problem_of(tokens=301, head_dim=64, causal=causal, dtype=dtype)
    inputs = draw(problem)
    exact = reference(name, problem, inputs)
    plain = relative_error(plain_attention(problem, *inputs).double(), exact)
    assert relative_error(call(name, problem, inputs).double(), exact) <= 2 * plain


# ---- memory


def largest_allocation(run: Callable[[], Any]) -> int:
    """Bytes of the largest tensor that was ever allocated."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = run()
    del kept
    events = profiler.profiler.kineto_results.events()
    return max(event.nbytes() for event in events if event.name() == "[memory]")


def largest_in_training(name: str, causal: bool, mode: str) -> int:
    problem = Problem(tokens=2048, heads=1, head_dim=32, causal=causal, mode=mode)
    inputs = tuple(x.requires_grad_(mode == "training") for x in draw(problem))

    def run() -> Any:
        out = call(name, problem, inputs)
        return torch.autograd.grad(out.sum(), inputs) if mode == "training" else out

    return largest_allocation(run)


@pytest.mark.parametrize("mode", ["forward", "training"])
@both_masks
@pytest.mark.parametrize("name", [name for name in READY if name.startswith("memory_efficient/")])
def test_memory_efficient_holds_no_score_matrix_at_any_time(name: str, causal: bool, mode: str) -> None:
    assert largest_in_training(name, causal, mode) < 2048 * 2048 * 4


def test_a_score_matrix_is_seen() -> None:
    assert largest_in_training("full/matmul", causal=False, mode="forward") == 2048 * 2048 * 4


# ---- any shape


@st.composite
def problems(draw_from: st.DrawFn) -> Problem:
    kv_heads = draw_from(st.integers(1, 3))
    tokens = draw_from(st.integers(0, 40))
    return Problem(
        tokens=tokens,
        kv_tokens=draw_from(st.one_of(st.just(tokens), st.integers(0, 40))),
        batch=draw_from(st.integers(0, 2)),
        heads=kv_heads * draw_from(st.integers(1, 3)),
        kv_heads=kv_heads,
        head_dim=draw_from(st.integers(1, 17)),
        causal=draw_from(st.booleans()),
        dtype="float64",
        mode=draw_from(st.sampled_from(["forward", "training"])),
    )


SHORT = 45
"""About the lengths that are drawn, which tell no parameters from one another that are larger."""


def drawn_parameters(definition: Definition, data: st.DataObject) -> dict[str, int]:
    """A value of each parameter; those that do not go together are made multiples of one another."""
    chosen = {}
    for one in definition.parameters:
        ends = (max(one.low, min(one.high, end)) for end in (SHORT, 2 * one.default))
        chosen[one.name] = data.draw(st.one_of(*(st.integers(one.low, end) for end in ends)), label=one.name)
    multiples = [chosen | {name: chosen[name] * chosen[other]} for name in chosen for other in chosen if other != name]
    return next((one for one in (chosen, *multiples) if fits(definition, one)), None) or reject()


def fits(definition: Definition, parameters: dict[str, int]) -> bool:
    try:
        definition.resolve(parameters)
    except InvalidParameter:
        return False
    return True


def nearest_that_runs(name: str, problem: Problem) -> Problem:
    """The problem itself, or one that is square or has the other mask, for variants that know no other."""
    square = problem.with_(kv_tokens=problem.tokens)
    other = {"causal": not problem.causal}
    nearest = (problem, problem.with_(**other), square, square.with_(**other))
    found = next((one for one in nearest if not load(name).refusals(one)), None)
    return found or reject()


def test_every_parameter_is_drawn_whatever_its_name() -> None:
    """Also where one must divide the other, and a default lies far beyond the lengths."""
    unheard = (Parameter("grain", 300, 2, 999, "of sand"), Parameter("dune", 4, 1, 9, "of grains"))
    apart = lambda *, grain, dune: "dune must divide grain" if grain % dune else None  # noqa: E731  # one expression
    definition = replace(load("full/matmul").definition, parameters=unheard, constraint=apart)
    found = [dict[str, int]()]

    @settings(max_examples=60, database=None)
    @given(data=st.data())
    def draw_some(data: st.DataObject) -> None:
        found.append(drawn_parameters(definition, data))

    draw_some()
    assert {name for one in found for name in one} == {"grain", "dune"}
    assert len({one["grain"] for one in found[1:]}) > 10 < max(one["grain"] for one in found[1:])
    assert len({one["dune"] for one in found[1:]}) > 3


@every_variant
@settings(max_examples=40)
@given(drawn=problems(), data=st.data())
def test_any_shape(name: str, drawn: Problem, data: st.DataObject) -> None:
    definition, problem = load(name).definition, nearest_that_runs(name, drawn)
    chosen = drawn_parameters(definition, data) if definition.parameters else {}
    if problem.mode == "forward":
        inputs = draw(problem)
        out = call(name, problem, inputs, chosen)
        assert out.shape == inputs[0].shape
        assert relative_error(out, reference(name, problem, inputs, chosen)) <= IMPLEMENTATION_TOLERANCE["float64"]
    else:
        assert gradient_error(*gradients(name, problem, chosen)) <= GRADIENT_TOLERANCE["float64"]
