"""The plain formula in a half type: every step is rounded, and no kernel may err more than twice as much."""

import math

import pytest
import torch

from benchmarks.plain_precision import Rounded, allowed, is_held_to_plain
from variants import Problem
from variants.catalogue import load


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_step_is_rounded_as_the_type_itself_does(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(9, 9, generator=generator).to(dtype) for _ in range(2))
    wide = a.double().requires_grad_()
    with Rounded(dtype):
        product = wide @ b.double()
        scaled = product.mul(3)
        scaled += 0.25
        (slope,) = torch.autograd.grad(scaled, wide, torch.ones_like(scaled))
    assert torch.equal(product, (a.double() @ b.double()).to(dtype).double())
    assert torch.equal(scaled, (product.detach().to(dtype) * 3 + 0.25).double())
    assert torch.equal(slope, slope.to(dtype).double()) and not torch.equal(slope, 3 * b.double().sum(1).expand(9, 9))


def test_views_and_whole_numbers_are_left_alone() -> None:
    x = torch.full((2, 2), 1 + 2**-20, dtype=torch.float64)
    with Rounded(torch.bfloat16):
        seen = x.mT[:1]
        count = torch.arange(1000) + 1
    assert torch.equal(x, torch.full_like(x, 1 + 2**-20)) and seen.data_ptr() == x.data_ptr()
    assert int(count[-1]) == 1000


def test_twice_the_plain_error_is_allowed_but_no_more_than_the_tolerance() -> None:
    assert allowed(1e-2, 3e-2, "bfloat16") == 2e-2
    assert allowed(2e-2, 3e-2, "bfloat16") == 3e-2
    assert allowed(math.nan, 3e-2, "bfloat16") == 3e-2
    assert allowed(0.0, 3e-2, "bfloat16") == 2**-7  # as over one key: rounding the result is no fault
    assert allowed(0.0, 4e-3, "float16") == 2**-10


def test_where_the_plain_formula_is_computed() -> None:
    full, by_token = (load(name).definition for name in ("full/matmul", "delta_rule/chunked"))
    assert by_token.by_token and not full.by_token
    held = {
        (dtype, tokens): (is_held_to_plain(problem, full), is_held_to_plain(problem, by_token))
        for dtype in ("float32", "bfloat16")
        for tokens in (15, 333, 1000, 2000)
        for problem in [Problem(tokens=tokens, dtype=dtype, causal=True)]
    }
    assert held == {
        ("float32", 15): (False, False),
        ("float32", 333): (False, False),
        ("float32", 1000): (False, False),
        ("float32", 2000): (False, False),
        ("bfloat16", 15): (False, False),
        ("bfloat16", 333): (True, True),
        ("bfloat16", 1000): (True, False),
        ("bfloat16", 2000): (False, False),
    }
