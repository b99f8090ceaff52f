"""Tuning: the space of legal points, the samplers' finds on tabulated toys, and the command from end to end."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import attnscape
from benchmarks.accuracy import measure_errors
from benchmarks.campaign import InvalidRequest
from benchmarks.capture import recording
from benchmarks.inputs import make_inputs
from benchmarks.parameter_errors import ErrorMeter, sampled_rows
from benchmarks.parameter_search import BEST, Found, Limits, search
from benchmarks.parameter_space import MOST_POINTS, Point, Space, space_of
from benchmarks.sampler_trials import Grid, regret_of
from tests.results_builder import landscape, write
from variants import Problem
from variants.catalogue import load, names
from variants.definition import InvalidParameter

PARAMETRIC = sorted({name.partition("/")[0]: name for name in names() if load(name).definition.parameters}.values())

SIDES = (12, 15)
TOY = Space(("a", "b"), tuple(tuple(2**i for i in range(side)) for side in SIDES), (), {})
TOY = Space(TOY.names, TOY.levels, tuple((a, b) for a in TOY.levels[0] for b in TOY.levels[1] if a * b >= 4), {})


def cost(point: Point) -> float:
    return 100.0 + 3 * point[0] + point[1]


def error(point: Point) -> float | str:
    """Falls in both; a corner has no error at all."""
    return "no such form" if point[0] == point[1] == 1 else 1 / (point[0] ** 0.5 * point[1] ** 0.25)


def cheapest(limit: float) -> float:
    return min(cost(point) for point in TOY.points if isinstance(found := error(point), float) and found <= limit)


def counted(calls: list[Point]) -> Callable[[Point], float | str]:
    def measured(point: Point) -> float | str:
        calls.append(point)
        return error(point)

    return measured


# ---- the space


@pytest.mark.parametrize("name", PARAMETRIC)
@pytest.mark.parametrize("length", [7, 300, 70_000])
def test_every_point_is_legal_no_longer_than_the_sequence_and_counted_once(name: str, length: int) -> None:
    definition = load(name).definition
    space = space_of(definition, length, heads=8)
    assert 0 < len(space.points) == len(set(space.points)) <= MOST_POINTS
    for point in space.points[:: 1 + len(space.points) // 50]:
        assert definition.resolve(space.parameters(point)) == space.parameters(point)
    for parameter, values in zip(space.names, space.levels, strict=True):
        default = next(p.default for p in definition.parameters if p.name == parameter)
        assert list(values) == sorted(set(values))
        if parameter != "full_heads":  # heads in a thousand have nothing to do with the length
            assert values[-1] <= max(length, 1)
            assert all(value % 16 == 0 or value in (default, values[-1]) for value in values if value > 16)
            assert default < 32 or len(values) == 1 or all(value % 16 == 0 or value == default for value in values)


def test_the_values_are_powers_of_two_and_the_halves_between_them() -> None:
    window = space_of(load("local_window/tiled").definition, 300, heads=8)
    assert window.levels == ((16, 32, 48, 64, 96, 128, 192, 256),)
    blocks = space_of(load("blockwise_low_rank/merged").definition, 64, heads=8)
    assert blocks.levels == ((16, 32, 48, 64), (1, 2, 3, 4, 6, 8, 12, 16, 32, 48, 64))
    assert len(blocks.points) == sum(block % rank == 0 for block in blocks.levels[0] for rank in blocks.levels[1])
    assert (48, 32) not in blocks.points
    assert space_of(load("hybrid/by_heads").definition, 64, heads=4).levels[0] == (0, 250, 500, 750, 1000)


def test_what_is_held_or_says_what_the_inputs_are_is_not_tuned() -> None:
    definition = load("blockwise_low_rank/merged").definition
    held = space_of(definition, 128, heads=8, held={"rank": 8})
    assert (held.names, held.held) == (("block",), {"rank": 8})
    assert all(block % 8 == 0 for (block,) in held.points)
    assert space_of(definition, 128, 8, {"rank": 8, "block": 64}).points == ()
    with pytest.raises(InvalidParameter, match="rank must be a whole number"):
        space_of(definition, 128, 8, {"rank": 0})
    image = space_of(load("neighborhood_2d/tiled").definition, 128, heads=8)
    assert image.names == ("window", "dilation")
    assert image.held == {"grid_width": 64}


def test_the_nearest_point_is_legal_and_not_taken() -> None:
    space = space_of(load("blockwise_low_rank/merged").definition, 64, heads=8)
    assert space.points[space.nearest(space.place((48, 12)), set())] == (48, 12)
    assert space.points[space.nearest(space.place((48, 12)), {space.points.index((48, 12))})] != (48, 12)
    everything_else = set(range(len(space.points))) - {5}
    assert space.nearest((3.0, 10.0), everything_else) == 5


# ---- the search


@pytest.mark.parametrize("limit", [0.9, 0.3, 0.1, 0.02])
def test_the_exhaustive_search_finds_the_cheapest_three_and_looks_at_none_beyond(limit: float) -> None:
    calls: list[Point] = []
    found = search(TOY, cost, counted(calls), Limits(limit), "exhaustive")
    within = sorted(cost(point) for point in TOY.points if isinstance(e := error(point), float) and e <= limit)
    assert [trial.cost for trial in found.best] == within[:BEST]
    assert found.complete
    assert len(calls) == len(found.trials) <= sum(cost(point) <= within[BEST - 1] for point in TOY.points)
    assert all(trial.error is not None and trial.error <= limit for trial in found.best)


@pytest.mark.parametrize("sampler", ["gp", "pso", "tpe", "random"])
def test_samplers_keep_the_limit_and_their_budget_and_repeat_themselves(sampler: str) -> None:
    calls: list[Point] = []
    runs = [search(TOY, cost, counted(calls), Limits(0.2, 15), sampler, seed=3) for _ in range(2)]
    assert runs[0] == runs[1]
    assert len(calls) == 30
    assert len(set(calls)) == 15  # no point twice within a run
    assert all(point in TOY.points for point in calls)
    assert runs[0].best
    assert all(trial.error is not None and trial.error <= 0.2 for trial in runs[0].best)


@pytest.mark.parametrize(("sampler", "within"), [("gp", 1.1), ("pso", 1.5)])
def test_gaussian_process_and_swarm_come_near_the_cheapest(sampler: str, within: float) -> None:
    found = search(TOY, cost, error, Limits(0.1, 25), sampler, seed=1)
    assert found.best[0].cost <= within * cheapest(0.1)
    assert not found.complete


def test_the_constraint_is_what_leads_the_gaussian_process(monkeypatch: pytest.MonkeyPatch) -> None:
    import benchmarks.parameter_search as module

    led = search(TOY, cost, error, Limits(0.05, 20), "gp", seed=0)
    monkeypatch.setattr(module, "violation_of", lambda *_: -1.0)  # all the same to it
    blind = search(TOY, cost, error, Limits(0.05, 20), "gp", seed=0)

    def share(found: Found) -> float:
        return sum(trial.error is not None and trial.error <= 0.05 for trial in found.trials) / len(found.trials)

    assert share(led) > 1.5 * share(blind)
    assert led.best[0].cost < 1.1 * cheapest(0.05)


def test_where_nothing_keeps_the_limit_the_nearest_is_named() -> None:
    found = search(TOY, cost, error, Limits(1e-9), "exhaustive")
    assert found.best == ()
    assert found.complete
    assert found.nearest is not None
    assert found.nearest.parameters == {"a": 2**11, "b": 2**14}
    assert len(found.trials) == len(TOY.points) == found.points
    hopeless = search(TOY, cost, lambda _: "no such form", Limits(1.0, 5), "random")
    assert hopeless.best == ()
    assert hopeless.nearest is None
    assert {trial.reason for trial in hopeless.trials} == {"no such form"}


def test_a_search_without_time_evaluates_once_and_does_not_call_itself_complete() -> None:
    for sampler in ("exhaustive", "random"):
        found = search(TOY, cost, error, Limits(0.01, 20, seconds=0.0), sampler)
        assert (len(found.trials), found.complete) == (1, False)


def test_auto_is_exhaustive_below_200_points_and_the_gaussian_process_from_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert search(TOY, cost, error, Limits(0.5)).sampler == "exhaustive"
    points = tuple((a, b) for a in range(20) for b in range(10))
    large = Space(("a", "b"), (tuple(range(20)), tuple(range(10))), points, {})
    assert search(large, lambda point: 1.0 + sum(point), lambda _: 0.1, Limits(0.5, 3)).sampler == "gp"
    for package in ("optuna", "nevergrad"):
        monkeypatch.setitem(sys.modules, package, None)
    for sampler, package in (("gp", "optuna"), ("auto", "optuna"), ("pso", "nevergrad")):
        with pytest.raises(InvalidRequest, match=rf"needs {package}, .* pip install 'attnscape\[tune\]'"):
            search(large, sum, lambda _: 0.1, Limits(0.5, 3), sampler)
    assert search(large, sum, lambda _: 0.1, Limits(0.5, 3), "random").best


def test_regret_is_measured_from_the_true_optimum() -> None:
    grid = Grid("toy", TOY, {point: cost(point) for point in TOY.points}, {point: error(point) for point in TOY.points})
    at_most = sorted(map(cost, TOY.points))[math.ceil(0.2 * len(TOY.points)) - 1]
    assert grid.cheapest(grid.limit(0.2)) == cheapest(grid.limit(0.2)) <= at_most
    assert cheapest(grid.limit(0.2) / 1.2) > at_most
    found = regret_of(grid, 0.2, "random", 10, range(4))
    assert len(found.regrets) + found.missed == 4
    assert all(regret >= 0 for regret in found.regrets)
    assert regret_of(grid, 0.2, "random", len(TOY.points), [0]).regrets == (0.0,)


# ---- errors


def test_the_meter_agrees_with_a_measurement_where_all_rows_are_taken() -> None:
    problem = Problem(tokens=96, batch=1, heads=4, kv_heads=2, head_dim=16, causal=True)
    definition, parameters = load("local_window/tiled").definition, {"window": 16}
    inputs = make_inputs(problem, "smooth")
    out = torch.zeros(1, 4, 96, 16)
    measured = measure_errors(out, inputs, problem, definition, parameters)
    assert ErrorMeter(problem, ["smooth"]).error(definition, parameters) == pytest.approx(measured.approximation, 1e-12)


def test_the_meter_takes_the_worst_kind_and_computes_each_point_once(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(tokens=64, heads=2, head_dim=16)
    definition = load("local_window/tiled").definition
    alone = [ErrorMeter(problem, [kind]).error(definition, {"window": 16}) for kind in ("normal", "smooth")]
    meter = ErrorMeter(problem, ["normal", "smooth"])
    assert meter.error(definition, {"window": 16}) == max(alone, key=float)
    monkeypatch.setattr(meter, "inputs", [])
    assert meter.error(definition, {"window": 16}) == max(alone, key=float)
    causal_only = load("moba/routed").definition
    assert "causal" in str(ErrorMeter(problem, ["normal"]).error(causal_only, causal_only.resolve()))


def test_of_long_problems_a_few_rows_and_eight_heads_are_taken() -> None:
    problem = Problem(tokens=5000, batch=2, heads=12, kv_heads=6, head_dim=4)
    meter = ErrorMeter(problem, ["normal"])
    assert [tuple(x.shape) for x in meter.inputs[0]] == [(1, 8, 5000, 4), (1, 4, 5000, 4), (1, 4, 5000, 4)]
    assert 16 <= len(sampled_rows(problem)) * 8 * 5000 / 5000 / 8 <= 2**22 / (8 * 5000)
    assert torch.equal(sampled_rows(problem), sampled_rows(problem))
    q = make_inputs(problem, "normal")[0]
    assert torch.equal(meter.inputs[0][0][0, 2], q[0, 2])  # query heads stay with their keys


# ---- the command

SMALL = ("--tokens", 128, "--heads", 2, "--head-dim", 32, "--seconds", 2)


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = attnscape.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One recorded call of the small shape."""
    file = tmp_path_factory.mktemp("recorded") / "q.safetensors"
    with recording(file):
        torch.nn.functional.scaled_dot_product_attention(
            *make_inputs(Problem(tokens=128, heads=2, head_dim=32), "smooth")
        )
    return file


