"""What `attnscape check` tries besides what was asked for, and the mistakes that only this shows."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from torch import Tensor

from benchmarks import worker
from benchmarks.campaign import Request
from benchmarks.check_cases import further_cases, grouped, oblong, other_parameters
from benchmarks.measurement import Case
from benchmarks.worker import Bench, answer
from variants import Problem
from variants.catalogue import load, names
from variants.definition import Parameter
from variants.variant import Attention

BOTH = tuple(Problem(tokens=40, heads=4, head_dim=16, causal=causal) for causal in (False, True))


def of(*variants: str, problems: tuple[Problem, ...] = BOTH, **parameters: int) -> list[Case]:
    return further_cases(Request(variants, problems, parameters=parameters))


def test_a_variant_is_tried_on_groups_more_keys_and_other_parameters() -> None:
    heads, keys, window = of("local_window/tiled")
    assert (heads.heads, heads.kv_heads, heads.causal, heads.inputs) == (4, 2, True, "normal")
    assert (keys.tokens, keys.kv_tokens, keys.heads, keys.kv_heads) == (40, 61, 4, 4)
    assert [case.parameters for case in (heads, keys, window)] == [{"window": 256}, {"window": 256}, {"window": 21}]


def test_what_is_asked_for_already_or_held_is_not_tried_again() -> None:
    assert len(of("local_window/tiled", window=3)) == 2
    assert [case.parameters for case in of("blockwise_low_rank/merged", rank=2)[2:]] == [{"block": 64, "rank": 2}]
    assert grouped(Problem(tokens=8, heads=4, kv_heads=1)) is None
    assert oblong(Problem.of_length(8, mode="decode")) is None
    recorded = Request(("full/matmul",), BOTH, recorded=((BOTH[0], "file"),))
    assert further_cases(recorded) == []


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 7])
def test_a_grouped_problem_has_several_groups_of_several_heads(heads: int) -> None:
    problem = grouped(Problem(tokens=8, heads=heads))
    assert problem is not None and problem.kv_heads > 1 and problem.group > 1


def test_a_shape_that_a_variant_refuses_is_left_out_or_tried_with_the_other_mask() -> None:
    assert not of("memory_efficient/xformers")
    (heads, landmarks) = of("nystrom/landmarks")
    assert not heads.causal and not landmarks.causal and landmarks.parameters == {"landmarks": 21}


@pytest.mark.parametrize("name", names())
def test_every_parameter_of_every_definition_has_another_value(name: str) -> None:
    definition = load(name).definition
    usual = definition.resolve()
    changed = [
        {key for key, value in other.items() if value != usual[key]} for other in other_parameters(definition, {}, 300)
    ]
    assert changed == [{parameter.name} for parameter in definition.parameters]


def test_a_parameter_of_one_value_has_no_other() -> None:
    single = replace(load("full/matmul").definition, parameters=(Parameter("levels", 1, 1, 1, "levels"),))
    assert other_parameters(single, {}, 300) == []


def repeated(problem: Problem, window: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Key-value heads in the order 0 1 0 1, not 0 0 1 1."""
    plain = load("local_window/tiled").build(problem.with_(kv_heads=problem.heads), window=window)
    return plain(q, *(x.repeat(1, problem.group, 1, 1) for x in (k, v)))


def square(problem: Problem, window: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    plain = load("local_window/tiled").build(problem.with_(kv_tokens=problem.tokens), window=window)
    return plain(q, k[:, :, : q.shape[2]], v[:, :, : q.shape[2]])


def usual_window(problem: Problem, window: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return load("local_window/tiled").build(problem, window=256)(q, k, v)


@pytest.mark.parametrize(("wrong", "place"), [(repeated, 0), (square, 1), (usual_window, 2)])
def test_a_mistake_that_the_usual_problems_hide_is_seen(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., Tensor], place: int
) -> None:
    right = load("local_window/tiled")

    def build(problem: Problem, *, window: int) -> Attention:
        return lambda q, k, v: wrong(problem, window, q, k, v)

    asked = [Case.of(right.name, {"window": 256}, problem, "normal") for problem in BOTH]
    further = of("local_window/tiled")
    monkeypatch.setattr(worker, "load", lambda _: replace(right, build=build))
    found = [answer(Bench("default"), "prepare", (case, 1, False))["status"] for case in (*asked, *further)]
    assert found == ["ok"] * (2 + place) + ["wrong"] + ["ok"] * (2 - place)
