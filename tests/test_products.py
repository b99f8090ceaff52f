"""Products and powers by what is fastest on a CPU: the same numbers, gradients, and what goes torch's way."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.kernel_names import kernel_on_cpu
from variants import Problem, online_softmax, products, short_keys
from variants.powers import exp, exp_
from variants.products import by_onednn, differentiable_product, product

ON_THIS_CPU = torch.backends.mkldnn.is_available()


def drawn(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows + columns)).to(dtype)


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.detach().double() - expected.detach()).norm() / expected.detach().norm())


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with vectors of 512 bits, whichever this is."""
    for module in (products, online_softmax, short_keys):
        monkeypatch.setattr(module, "wide_vectors", lambda: True)


@pytest.mark.parametrize("left", ["rows", "columns"])
@pytest.mark.parametrize("right", ["rows", "columns"])
def test_a_large_product_is_right_in_every_order(left: str, right: str) -> None:
    a = drawn(300, 80) if left == "rows" else drawn(80, 300).mT
    b = drawn(80, 200) if right == "rows" else drawn(200, 80).mT
    assert by_onednn(a, b) is ON_THIS_CPU
    assert relative(product(a, b), a.double() @ b.double()) < 1e-6


def test_small_products_other_types_and_slices_go_torchs_way() -> None:
    assert not by_onednn(drawn(8, 64), drawn(64, 64))
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert not by_onednn(drawn(300, 80, dtype), drawn(80, 200, dtype))
    assert not by_onednn(drawn(300, 160)[:, :80], drawn(80, 200))
    assert not by_onednn(drawn(300, 80), drawn(80, 400)[:, :200])
    sliced = product(drawn(300, 80), drawn(80, 400)[:, :200])
    assert relative(sliced, drawn(300, 80).double() @ drawn(80, 400)[:, :200].double()) < 1e-6


def test_products_that_may_be_rounded_go_torchs_way() -> None:
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision  # type: ignore[attr-defined]  # set at run time
    try:
        settings.fp32_precision = "bf16"  # type: ignore[attr-defined]
        assert not by_onednn(drawn(300, 80), drawn(80, 200))
    finally:
        settings.fp32_precision = before  # type: ignore[attr-defined]


def test_a_product_without_rows_is_empty() -> None:
    assert product(drawn(0, 80), drawn(80, 200)).shape == (0, 200)


@pytest.mark.parametrize("fewest", [products.FEWEST_PRODUCTS, 10**12])
def test_gradients_are_those_of_torch(fewest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "FEWEST_PRODUCTS", fewest)
    a, b = drawn(300, 80).requires_grad_(), drawn(80, 200).requires_grad_()
    grad = drawn(300, 200)
    got = torch.autograd.grad(differentiable_product(a, b), (a, b), grad)
    expected = grad.double() @ b.detach().double().mT, a.detach().double().mT @ grad.double()
    assert all(relative(one, other) < 1e-6 for one, other in zip(got, expected, strict=True))
    (alone,) = torch.autograd.grad(differentiable_product(a.detach(), b), (b,), grad)
    assert relative(alone, expected[1]) < 1e-6


def test_what_ran_is_recorded() -> None:
    assert kernel_on_cpu(["aten::mul", "mkldnn::_linear_pointwise", "aten::bmm"]) == "mkldnn::_linear_pointwise, bmm"


def test_a_processor_without_wide_vectors_keeps_torchs_own_but_for_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "wide_vectors", lambda: False)
    assert not by_onednn(drawn(300, 80), drawn(80, 200))
    assert by_onednn(drawn(1, 80), drawn(80, 30000)) is ON_THIS_CPU  # MKL leaves it to one thread


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_that_the_processor_does_not_multiply_are_multiplied_wide(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "multiplies", lambda _: False)
    a, b = drawn(300, 80, dtype).requires_grad_(), drawn(80, 200, dtype).requires_grad_()
    out = differentiable_product(a, b)
    assert out.dtype is dtype
    assert torch.equal(out, (a.float() @ b.float()).to(dtype))
    grad = drawn(300, 200, dtype)
    got = torch.autograd.grad(out, (a, b), grad)
    expected = grad.double() @ b.detach().double().mT, a.detach().double().mT @ grad.double()
    assert all(one.dtype is dtype for one in got)
    assert all(relative(*pair) < torch.finfo(dtype).eps for pair in zip(got, expected, strict=True))