def test_tuned_points_are_measured_once_and_offered_by_choose(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results"
    command = ("tune", "--variants", "local_window/tiled,full/matmul", "--inputs", recorded, "--seconds", 2)
    command = (*command, "--results", folder)
    status, out, _ = call(capsys, *command, "--max-error", 0.8, "--json")
    found = json.loads(out)
    tuned = {one["variant"]: one for one in found["tuned"]}
    assert status == 0
    assert (found["problem"]["tokens"], found["problem"]["heads"], found["problem"]["head_dim"]) == (128, 2, 32)
    (kind,) = found["kinds"]
    assert kind.startswith(f"{recorded}#0@")
    assert "exact" in tuned["full/matmul"]["reason"]
    window = tuned["local_window/tiled"]
    assert (window["sampler"], window["points"], window["complete"]) == ("exhaustive", 6, True)
    assert window["best"]["error"] <= 0.8
    assert window["best"]["seconds"] > 0
    timed = [point for point in window["measured"] if not point["reason"]]  # a busy machine may spoil one
    assert window["best"] in timed
    for point in timed:  # at this length all rows are taken while searching, too
        assert point["error"] == pytest.approx(point["estimated_error"], rel=1e-6)
    assert (len(found["new_rows"]), found["already_there"]) == (2 * len(window["measured"]), 0)

    status, out, err = call(capsys, *command, "--max-error", 0.8)
    assert status == 0
    assert f"0 new rows, {2 * len(window['measured'])} known ones" in out
    assert f"local_window/tiled (window {window['best']['parameters']['window']})" in out

    shape = ("--tokens", 128, "--heads", 2, "--head-dim", 32, "--inputs", kind)
    status, out, _ = call(capsys, "choose", "--results", folder, *shape, "--max-error", 0.8, "--json")
    candidates = {one["parameters"]["window"] for one in json.loads(out)["fitting"]}
    assert status == 0
    assert candidates == {point["parameters"]["window"] for point in timed}


def test_where_no_parameters_do_the_nearest_error_is_said_and_nothing_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results"
    command = ("tune", *SMALL, "--variants", "local_window/tiled", "--results", folder, "--inputs", "normal")
    status, out, err = call(capsys, *command, "--max-error", 1e-5)
    assert status == 1
    assert "No variant keeps an error of 1e-05 on normal inputs." in out
    assert "window 128" in out
    assert "6 of 6, exhaustive" in out
    assert not folder.exists()


def test_a_file_without_calls_of_the_length_is_one_line(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("tune", "--inputs", recorded, "--max-error", 0.9, "--results", tmp_path / "results")
    status, out, err = call(capsys, *command, "--tokens", 64)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "holds no call of 64 tokens, but of 128" in err
    status, out, err = call(capsys, *command, "--inputs", f"{recorded},normal")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "takes one file, or one kind" in err


def test_choose_tunes_first_where_it_is_asked_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import benchmarks.parameter_tuning as module

    wishes: list[module.Wish] = []

    def recorded(wish: module.Wish, out: Path, *_: object) -> None:
        wishes.append(wish)
        write(out, landscape())

    monkeypatch.setattr(module, "tune", recorded)
    command = ("choose", "--results", tmp_path / "results", "--tokens", 1024, "--tune")
    status, out, _ = call(capsys, *command, "--max-error", 0.5, "--inputs", "smooth")
    assert status == 0
    assert "Take " in out
    (wish,) = wishes
    assert (wish.problem, wish.kinds, wish.max_error) == (Problem(tokens=1024), ("smooth",), 0.5)
    assert set(wish.variants) == set(names())
    for words in ((), ("--max-error", 0.5, "--card", "H200")):
        status, out, err = call(capsys, *command, *words)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "--tune needs --max-error" in err
    assert len(wishes) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--max-error", "0"), "--max-error must be a positive finite number, not 0"),
        (("--max-error", "nan"), "--max-error must be a positive finite number, not nan"),
        (("--max-error", "-1"), "--max-error must be"),
        (("--max-error", "inf"), "--max-error must be"),
        (("--max-error", "few"), "'--max-error': Input should be a valid number"),
        (("--max-error", "0.1", "--sampler", "swarm"), "--sampler must be one of auto, gp, tpe, pso, random"),
        (("--max-error", "0.1", "--variants", "full/matmul"), "nothing to tune: full/matmul: exact attention"),
        (("--max-error", "0.1", "--variants", "linear_scan"), "it has no parameters"),
        (("--max-error", "0.1", "--variants", "temperature"), "its work does not depend on percent"),
        (("--max-error", "0.1", "--variants", "no_such"), "unknown variant 'no_such'"),
        (("--max-error", "0.1", "--set", "window=0"), "window must be a whole number from 1"),
        (("--max-error", "0.1", "--set", "wingspan=8"), "no chosen variant has a parameter 'wingspan'"),
        (("--max-error", "0.1", "--set", "window=16"), "none of its parameters is left to tune"),
        (("--max-error", "0.1", "--inputs", "nonsense"), "inputs must be one of"),
        (("--max-error", "0.1", "--inputs", "nowhere.safetensors"), "nowhere.safetensors: No such file"),
        (("--max-error", "0.1", "--evaluations", "0"), "--evaluations must be positive"),
        (("--max-error", "0.1", "--seconds", "nan"), "--seconds must be positive"),
        (("--max-error", "0.1", "--tokens", "-3"), "tokens"),
        (("--max-error", "0.1", "--device", "cuda:77"), "CUDA device"),
        (("--max-error", "0.1", "--mode", "sideways"), "mode must be one of"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    usual: dict[str, Any] = {"--tokens": 64, "--variants": "local_window/tiled", "--results": tmp_path / "results"}
    asked = usual | dict(zip(words[::2], words[1::2], strict=True))
    status, out, err = call(capsys, "tune", *(word for option in asked.items() for word in option))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("attnscape: ")
    assert said in err
    assert not (tmp_path / "results").exists()


def test_a_missing_package_and_a_missing_length_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, err = call(capsys, "tune", "--max-error", "0.1", "--results", tmp_path / "results")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "--tokens is missing" in err
    monkeypatch.setitem(sys.modules, "optuna", None)
    command = ("tune", *SMALL, "--variants", "local_window/tiled", "--max-error", 0.1, "--sampler", "gp")
    status, out, err = call(capsys, *command, "--results", tmp_path / "results")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "--sampler gp needs optuna, which is not installed: pip install 'attnscape[tune]'" in err


def test_a_file_that_is_no_recording_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plain.safetensors"
    save_file({"x": torch.zeros(2)}, file)
    status, out, err = call(capsys, "tune", "--inputs", file, "--max-error", 0.1, "--results", tmp_path / "results")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "no recording of `attnscape capture`" in err
