"""Which keys each query sees, against hand-drawn pictures; and the declared costs, against hand counts.

In a picture a row is a query and a column a key: `x` is seen for itself, `.` is not seen, and
keys with the same letter are seen through their mean.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.ready_variants import READY, call, small_parameters
from variants import Problem
from variants.catalogue import load, names


class Picture(NamedTuple):
    rows: tuple[str, ...]
    causal: bool = False
    parameters: dict[str, int] = {}

    @property
    def problem(self) -> Problem:
        keys = len(self.rows[0])
        return Problem(len(self.rows), heads=1, kv_tokens=keys, head_dim=keys, dtype="float64", causal=self.causal)


ALL = [
    Picture(("x.", "xx"), causal=True),
    Picture(("x....", "xx...", "xxx..", "xxxx.", "xxxxx"), causal=True),
    Picture(("xxxx.", "xxxxx"), causal=True),
    Picture(("xxxxx",), causal=True),
    Picture(("..", "..", "..", "x.", "xx"), causal=True),
    Picture(("xxx", "xxx", "xxx")),
    Picture(("xxxx", "xxxx")),
    Picture(("xx", "xx", "xx", "xx")),
]
PICTURES = {
    "full": ALL,
    "linear_scan": ALL,
    "local_window": [
        # W keys with the query's own: not W + 1
        Picture(("x.....", "xx....", "xxx...", ".xxx..", "..xxx.", "...xxx"), causal=True, parameters={"window": 3}),
        Picture(("x.....", "xx....", ".xx...", "..xx..", "...xx.", "....xx"), causal=True, parameters={"window": 2}),
        Picture(("x...", ".x..", "..x.", "...x"), causal=True, parameters={"window": 1}),
        Picture(("x...", "xx..", "xxx.", "xxxx"), causal=True, parameters={"window": 4}),
        Picture(("x...", "xx..", "xxx.", "xxxx"), causal=True, parameters={"window": 9}),
        Picture(("..xxx.", "...xxx"), causal=True, parameters={"window": 3}),
        Picture(("...xxx",), causal=True, parameters={"window": 3}),
        Picture(("..", "..", "..", "x.", "xx"), causal=True, parameters={"window": 3}),
        Picture(("...", "...", "x..", ".x.", "..x"), causal=True, parameters={"window": 1}),
        # half the window on either side, rounded down
        Picture(
            ("xxx....", "xxxx...", "xxxxx..", ".xxxxx.", "..xxxxx", "...xxxx", "....xxx"), parameters={"window": 4}
        ),
        Picture(
            ("xxx....", "xxxx...", "xxxxx..", ".xxxxx.", "..xxxxx", "...xxxx", "....xxx"), parameters={"window": 5}
        ),
        Picture(("xx..", "xxx.", ".xxx", "..xx"), parameters={"window": 3}),
        Picture(("x...", ".x..", "..x.", "...x"), parameters={"window": 1}),
        Picture(("xxx", "xxx", "xxx"), parameters={"window": 8}),
        Picture(("..xxxx", "...xxx"), parameters={"window": 4}),
        Picture(("..", "..", "x.", "xx", "xx"), parameters={"window": 2}),
        Picture(("..", "..", "..", "..", "x.", ".x"), parameters={"window": 1}),
    ],
    "blockwise_low_rank": [
        Picture(
            ("xxxxccdd", "xxxxccdd", "xxxxxxdd", "xxxxxxdd", "aaxxxxxx", "aaxxxxxx", "aabbxxxx", "aabbxxxx"),
            parameters={"block": 2, "rank": 1},
        ),
        Picture(
            ("x.......", "xx......", "xxx.....", "xxxx....", "aaxxx...", "aaxxxx..", "aabbxxx.", "aabbxxxx"),
            causal=True,
            parameters={"block": 2, "rank": 1},
        ),
        Picture(("xxxxef", "xxxxef", "xxxxxx", "xxxxxx", "abxxxx", "abxxxx"), parameters={"block": 2, "rank": 2}),
        # blocks of four in two segments, the last block and its last segment cut short
        Picture(
            (*4 * ("xxxxxxxxeef",), *4 * ("xxxxxxxxxxx",), *3 * ("aabbxxxxxxx",)), parameters={"block": 4, "rank": 2}
        ),
        Picture(("aabbxxxxx..", "aabbxxxxxx.", "aabbxxxxxxx"), causal=True, parameters={"block": 4, "rank": 2}),
        Picture(("xxxxxxxx",), parameters={"block": 5, "rank": 1}, causal=True),
        Picture(("aaaaaxxxxxxx",), parameters={"block": 5, "rank": 1}, causal=True),
        # queries before the first key: far from it or near it by their own blocks
        Picture(("aa", "aa", "aa", "xx", "xx", "xx", "xx"), parameters={"block": 2, "rank": 1}),
        Picture(("..", "..", "..", "x.", "xx"), causal=True, parameters={"block": 2, "rank": 1}),
        Picture(("xxx", "xxx", "xxx"), parameters={"block": 4, "rank": 4}),
    ],
}

DEFINITIONS = {load(name).definition.name: load(name).definition for name in names()}


def softmax_kernel(query: Tensor, key: Tensor) -> Tensor:
    return torch.exp(query @ key / len(query) ** 0.5)


def elu_kernel(query: Tensor, key: Tensor) -> Tensor:
    a, b = (torch.where(x > 0, x + 1, torch.exp(x)) for x in (query, key))
    return a @ b


Kernel = Callable[[Tensor, Tensor], Tensor]
KERNELS: dict[str, Kernel] = {"linear_scan": elu_kernel}


def drawn_weights(picture: Picture, kernel: Kernel, q: Tensor, k: Tensor) -> Tensor:
    """The weights that the picture says, row by row, for the queries q and the keys k."""
    weights = torch.zeros(len(q), len(k), dtype=torch.float64)
    for i, row in enumerate(picture.rows):
        for mark in set(row) - {"."}:
            members = [j for j, drawn in enumerate(row) if drawn == mark]
            for j in members:
                key = k[j] if mark == "x" else sum(k[m] for m in members) / len(members)
                weights[i, j] = kernel(q[i], key)
        if row.strip("."):
            weights[i] /= weights[i].sum()
    return weights


def is_drawn(weights: Tensor, picture: Picture, kernel: Kernel, q: Tensor, k: Tensor) -> bool:
    """Whether just the drawn keys are seen, with the drawn weights."""
    seen = torch.tensor([[mark != "." for mark in row] for row in picture.rows])
    expected = drawn_weights(picture, kernel, q, k)
    return torch.equal(weights != 0, seen) and torch.allclose(weights, expected, rtol=1e-11, atol=1e-14)


def reading(picture: Picture) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs whose output is the weights: v is the identity."""
    size = picture.problem.head_dim
    q, k = (torch.randn(1, 1, count, size, dtype=torch.float64) for count in (len(picture.rows), size))
    return q, k, torch.eye(size, dtype=torch.float64)[None, None]


