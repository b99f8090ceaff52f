"""Dropout: the draws number by number and in distribution, and the oracle that they thin out."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from tests.ready_variants import call
from variants import Problem
from variants.catalogue import load
from variants.dropout import Draws, draws

DEFINITION = load("dropout/dense").definition
FULL = load("full/matmul").definition


def mixed(state: int) -> int:
    """The first output of SplitMix64 (Steele, Lea and Flood, 2014)."""
    x = (state + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def is_kept(seed: int, dropped_percent: int, item: int, head: int, i: int, j: int) -> bool:
    row = mixed(mixed(mixed(mixed(2 * seed) + item) + head) + i)
    column = mixed(mixed(2 * seed + 1) + j)
    x = (row ^ column) % 2**32
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return (x + 2**31) % 2**32 >= dropped_percent * 2**32 // 100


def whole_mask(drawn: Draws) -> Tensor:
    return drawn.kept((slice(None),))


def drawn_over(batch: int, heads: int, tokens: int, keys: int, dropped_percent: int, seed: int = 0) -> Draws:
    return draws(batch, heads, tokens, keys, dropped_percent=dropped_percent, seed=seed, device="cpu")


def inputs(batch: int, heads: int, tokens: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((heads, tokens, 3), (heads, keys, 3), (heads, keys, 4))
    q, k, v = (torch.randn(batch, *shape, dtype=torch.float64) for shape in shapes)
    return q, k, v


# ---- the draws


def test_the_mixer_is_splitmix64() -> None:
    """Its published first outputs from the state 1234567."""
    state, outputs = 1234567, []
    for _ in range(3):
        outputs.append(mixed(state))
        state = (state + 0x9E3779B97F4A7C15) % 2**64
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("dropped_percent", [0, 1, 50, 99])
@pytest.mark.parametrize("seed", [0, 7, 2**30])
def test_each_draw_is_the_hash_of_its_place(seed: int, dropped_percent: int) -> None:
    kept = whole_mask(drawn_over(2, 3, 4, 9, dropped_percent, seed))
    for item, head, row, j in product(range(2), range(3), range(4), range(9)):
        expected = is_kept(seed, dropped_percent, item, head, row + 5, j)
        assert bool(kept[item, head, row, j]) is expected


def test_more_queries_than_keys_stand_before_the_first_key() -> None:
    kept = whole_mask(drawn_over(1, 1, 5, 2, 50))
    for row, j in product(range(5), range(2)):
        assert bool(kept[0, 0, row, j]) is is_kept(0, 50, 0, 0, row - 3, j)


def test_a_part_of_the_mask_is_drawn_as_in_the_whole() -> None:
    drawn = drawn_over(2, 3, 50, 60, 30)
    part = drawn.kept((1, 2, slice(7, 21)), slice(11, 40))
    assert torch.equal(part, whole_mask(drawn)[1, 2, 7:21, 11:40])
    longer = whole_mask(drawn_over(2, 4, 90, 100, 30))  # the same positions
    assert torch.equal(longer[:, :3, :50, :60], whole_mask(drawn))


@pytest.mark.parametrize("dropped_percent", [1, 10, 50, 99])
def test_as_many_are_struck_out_as_are_said_to_be(dropped_percent: int) -> None:
    p = dropped_percent / 100
    kept = whole_mask(drawn_over(2, 4, 300, 310, dropped_percent)).double()
    deviation = math.sqrt(p * (1 - p))
    assert abs(kept.mean() - (1 - p)) < 4 * deviation / math.sqrt(kept.numel())
    for axes, count in (((0, 1, 2), 2400), ((0, 1, 3), 2480), ((2, 3), 93_000)):  # by key, by query, by head
        means = kept.mean(axes)
        assert (means - (1 - p)).abs().max() < 5 * deviation / math.sqrt(count)
        assert means.std() == pytest.approx(deviation / math.sqrt(count), rel=0.75)


def test_draws_of_different_pairs_heads_items_and_seeds_are_independent() -> None:
    kept = whole_mask(drawn_over(2, 2, 256, 256, 50)).double() - 0.5
    other = whole_mask(drawn_over(2, 2, 256, 256, 50, seed=1)).double() - 0.5
    pairs = {
        "key": (kept[..., 1:], kept[..., :-1]),
        "query": (kept[:, :, 1:], kept[:, :, :-1]),
        "both": (kept[:, :, 1:, 1:], kept[:, :, :-1, :-1]),
        "mirrored": (kept, kept.mT),
        "head": (kept[:, 0], kept[:, 1]),
        "item": (kept[0], kept[1]),
        "seed": (kept, other),
        # four corners of a rectangle: what a mask from sums of a query's and a key's numbers would fail
        "corners": (kept[:, :, 1:, 1:] * kept[:, :, :-1, :-1], kept[:, :, 1:, :-1] * kept[:, :, :-1, 1:]),
        "far": (kept[:, :, 64:, 128:] * kept[:, :, :-64, :-128], kept[:, :, 64:, :-128] * kept[:, :, :-64, 128:]),
    }
    for name, (a, b) in pairs.items():
        product_of = (a / a.square().mean().sqrt()) * (b / b.square().mean().sqrt())
        distinct = product_of.numel() / (2 if name == "mirrored" else 1)
        assert abs(product_of.mean()) < 4 / math.sqrt(distinct), name


# ---- the oracle


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("tokens", "keys"), [(1, 1), (7, 7), (3, 9), (9, 3), (5, 0), (0, 5)])
def test_the_oracle_is_the_formula(tokens: int, keys: int, causal: bool) -> None:
    q, k, v = inputs(2, 2, tokens, keys)
    parameters = {"dropped_percent": 40, "seed": 5}
    got = DEFINITION.reference(q, k, v, causal=causal, parameters=parameters)
    for item, head, row in product(range(2), range(2), range(tokens)):
        i = row + keys - tokens
        seen = range(min(keys, max(0, i + 1)) if causal else keys)
        scores = [math.exp(float(q[item, head, row] @ k[item, head, j]) / math.sqrt(3)) for j in seen]
        expected = torch.zeros(4, dtype=torch.float64)
        for j, score in zip(seen, scores, strict=True):
            if is_kept(5, 40, item, head, i, j):
                expected += score / math.fsum(scores) / 0.6 * v[item, head, j]
        torch.testing.assert_close(got[item, head, row], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("causal", [False, True])
def test_with_nothing_struck_out_it_is_full_attention(causal: bool) -> None:
    q, k, v = inputs(2, 3, 9, 11)
    got = DEFINITION.reference(q, k, v, causal=causal, parameters={"dropped_percent": 0})
    torch.testing.assert_close(got, FULL.reference(q, k, v, causal=causal), rtol=1e-12, atol=1e-13)


def test_large_logits_neither_overflow_nor_lose_a_row() -> None:
    q, k, v = inputs(1, 2, 8, 8)
    got = DEFINITION.reference(100 * q, k, v, causal=True)
    kept = DEFINITION.reference(100 * q, k, torch.ones_like(v), causal=True)
    assert got.isfinite().all()
    assert kept.amax() <= 1 / 0.9 + 1e-12


def test_some_rows_are_those_of_all() -> None:
    q, k, v = inputs(2, 3, 13, 17)
    everything = DEFINITION.reference(q, k, v, causal=True)
    for chosen in ([12, 3, 3, 0], []):
        rows = torch.tensor(chosen, dtype=torch.int64)
        some = DEFINITION.reference(q, k, v, causal=True, rows=rows)
        torch.testing.assert_close(some, everything[:, :, rows], rtol=1e-13, atol=1e-14)


# ---- in distribution


@pytest.mark.parametrize("name", ["dropout/dense", "dropout/chunked"])
@pytest.mark.parametrize("dropped_percent", [10, 60])
def test_over_seeds_the_mean_is_full_attention_and_the_variance_that_of_the_struck_weights(
    name: str, dropped_percent: int
) -> None:
    """The draws of the pairs are independent: Var o_i = p/(1 − p) Σ_j P_ij² v_j²."""
    items, seeds = 250, 6  # equal items have draws of their own
    problem = Problem(6, batch=items, heads=2, kv_tokens=9, head_dim=4, causal=True, dtype="float64")
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 4, generator=generator, dtype=torch.float64) for n in (6, 9, 9))
    inputs = tuple(x.expand(items, -1, -1, -1) for x in (q, k, v))
    outs = torch.cat(
        [call(name, problem, inputs, {"dropped_percent": dropped_percent, "seed": seed}) for seed in range(seeds)]
    )
    weights = FULL.reference(q, k, torch.eye(9, dtype=torch.float64).expand(1, 2, 9, 9), causal=True)
    p = dropped_percent / 100
    variance = p / (1 - p) * weights.square() @ v.square()
    strayed = (outs.mean(0) - FULL.reference(q, k, v, causal=True)).abs() / (variance / len(outs)).sqrt()
    assert strayed.max() < 4.5  # of 48 figures; a standard deviation is 1
    assert strayed.square().mean() == pytest.approx(1, abs=0.6)
    torch.testing.assert_close(outs.var(0), variance[0], rtol=0.25, atol=0)
    assert (outs.var(0) / variance[0]).mean() == pytest.approx(1, abs=0.04)
