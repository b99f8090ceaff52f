"""Products by oneDNN: the same numbers, gradients, and what goes torch's way."""

import pytest
import torch
from torch import Tensor

from benchmarks.kernel_names import kernel_on_cpu
from variants import products
from variants.products import by_onednn, differentiable_product, product

ON_THIS_CPU = torch.backends.mkldnn.is_available()


def drawn(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows + columns)).to(dtype)


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


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