def kernel_of(definition: str) -> Kernel:
    return KERNELS.get(definition, softmax_kernel)


@pytest.mark.parametrize(
    ("definition", "picture"),
    [pytest.param(name, one, id=f"{name}-{i}") for name, drawn in PICTURES.items() for i, one in enumerate(drawn)],
)
def test_an_oracle_sees_what_is_drawn(definition: str, picture: Picture) -> None:
    q, k, v = reading(picture)
    oracle = DEFINITIONS[definition].oracle
    rows = torch.arange(len(picture.rows))
    weights = oracle(q, k, v, rows, causal=picture.causal, **picture.parameters)[0, 0]
    assert is_drawn(weights, picture, kernel_of(definition), q[0, 0], k[0, 0])


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        pytest.param(name, picture, id=f"{name}-{i}")
        for name in READY
        for i, picture in enumerate(PICTURES.get(load(name).definition.name, []))
    ],
)
def test_a_variant_sees_what_is_drawn(name: str, picture: Picture) -> None:
    q, k, v = reading(picture)
    weights = call(name, picture.problem, (q, k, v), picture.parameters)[0, 0]
    assert is_drawn(weights, picture, kernel_of(load(name).definition.name), q[0, 0], k[0, 0])


@pytest.mark.parametrize(
    "wrong",
    [
        ("x....", "xx...", "xxx..", ".xxx.", "..xxx"),  # one key too many
        ("x....", ".x...", "..x..", "...x.", "....x"),  # one too few
        ("xx...", ".xx..", "..xx.", "...xx", "....x"),  # the future instead of the past
        (".....", "x....", "xx...", ".xx..", "..xx."),  # shifted by one
        ("x....", "xx...", "aa...", ".xx..", "..xx."),  # other keys
        ("x....", "xx...", ".aa..", "..xx.", "...xx"),  # the right keys through their mean
    ],
)
def test_a_wrong_picture_is_seen(wrong: tuple[str, ...]) -> None:
    right = Picture(("x....", "xx...", ".xx..", "..xx.", "...xx"), causal=True, parameters={"window": 2})
    q, k, v = reading(right)
    weights = DEFINITIONS["local_window"].reference(q, k, v, causal=True, parameters={"window": 2})[0, 0]
    assert is_drawn(weights, right, softmax_kernel, q[0, 0], k[0, 0])
    assert not is_drawn(weights, right._replace(rows=wrong), softmax_kernel, q[0, 0], k[0, 0])


# ---- the declared costs


def drawn_pairs(picture: Picture) -> int:
    """A key that is seen for itself counts one; keys that are seen through their mean count one together."""
    return sum(row.count("x") + len(set(row) - set("x.")) for row in picture.rows)


