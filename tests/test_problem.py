"""A problem: what it fills in, what it refuses and with which words, and what follows from it."""

import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from variants import InvalidProblem, Problem
from variants.problem import DTYPE_BYTES, MODES


def test_defaults_follow_from_other_fields() -> None:
    problem = Problem(tokens=9, heads=6)
    assert (problem.kv_heads, problem.kv_tokens, problem.group, problem.offset) == (6, 9, 1, 0)
    assert (problem.dtype, problem.device, problem.causal, problem.mode) == ("float32", "cpu", False, "forward")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tokens": -1}, "tokens must be a whole number of at least 0, not -1"),
        ({"tokens": 2.0}, "tokens must be a whole number of at least 0, not 2.0"),
        ({"tokens": True}, "tokens must be a whole number of at least 0, not True"),
        ({"tokens": "many"}, "tokens must be a whole number of at least 0, not 'many'"),
        ({"tokens": None}, "tokens must be a whole number of at least 0, not None"),
        ({"kv_tokens": -2}, "kv_tokens must be a whole number of at least 0, not -2"),
        ({"batch": -1}, "batch must be a whole number of at least 0, not -1"),
        ({"heads": 0}, "heads must be a whole number of at least 1, not 0"),
        ({"heads": 4, "kv_heads": -4}, "kv_heads must be a whole number of at least 1, not -4"),
        ({"heads": 8, "kv_heads": 3}, "kv_heads must divide heads: 3 does not divide 8"),
        ({"heads": 2, "kv_heads": 4}, "kv_heads must divide heads: 4 does not divide 2"),
        ({"head_dim": 0}, "head_dim must be a whole number of at least 1, not 0"),
        ({"dtype": "float8"}, "dtype must be one of float64, float32, bfloat16, float16, not 'float8'"),
        ({"mode": "backward"}, "mode must be one of forward, training, decode, not 'backward'"),
        ({"device": "tpu"}, "device must be cpu, cuda or cuda:N, not 'tpu'"),
        ({"device": "cpu:0"}, "device must be cpu, cuda or cuda:N, not 'cpu:0'"),
        ({"device": "cuda:first"}, "device must be cpu, cuda or cuda:N, not 'cuda:first'"),
        ({"device": "cuda:"}, "device must be cpu, cuda or cuda:N, not 'cuda:'"),
        ({"device": ""}, "device must be cpu, cuda or cuda:N, not ''"),
    ],
)
def test_a_wrong_field_is_named_with_what_would_be_right(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidProblem) as caught:
        Problem(**{"tokens": 8} | fields)
    assert str(caught.value) == said


@pytest.mark.parametrize("fields", [{"tokens": 0}, {"tokens": 8, "kv_tokens": 0}, {"tokens": 8, "batch": 0}])
def test_empty_problems_exist(fields: dict[str, int]) -> None:
    assert Problem(**fields).query_bytes * Problem(**fields).key_bytes == 0


def test_a_problem_is_frozen_and_hashable() -> None:
    problem = Problem(tokens=8)
    with pytest.raises(FrozenInstanceError):
        problem.tokens = 9  # type: ignore[misc]
    assert {problem, Problem(tokens=8)} == {problem}


@pytest.mark.parametrize("mode", MODES)
def test_of_length_grows_the_keys(mode: str) -> None:
    problem = Problem.of_length(1000, mode=mode, heads=4, causal=True)
    assert (problem.length, problem.kv_tokens, problem.mode) == (1000, 1000, mode)
    assert problem.tokens == (1 if mode == "decode" else 1000)
    assert problem.offset == (999 if mode == "decode" else 0)
    assert problem.causal and problem.heads == 4


def test_of_length_validates() -> None:
    with pytest.raises(InvalidProblem, match="kv_tokens must be a whole number of at least 0, not -5"):
        Problem.of_length(-5, mode="decode")
    with pytest.raises(InvalidProblem, match="mode must be one of"):
        Problem.of_length(5, mode="sideways")


def test_with_replaces_and_keeps_a_square_problem_square() -> None:
    square = Problem(tokens=8, heads=4, kv_heads=2)
    assert square.with_(tokens=16) == Problem(tokens=16, heads=4, kv_heads=2)
    assert square.with_(tokens=16, kv_tokens=8).kv_tokens == 8
    assert square.with_(causal=True, dtype="bfloat16") == Problem(
        tokens=8, heads=4, kv_heads=2, causal=True, dtype="bfloat16"
    )
    assert Problem(tokens=8, kv_tokens=32).with_(tokens=4).kv_tokens == 32
    with pytest.raises(InvalidProblem, match="does not divide"):
        square.with_(kv_heads=3)


@pytest.mark.parametrize(
    ("device", "kind"), [("cpu", "cpu"), ("cuda", "cuda"), ("cuda:0", "cuda"), ("cuda:13", "cuda")]
)
def test_devices(device: str, kind: str) -> None:
    assert Problem(tokens=8, device=device).device_type == kind


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_bytes_are_those_of_the_tensors(dtype: str) -> None:
    problem = Problem(tokens=3, kv_tokens=7, batch=2, heads=6, kv_heads=2, head_dim=5, dtype=dtype)
    element = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}[dtype]
    assert problem.query_bytes == math.prod((2, 6, 3, 5)) * element
    assert problem.key_bytes == math.prod((2, 2, 7, 5)) * element
    assert problem.input_output_bytes == 2 * (problem.query_bytes + problem.key_bytes)
    assert problem.with_(mode="training").input_output_bytes == 2 * problem.input_output_bytes
