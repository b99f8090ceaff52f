"""How a kernel's tiles are chosen by their times, and what is said of the choice; the times are made up."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from variants import Problem
from variants.tile_search import WORTHWHILE_FLOPS, fastest, searched, telling
from variants.triton_launch import Launch, Tile, softmax_tiles
from variants.triton_scan import choices, planned, starts

A, B, C = Tile(128, 64, 8, 3), Tile(64, 64, 4, 2), Tile(64, 32, 4, 2)


class Plan(NamedTuple):
    window: int
    forward: Tile
    keys: Tile


def taking(times: dict[tuple[Tile, Tile], float], *starts: Plan) -> tuple[Plan, float, list[Plan]]:
    asked: list[Plan] = []

    def seconds(plan: Plan) -> float:
        asked.append(plan)
        return times[plan.forward, plan.keys]

    found, best = searched(starts or (Plan(7, A, A),), {"forward": [A, B, C], "keys": [A, B]}, seconds)
    return found, best, asked


def test_each_field_is_searched_with_the_best_of_those_before() -> None:
    found, best, asked = taking({(A, A): 3.0, (B, A): 2.0, (C, A): 4.0, (B, B): 1.0})
    assert (found, best) == (Plan(7, B, B), 1.0)
    assert [(plan.forward, plan.keys) for plan in asked] == [(A, A), (B, A), (C, A), (B, B)]


def test_a_later_tile_must_be_clearly_faster() -> None:
    found, _, _ = taking({(A, A): 1.0, (B, A): 0.98, (C, A): 0.99, (A, B): 0.96})
    assert found == Plan(7, A, B)


def test_what_a_card_cannot_launch_is_no_choice() -> None:
    found, _, _ = taking({(A, A): float("inf"), (B, A): 2.0, (C, A): float("inf"), (B, B): float("inf")})
    assert found == Plan(7, B, A)


@pytest.mark.parametrize(("wide", "window"), [(0.5, 9), (0.99, 7)])
def test_every_start_is_improved_and_the_best_is_taken(wide: float, window: int) -> None:
    times = {7: 1.0, 9: wide}
    plans = [Plan(7, A, A), Plan(9, A, A)]
    found, best = searched(plans, {"keys": [B]}, lambda plan: times[plan.window] * (2 if plan.keys == A else 1))
    assert (found, best) == (Plan(window, A, B), times[window])


@pytest.mark.parametrize(
    ("problem", "flops"),
    [
        (Problem(tokens=4096, dtype="bfloat16"), 2 * WORTHWHILE_FLOPS),
        (Problem(tokens=4096, dtype="float32", device="cuda"), 2 * WORTHWHILE_FLOPS),
        (Problem(tokens=16, dtype="bfloat16", device="cuda"), WORTHWHILE_FLOPS - 1),
    ],
    ids=["cpu", "float32", "short"],
)
def test_nothing_is_searched_without_a_card_or_for_little_work(problem: Problem, flops: int) -> None:
    def attend(*_: object) -> Tensor:
        raise AssertionError("was called")

    plans = [Plan(7, A, A), Plan(9, A, A)]
    assert fastest(problem, plans, {"forward": [A, B]}, flops, attend) is plans[0]


def test_the_choice_is_told() -> None:
    run = telling(lambda *given: given[0], "64×64", Launch(4, 3), A)
    assert run.__dict__["ran"] == "64×64, w4 s3, 128×64 w8 s3"
    assert run(torch.ones(1), torch.ones(1), torch.ones(1)) == 1


@pytest.mark.parametrize("mode", ["forward", "training"])
@pytest.mark.parametrize(("dtype", "widths"), [("bfloat16", [64, 128]), ("float16", [32]), ("float32", [32])])
def test_every_kernel_of_a_scan_has_choices(dtype: str, widths: list[int], mode: str) -> None:
    problem = Problem(tokens=64, head_dim=128, dtype=dtype, causal=True, mode=mode)
    plan = planned(problem, features=True)
    assert [start.columns for start in starts(problem, plan)] == widths and starts(problem, plan)[0] is plan
    found = choices(problem)
    assert found.pop("state_columns") == ([64, 32] if dtype == "bfloat16" else [32])
    assert list(found) == ["states", "queries", *(["keys"] if mode == "training" else [])]
    for name, launches in found.items():
        assert getattr(plan, name) in launches and len(set(launches)) == len(launches) == 6


@pytest.mark.parametrize("part", ["forward", "queries", "keys"])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_no_tile_is_tried_twice(part: str, head_dim: int) -> None:
    tiles = softmax_tiles(Problem(tokens=1024, head_dim=head_dim, dtype="bfloat16"), part)
    assert len(set(tiles)) == len(tiles)
