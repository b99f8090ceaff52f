"""Each oracle against the formula computed number by number, in plain Python."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ready_variants import small_parameters
from variants.catalogue import load, names

DEFINITIONS = {load(name).definition.name: load(name).definition for name in names()}
PARAMETERS = {load(name).definition.name: small_parameters(name) for name in names()}

Vector = Sequence[float]
Logit = Callable[..., float | None]


def dot(a: Vector, b: Vector) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def mean(vectors: Sequence[Vector]) -> Vector:
    return [math.fsum(parts) / len(vectors) for parts in zip(*vectors, strict=True)]


def full(q: Vector, keys: Sequence[Vector], i: int, j: int) -> float | None:
    return dot(q, keys[j]) / math.sqrt(len(q))


def full_causal(q: Vector, keys: Sequence[Vector], i: int, j: int) -> float | None:
    return full(q, keys, i, j) if j <= i else None


def window(q: Vector, keys: Sequence[Vector], i: int, j: int, window: int) -> float | None:
    return full(q, keys, i, j) if 2 * abs(i - j) <= window else None


def window_causal(q: Vector, keys: Sequence[Vector], i: int, j: int, window: int) -> float | None:
    return full(q, keys, i, j) if 0 <= i - j < window else None


def low_rank(q: Vector, keys: Sequence[Vector], i: int, j: int, block: int, rank: int) -> float | None:
    if abs(math.floor(i / block) - j // block) <= 1:
        return full(q, keys, i, j)
    size = block // rank
    first = j // size * size
    return full(q, [mean(keys[first : first + size])], i, 0)


def low_rank_causal(q: Vector, keys: Sequence[Vector], i: int, j: int, block: int, rank: int) -> float | None:
    return low_rank(q, keys, i, j, block, rank) if j <= i else None


def linear(q: Vector, keys: Sequence[Vector], i: int, j: int) -> float | None:
    a, b = ([x + 1 if x > 0 else math.exp(x) for x in vector] for vector in (q, keys[j]))
    return math.log(dot(a, b))


def linear_causal(q: Vector, keys: Sequence[Vector], i: int, j: int) -> float | None:
    return linear(q, keys, i, j) if j <= i else None


LOGITS: dict[tuple[str, bool], Logit] = {
    ("full", False): full,
    ("full", True): full_causal,
    ("local_window", False): window,
    ("local_window", True): window_causal,
    ("blockwise_low_rank", False): low_rank,
    ("blockwise_low_rank", True): low_rank_causal,
    ("linear_scan", False): linear,
    ("linear_scan", True): linear_causal,
}


def weighted_mean(logits: Sequence[float | None], values: Sequence[Vector]) -> Vector:
    """Σ e^logit v / Σ e^logit over the keys that are seen; nought where none is."""
    seen = [j for j, logit in enumerate(logits) if logit is not None]
    if not seen:
        return [0.0] * (len(values[0]) if values else 0)
    top = max(logits[j] for j in seen)
    weights = {j: math.exp(logits[j] - top) for j in seen}
    total = math.fsum(weights.values())
    return [math.fsum(weights[j] * values[j][e] for j in seen) / total for e in range(len(values[0]))]


def by_hand(logit: Logit, q: Tensor, k: Tensor, v: Tensor, **parameters: int) -> Tensor:
    """The definition in plain Python; key-value head ⌊h / group⌋ for query head h."""
    group = q.shape[1] // k.shape[1]
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=torch.float64)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            keys, values = k[b, h // group].tolist(), v[b, h // group].tolist()
            for row, query in enumerate(q[b, h].tolist()):
                i = row + len(keys) - q.shape[2]
                logits = [logit(query, keys, i, j, **parameters) for j in range(len(keys))]
                if keys:
                    out[b, h, row] = torch.tensor(weighted_mean(logits, values), dtype=torch.float64)
    return out


def inputs(tokens: int, kv_tokens: int, *, heads: int = 2, kv_heads: int = 1, scale: float = 1.0) -> list[Tensor]:
    shapes = ((heads, tokens, 3), (kv_heads, kv_tokens, 3), (kv_heads, kv_tokens, 4))
    q, k, v = (torch.randn(2, *shape, dtype=torch.float64) for shape in shapes)
    return [scale * q, scale * k, v]


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_definition_has_a_test_that_names_it(name: str) -> None:
    assert not untested(name, [module.read_text("utf-8") for module in Path(__file__).parent.glob("test_*.py")])


def untested(name: str, modules: list[str]) -> str:
    """What to add where no test names a definition."""
    if any(re.search(rf"\b{name}\b", text) for text in modules):
        return ""
    return (
        f"no tests/test_*.py names the definition {name!r}: add a hand-drawn picture of its mask to "
        "tests/test_masks.py, and a hand count of its visible pairs (CONTRIBUTING.md, Add a definition)"
    )


def test_a_definition_without_a_test_is_told_what_to_add() -> None:
    said = untested("uniform", ["a uniformity", "full"])
    assert "'uniform'" in said and "tests/test_masks.py" in said and "visible pairs" in said
    assert not untested("uniform", ["full", 'load("uniform/mean")'])


@pytest.mark.parametrize(
    ("tokens", "kv_tokens"), [(1, 1), (7, 7), (21, 21), (3, 20), (20, 3), (1, 19), (5, 0), (0, 5), (0, 0)]
)
@pytest.mark.parametrize(("name", "causal"), LOGITS)
def test_oracle_is_the_formula(name: str, causal: bool, tokens: int, kv_tokens: int) -> None:
    q, k, v = inputs(tokens, kv_tokens)
    got = DEFINITIONS[name].reference(q, k, v, causal=causal, parameters=PARAMETERS[name])
    expected = by_hand(LOGITS[name, causal], q, k, v, **PARAMETERS[name])
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)
    if causal:
        assert not got[:, :, : max(0, tokens - kv_tokens)].any()  # queries that see no key


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("local_window", {"window": 1}),
        ("local_window", {"window": 2}),
        ("local_window", {"window": 7}),
        ("local_window", {"window": 100}),
        ("blockwise_low_rank", {"block": 1, "rank": 1}),
        ("blockwise_low_rank", {"block": 3, "rank": 3}),
        ("blockwise_low_rank", {"block": 4, "rank": 1}),
        ("blockwise_low_rank", {"block": 6, "rank": 2}),
        ("blockwise_low_rank", {"block": 64, "rank": 4}),
    ],
)
@pytest.mark.parametrize("causal", [False, True])
def test_oracle_follows_its_parameters(name: str, causal: bool, parameters: dict[str, int]) -> None:
    q, k, v = inputs(13, 17)
    got = DEFINITIONS[name].reference(q, k, v, causal=causal, parameters=parameters)
    expected = by_hand(LOGITS[name, causal], q, k, v, **parameters)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("name", "causal"), LOGITS)
def test_large_logits_neither_overflow_nor_vanish(name: str, causal: bool) -> None:
    q, k, v = inputs(18, 18, scale=40.0)
    got = DEFINITIONS[name].reference(q, k, v, causal=causal, parameters=PARAMETERS[name])
    assert got.isfinite().all()
    expected = by_hand(LOGITS[name, causal], q, k, v, **PARAMETERS[name])
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "causal"), LOGITS)
def test_some_rows_are_those_of_all(name: str, causal: bool) -> None:
    q, k, v = inputs(21, 25)
    options: dict[str, Any] = {"causal": causal, "parameters": PARAMETERS[name]}
    everything = DEFINITIONS[name].reference(q, k, v, **options)
    for chosen in ([0], [20, 3, 3, 11], []):
        rows = torch.tensor(chosen, dtype=torch.int64)
        some = DEFINITIONS[name].reference(q, k, v, rows=rows, **options)
        torch.testing.assert_close(some, everything[:, :, rows], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(("name", "causal"), LOGITS)
def test_rows_sum_to_one_where_a_definition_says_so(name: str, causal: bool) -> None:
    q, k, v = inputs(19, 21)
    sums = DEFINITIONS[name].reference(q, k, torch.ones_like(v), causal=causal, parameters=PARAMETERS[name])
    ones = torch.allclose(sums, torch.ones_like(sums), rtol=1e-13)
    assert ones == DEFINITIONS[name].normalised


@pytest.mark.parametrize("name", sorted({name for name, _ in LOGITS}))
def test_grouped_heads_are_repeated_heads(name: str) -> None:
    q, k, v = inputs(9, 9, heads=6, kv_heads=2)
    options: dict[str, Any] = {"causal": True, "parameters": PARAMETERS[name]}
    grouped = DEFINITIONS[name].reference(q, k, v, **options)
    head_of = [0, 0, 0, 1, 1, 1]
    assert torch.equal(grouped, DEFINITIONS[name].reference(q, k[:, head_of], v[:, head_of], **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted({name for name, _ in LOGITS}))
def test_reference_is_float64_whatever_comes_in(name: str, dtype: torch.dtype) -> None:
    narrow = [x.to(dtype) for x in inputs(9, 9)]
    options: dict[str, Any] = {"causal": True, "parameters": PARAMETERS[name]}
    out = DEFINITIONS[name].reference(*narrow, **options)
    assert out.dtype == torch.float64
    assert torch.equal(out, DEFINITIONS[name].reference(*(x.double() for x in narrow), **options))
