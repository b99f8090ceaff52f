"""How NATTEN is called, with a stand-in that does by loops what its documentation says of `na1d` and `na2d`."""

import sys
from itertools import product
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ready_variants import draw
from variants import Problem
from variants.catalogue import load
from variants.natten_attention import kernel_size


def seen(size: int, window: int, dilation: int, causal: bool, place: int) -> list[int]:
    """The neighbours of a place along one axis."""
    assert window >= 2 and window * dilation <= size
    same = list(range(place % dilation, size, dilation))
    at = same.index(place)
    if causal:
        return same[max(0, at - window + 1) : at + 1]
    first = min(max(at - window // 2, 0), len(same) - window)
    return same[first : first + window]


def attended(q: Tensor, k: Tensor, v: Tensor, sizes: tuple[int, ...], dilation: int, causal: bool) -> Tensor:
    shape = q.shape[1:-2]
    out = torch.empty_like(v)
    for place in product(*map(range, shape)):
        axes = [seen(*each, dilation, causal, at) for *each, at in zip(shape, sizes, place, strict=True)]
        keys, values = (torch.stack([x[:, *other] for other in product(*axes)], 1) for x in (k, v))
        scores = torch.einsum("bhd,bnhd->bhn", q[:, *place], keys) * q.shape[-1] ** -0.5
        out[:, *place] = torch.einsum("bhn,bnhd->bhd", scores.softmax(-1), values)
    return out


@pytest.fixture(autouse=True)
def natten(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("natten")

    def na1d(q: Tensor, k: Tensor, v: Tensor, kernel_size: int, dilation: int = 1, is_causal: bool = False) -> Tensor:
        return attended(q, k, v, (kernel_size,), dilation, is_causal)

    def na2d(q: Tensor, k: Tensor, v: Tensor, kernel_size: Any, dilation: int, is_causal: bool) -> Tensor:
        return attended(q, k, v, kernel_size, dilation, is_causal)

    fake.na1d, fake.na2d = na1d, na2d  # type: ignore[attr-defined]  # a module takes any
    monkeypatch.setitem(sys.modules, "natten", fake)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("name", "tokens", "parameters"),
    [
        ("neighborhood", 20, {"window": 5, "dilation": 1}),
        ("neighborhood", 20, {"window": 4, "dilation": 3}),
        ("neighborhood", 20, {"window": 9, "dilation": 4}),  # more than the 5 of each class
        ("neighborhood", 9, {"window": 20, "dilation": 1}),
        ("neighborhood_2d", 24, {"window": 3, "dilation": 1, "grid_width": 6}),
        ("neighborhood_2d", 32, {"window": 2, "dilation": 2, "grid_width": 8}),
        ("neighborhood_2d", 24, {"window": 5, "dilation": 1, "grid_width": 8}),  # more than the 3 lines
        ("local_window", 20, {"window": 6}),
        ("local_window", 5, {"window": 6}),
    ],
)
def test_what_natten_gives_is_the_definitions(name: str, tokens: int, parameters: dict[str, int], causal: bool) -> None:
    variant = load(f"{name}/natten")
    problem = Problem(tokens=tokens, batch=2, heads=2, head_dim=8, causal=causal)
    if name == "local_window" and not causal:
        assert any("causal only" in reason for reason in variant.refusals(problem))
        return
    q, k, v = (x.double() for x in draw(problem))
    got = variant.build(problem, **parameters)(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    want = variant.definition.reference(q, k, v, causal=causal, parameters=parameters)
    assert got.shape == want.shape and torch.allclose(got, want, atol=1e-12)


@pytest.mark.parametrize(
    ("window", "dilation", "places", "reason"),
    [(1, 1, 9, "2 or more"), (4, 3, 10, "window · dilation ≤ 10"), (4, 8, 8, "two places")],
)
def test_what_natten_cannot_do_is_said(window: int, dilation: int, places: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        kernel_size(window, dilation, places)


def test_an_image_must_have_whole_lines() -> None:
    with pytest.raises(ValueError, match="no multiple of 8"):
        load("neighborhood_2d/natten").build(Problem(tokens=20), window=3, dilation=1, grid_width=8)