# ---- powers


def test_powers_are_those_of_e() -> None:
    x = torch.tensor([-math.inf, -1e4, -103.0, -90.0, -87.0, -1.0, 0.0, 1.0, 20.0, 88.0, 89.0, math.inf, math.nan])
    expected = x.double().exp()
    for got in (exp(x), exp_(x.clone())):
        torch.testing.assert_close(got, expected.float(), rtol=1e-5, atol=1e-38, equal_nan=True)
    torch.testing.assert_close(exp(x.double()), expected, rtol=1e-13, atol=0, equal_nan=True)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(exp(x[:-1].to(dtype)), x[:-1].to(dtype).exp())


def test_powers_have_gradients() -> None:
    x = drawn(8, 5).requires_grad_()
    for out in (exp(x), exp_(x * 1.0)):
        (got,) = torch.autograd.grad(out.sum(), x)
        torch.testing.assert_close(got, x.detach().exp())


# ---- attention by such products


@pytest.mark.parametrize("wide_vectors", [True, False])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("tokens", "kv_tokens"), [(70, 70), (40, 75), (75, 40), (3, 70)])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_tiles_of_few_rows_and_keys_are_right(
    tokens: int, kv_tokens: int, causal: bool, wide_vectors: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online_softmax, "ROWS", 12)
    monkeypatch.setattr(online_softmax, "FEW_ROWS", 4)
    monkeypatch.setattr(online_softmax, "most_keys", lambda _: 16)
    monkeypatch.setattr(products, "wide_vectors", lambda: wide_vectors)
    monkeypatch.setattr(products, "FEWEST_PRODUCTS", 1)
    problem = Problem(tokens=tokens, kv_tokens=kv_tokens, heads=2, head_dim=8, dtype=dtype, causal=causal)
    plan = online_softmax.tiles(problem)
    assert any(len(spans) > 1 for _, spans in plan) or tokens == 3
    kind = getattr(torch, dtype)
    q, k, v = (
        torch.randn(1, 2, n, 8, generator=torch.Generator().manual_seed(n)).to(kind).requires_grad_()
        for n in (tokens, kv_tokens, kv_tokens)
    )
    slope = torch.ones(q.shape, dtype=kind).cumsum(2)
    out = online_softmax.online_softmax(q, k, v, plan)
    got = out, *torch.autograd.grad(out, (q, k, v), slope)
    inputs = [x.detach().double().requires_grad_() for x in (q, k, v)]
    seen = torch.ones(tokens, kv_tokens, dtype=torch.bool).tril(kv_tokens - tokens if causal else kv_tokens)
    exact = functional.scaled_dot_product_attention(*inputs, attn_mask=seen).nan_to_num(0.0)
    expected = exact, *(x.nan_to_num(0.0) for x in torch.autograd.grad(exact, inputs, slope.double()))
    most = {"float64": 1e-12, "float32": 2e-6, "bfloat16": 2**-7}[dtype]
    assert all(relative(*pair) < most for pair in zip(got, expected, strict=True))


def test_few_keys_go_by_tiles_where_those_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(tokens=40, kv_tokens=12, heads=2, head_dim=8)
    assert short_keys.by_tiles(problem) and not short_keys.by_tiles(problem.with_(dtype="bfloat16"))
    q, k, v = (torch.randn(1, 2, n, 8, generator=torch.Generator().manual_seed(n)) for n in (40, 12, 12))
    tiled = short_keys.exact_attention(problem)(q, k, v)
    monkeypatch.setattr(short_keys, "wide_vectors", lambda: False)
    assert not short_keys.by_tiles(problem)
    torch.testing.assert_close(tiled, short_keys.exact_attention(problem)(q, k, v))