@pytest.mark.parametrize(
    ("definition", "picture"),
    [
        pytest.param(name, one, id=f"{name}-{i}")
        for name, drawn in PICTURES.items()
        for i, one in enumerate(drawn)
        if DEFINITIONS[name].flops_per_head is None
    ],
)
def test_visible_pairs_are_the_drawn_ones(definition: str, picture: Picture) -> None:
    pairs = DEFINITIONS[definition].visible_pairs(picture.problem, **picture.parameters)
    assert pairs == drawn_pairs(picture)
    # A pair costs a product of q and k and a sum of v: 2 head_dim each.
    assert DEFINITIONS[definition].useful_flops(picture.problem, picture.parameters) == (
        4 * picture.problem.head_dim * pairs
    )


@pytest.mark.parametrize(
    ("name", "fields", "parameters", "flops"),
    [
        ("full", {"tokens": 3, "head_dim": 5}, {}, 4 * 5 * 9),
        ("full", {"tokens": 3, "head_dim": 5, "causal": True}, {}, 4 * 5 * 6),
        ("full", {"tokens": 2, "kv_tokens": 4, "head_dim": 5, "causal": True}, {}, 4 * 5 * 7),
        ("full", {"tokens": 3, "head_dim": 5, "batch": 2, "heads": 6, "kv_heads": 3}, {}, 2 * 6 * 4 * 5 * 9),
        ("full", {"tokens": 3, "head_dim": 5, "mode": "training"}, {}, 4 * 5 * 9 * 7 // 2),
        ("local_window", {"tokens": 4, "head_dim": 5, "causal": True}, {"window": 2}, 4 * 5 * 7),
        ("local_window", {"tokens": 4, "head_dim": 5}, {"window": 2}, 4 * 5 * 10),
        # two blocks apart, of two tokens each: 4 near keys of the outer blocks, 6 of the inner, and means
        ("blockwise_low_rank", {"tokens": 8, "head_dim": 5}, {"block": 2, "rank": 1}, 4 * 5 * (4 * 6 + 4 * 7)),
        # a key: 5 * 5 products and sums, 5 sums; a query: 5 * 5 products and sums, 5 products and sums
        ("linear_scan", {"tokens": 3, "head_dim": 5}, {}, 3 * (50 + 5) + 3 * (50 + 10)),
        ("linear_scan", {"tokens": 1, "kv_tokens": 4, "head_dim": 5}, {}, 4 * (50 + 5) + 1 * (50 + 10)),
    ],
)
def test_useful_flops_by_hand(name: str, fields: dict[str, Any], parameters: dict[str, int], flops: int) -> None:
    assert DEFINITIONS[name].useful_flops(Problem(**{"heads": 1} | fields), parameters) == flops


@pytest.mark.parametrize(
    ("name", "fields", "parameters", "flops"),
    [
        ("full/matmul", {"tokens": 3, "causal": True}, {}, 4 * 5 * 9),
        ("full/matmul", {"tokens": 3, "mode": "training"}, {}, 3 * 4 * 5 * 9),
        # tiles of 256 queries: the second sees all 300 keys, the first its own 256
        ("memory_efficient/chunked", {"tokens": 300, "causal": True}, {}, 4 * 5 * (256 * 256 + 44 * 300)),
        ("memory_efficient/chunked", {"tokens": 300}, {}, 4 * 5 * 300 * 300),
        ("local_window/masked", {"tokens": 7, "kv_tokens": 9}, {"window": 2}, 4 * 5 * 63),
        # tiles of 32 queries over window - 1 + 32 keys, the window's share made a multiple of 16
        ("local_window/tiled", {"tokens": 320, "causal": True}, {"window": 64}, 4 * 5 * 320 * (64 + 32)),
        ("blockwise_low_rank/merged", {"tokens": 64}, {"block": 8, "rank": 2}, 4 * 5 * 64 * (24 + 16)),
        ("linear_scan/recurrent", {"tokens": 3}, {}, 3 * (50 + 5) + 3 * (50 + 10)),
        ("linear_scan/chunked", {"tokens": 3}, {}, 3 * (50 + 5) + 3 * (50 + 10)),
    ],
)
def test_executed_flops_by_hand(name: str, fields: dict[str, Any], parameters: dict[str, int], flops: int) -> None:
    assert load(name).flops(Problem(**{"heads": 1, "head_dim": 5} | fields), parameters) == flops


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mode", ["forward", "training"])
@pytest.mark.parametrize("name", READY)
def test_no_variant_does_less_than_the_formula_asks(name: str, mode: str, causal: bool) -> None:
    if mode not in load(name).modes:
        pytest.skip(f"no {mode}")
    for tokens in (7, 300, 2000):
        problem = Problem(tokens, mode=mode, causal=causal)
        least = load(name).definition.useful_flops(problem, small_parameters(name))
        # Scores that are kept are not computed again in the backward pass: 3 instead of 3.5 times the forward.
        assert load(name).flops(problem, small_parameters(name)) >= least * (6 / 7 if mode == "training" else 1)
