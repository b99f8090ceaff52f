"""The keys in parts, with parts so small that every way for them to end is met."""

from itertools import product

import pytest

from benchmarks.accuracy import relative_error
from tests.ready_variants import call, draw, reference
from variants import Problem
from variants.memory_efficient import split_kv

NAME = "memory_efficient/split_kv"


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("causal", [False, True])
def test_parts_of_four_keys_make_up_the_whole(monkeypatch: pytest.MonkeyPatch, causal: bool, rows: int) -> None:
    monkeypatch.setattr(split_kv, "KEYS", 4)
    monkeypatch.setattr(split_kv, "ROWS", rows)
    for tokens, kv_tokens, kv_heads in product((1, 2, 3, 7), (1, 3, 4, 5, 8, 9, 14), (1, 4)):
        problem = Problem(tokens, kv_tokens=kv_tokens, heads=4, kv_heads=kv_heads, head_dim=8, causal=causal)
        problem = problem.with_(dtype="float64", batch=2)
        inputs = draw(problem)
        assert relative_error(call(NAME, problem, inputs), reference(NAME, problem, inputs)) < 1e-13


def test_queries_that_share_keys_read_them_once_and_each_step_holds_what_its_queries_see() -> None:
    plan = split_kv.steps(Problem(130, kv_tokens=130 + 511, heads=4, kv_heads=2, causal=True))
    assert [(step.rows.start, step.rows.stop) for step in plan] == [(0, 64), (64, 128), (128, 130)]
    assert [(step.parts, step.stop) for step in plan] == [(1, 575), (1, 639), (1, 641)]
    first = plan[0]
    assert first.bias is not None and first.bias.shape == (2 * 64, 63)  # two heads, and the keys after the first part
    assert first.blind is not None and first.blind.nonzero().flatten().tolist() == [0, 64]
    assert plan[1].blind is None
    (one,) = split_kv.steps(Problem.of_length(5000, mode="decode", causal=True))
    assert (one.parts, one.stop, one.bias, one.blind) == (9, 5000, None, None)
    assert split_kv.steps(Problem(3, kv_tokens=0, causal=True)) == []
