"""Two sets of measurements side by side, the history of asv's figures, and the commands for both."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import scipy.stats
from asv.util import write_json

import attnscape
from reports.asv_results import read_commits, readings_of_commit
from reports.change_points import LEAST_PART, change_points
from reports.comparison import (
    FALSE_ALARMS,
    Comparison,
    Reading,
    Readings,
    compare,
    interval,
    readings_of_rows,
    time_verdict,
)
from reports.history import find_steps
from reports.history_trials import of_asv, ours, score
from reports.records import ResultsError
from tests.results_builder import MACHINE, as_rows, landscape, measured, write

VARIANT = "local_window/tiled"


def side(ratio: float, *, spread: float = 0.003, noise: float | None = 0.005, **fields: Any) -> Readings:
    """One case whose ratio's 95 % interval reaches `spread` to either side."""
    reading = Reading(
        "ok", ratio=ratio, low=ratio * math.exp(-spread), high=ratio * math.exp(spread), baseline="b", **fields
    )
    return Readings("side", "machine", {"case": reading}, noise)


def verdicts(comparison: Comparison) -> dict[str, str]:
    return {line.quantity: line.verdict for line in comparison.lines}


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [(1.0, "SAME"), (1.03, "AMBIGUOUS"), (1.10, "SLOW"), (0.90, "FAST"), (2.0, "SLOW"), (0.97, "AMBIGUOUS")],
)
def test_the_verdict_follows_the_interval(ratio: float, verdict: str) -> None:
    assert verdicts(compare(side(1.0), side(ratio))) == {"time": verdict}


def test_a_small_change_is_no_verdict_however_sure() -> None:
    assert time_verdict(0.02, 0.01, 0.03, 0.05) == "SAME"
    assert time_verdict(0.02, 0.01, 0.12, 0.05) == "AMBIGUOUS"
    assert time_verdict(0.06, 0.01, 0.11, 0.05) == "SLOW"
    assert time_verdict(-0.06, -0.11, -0.01, 0.05) == "FAST"
    assert time_verdict(0.06, -0.01, 0.13, 0.05) == "AMBIGUOUS"


def test_noise_of_either_kind_hides_a_change() -> None:
    assert verdicts(compare(side(1.0), side(1.1)))["time"] == "SLOW"
    assert verdicts(compare(side(1.0, spread=0.2), side(1.1)))["time"] == "AMBIGUOUS"
    assert verdicts(compare(side(1.0, noise=0.1), side(1.1)))["time"] == "AMBIGUOUS"


def drawn(random_: random.Random, cases: int, *, noise: float, factor: float = 1.0) -> Readings:
    """Ratios that scatter from process to process by `noise` and from round to round by half of it."""
    readings = {}
    for number in range(cases):
        ratio = factor * math.exp(random_.gauss(0, noise) + random_.gauss(0, noise / 2))
        half = 1.96 * noise / 2
        low, high = ratio * math.exp(-half), ratio * math.exp(half)
        readings[str(number)] = Reading("ok", ratio=ratio, low=low, high=high, baseline="b")
    return Readings("drawn", "machine", readings, noise)


@pytest.mark.parametrize("cases", [1, 40])
def test_equals_are_seldom_called_slow_or_fast_however_many_they_are(cases: int) -> None:
    random_ = random.Random(cases)
    tries = 400
    false = 0
    for _ in range(tries):
        found = compare(drawn(random_, cases, noise=0.04), drawn(random_, cases, noise=0.04))
        false += bool(found.count("SLOW") or found.count("FAST"))
    assert false / tries < 5 * FALSE_ALARMS


def of_processes(*ratios: float) -> Readings:
    """One case that was timed in as many processes; its other figures must not count."""
    reading = Reading("ok", ratio=fmean(ratios), low=0.1, high=10.0, baseline="b", processes=ratios)
    return Readings("side", "machine", {"case": reading}, 0.5)


def lucky(random_: random.Random, count: int, noise: float, factor: float = 1.0) -> Readings:
    return of_processes(*(factor * math.exp(random_.gauss(0, noise)) for _ in range(count)))


def test_several_processes_tell_a_cases_own_noise() -> None:
    steady, spread = (0.995, 1.005, 1.0, 0.998, 1.002), (0.7, 1.4, 1.0, 0.9, 1.1)
    slower = tuple(1.1 * ratio for ratio in steady)
    assert verdicts(compare(of_processes(*steady), of_processes(*slower))) == {"time": "SLOW"}
    assert verdicts(compare(of_processes(*slower), of_processes(*steady))) == {"time": "FAST"}
    assert verdicts(compare(of_processes(*steady), of_processes(*steady))) == {"time": "SAME"}
    assert verdicts(compare(of_processes(*spread), of_processes(*slower))) == {"time": "AMBIGUOUS"}
    (line,) = compare(of_processes(*steady), of_processes(*slower)).lines
    assert line.low is not None and line.high is not None and line.low < 1.1 < line.high
    assert line.change == pytest.approx(1.1)


def test_their_interval_is_welchs() -> None:
    a, b = (1.0, 1.02, 0.97, 1.01, 1.03), (1.2, 1.1, 1.15, 1.18)
    beyond = 0.01
    (change, low, high) = interval(*(next(iter(of_processes(*side).cases.values())) for side in (a, b)), None, beyond)
    expected = scipy.stats.ttest_ind([math.log(x) for x in b], [math.log(x) for x in a], equal_var=False)
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval(1 - 2 * beyond)))
    assert low < change < high


def test_too_few_processes_are_reckoned_with_as_one() -> None:
    few = compare(of_processes(1.0, 1.0, 1.0), of_processes(2.0, 2.0, 2.0))
    assert verdicts(few) == {"time": "AMBIGUOUS"} and (few.noise, few.fewest_processes) == (0.5, 3)
    many = compare(of_processes(*[1.0] * 4), of_processes(*[2.0] * 4))
    assert verdicts(many) == {"time": "SLOW"} and (many.noise, many.fewest_processes) == (None, 4)


@pytest.mark.parametrize("noise", [0.001, 0.03])
def test_equals_in_several_processes_are_seldom_told_apart_and_a_tenth_is(noise: float) -> None:
    random_ = random.Random(7)
    equal = [compare(lucky(random_, 8, noise), lucky(random_, 8, noise)) for _ in range(1000)]
    assert sum(bool(each.count("SLOW") or each.count("FAST")) for each in equal) <= 1000 * 3 * FALSE_ALARMS
    slower = [compare(lucky(random_, 8, noise), lucky(random_, 8, noise, factor=1.1)) for _ in range(1000)]
    assert sum(each.count("SLOW") for each in slower) >= 900


def test_a_change_is_found_among_many() -> None:
    random_ = random.Random(0)
    for _ in range(20):
        first, second = drawn(random_, 20, noise=0.01), drawn(random_, 20, noise=0.01, factor=1.15)
        assert compare(first, second).count("SLOW") >= 18


def test_memory_error_and_failures_have_verdicts_of_their_own() -> None:
    a = side(1.0, extra_bytes=1_000_000, error=1e-7)
    assert verdicts(compare(a, side(1.0, extra_bytes=1_020_000, error=2e-7))) == {
        "time": "SAME",
        "memory": "LARGER",
        "error": "WORSE",
    }
    assert verdicts(compare(a, side(1.0, extra_bytes=900_000, error=1e-8))) == {
        "time": "SAME",
        "memory": "SMALLER",
        "error": "BETTER",
    }
    broken = Readings("b", "machine", {"case": Reading("wrong", "no kernel")}, None)
    (line,) = compare(a, broken).lines
    assert (line.verdict, line.reason) == ("BROKEN", "ok → wrong: no kernel")
    assert [line.verdict for line in compare(broken, a).lines] == ["FIXED"]


def test_figures_of_other_baselines_are_not_compared() -> None:
    other = Readings("b", "machine", {"case": Reading("ok", ratio=2.0, low=1.9, high=2.1, baseline="other")}, 0.01)
    assert compare(side(1.0), other).lines == ()
    with pytest.raises(ResultsError, match="no case in common"):
        compare(side(1.0), Readings("b", "machine", {}, None))


def test_one_thread_is_compared_by_cpu_time() -> None:
    one = {"threads": 1, "cpu_ratio": 0.5, "cpu_ratio_low": 0.49, "cpu_ratio_high": 0.51, "twin_cpu_ratio": 1.02}
    lines = [measured(VARIANT, 1024, figures=one), measured("full/matmul", 1024)]
    by_cpu, by_wall = readings_of_rows("a", as_rows(lines)).cases.values()
    assert (by_cpu.ratio, by_cpu.low) == (0.5, 0.49)
    assert by_wall.ratio == pytest.approx(4.0)
    assert readings_of_rows("a", as_rows(lines[:1])).noise == pytest.approx(math.log(1.02))
    both = {"process_ratios": [4.0, 4.1], "process_cpu_ratios": [0.5, 0.51]}
    lines = [measured(VARIANT, 1024, figures=one | both), measured("full/matmul", 1024, figures=both)]
    by_cpu, by_wall = readings_of_rows("a", as_rows(lines)).cases.values()
    assert (by_cpu.processes, by_wall.processes) == ((0.5, 0.51), (4.0, 4.1))


# ---- the command


def run(*arguments: object) -> int:
    return attnscape.main([str(argument) for argument in arguments])


def slower(lines: Sequence[dict[str, Any]], factor: float) -> list[dict[str, Any]]:
    """The lines with one variant's ratios multiplied."""
    names = ("ratio", "ratio_low", "ratio_high")
    return [
        line | {name: line[name] * factor for name in names}
        if line["case"]["variant"] == VARIANT and line.get("ratio")
        else line
        for line in lines
    ]


def test_compare_tells_what_became_slower_and_fails_on_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = write(tmp_path / "before", landscape())
    after = write(tmp_path / "after", slower(landscape(), 1.2))
    assert run("compare", before, after) == 0
    out = capsys.readouterr().out
    slow = [line for line in out.splitlines() if line.startswith(VARIANT) and " SLOW " in line]
    assert len(slow) == 4 and all("1.20" in line for line in slow)
    assert "4 SLOW in time" in out
    assert run("compare", before, after, "--fail-on", "slow") == 1
    assert run("compare", before, before, "--fail-on", "slow,larger,worse,broken") == 0
    assert run("compare", before, after, "--fail-on", "larger") == 0
    capsys.readouterr()
    assert run("compare", before, after, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert sum(line["verdict"] == "SLOW" for line in document["lines"]) == 4


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("attnscape: ") and err.count("\n") == 1
    return err


def test_compare_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = write(tmp_path / "before", landscape())
    assert "--fail-on takes slow, larger, worse, broken, not fast" in refusal(
        capsys, "compare", before, before, "--fail-on", "fast"
    )
    assert "--margin must be positive" in refusal(capsys, "compare", before, before, "--margin", "0")
    assert "no results of asv in" in refusal(capsys, "compare", before, "abc", "--asv", tmp_path / "none")
    other = write(tmp_path / "other", [line | {"machine": "another"} for line in landscape()])
    said = refusal(capsys, "compare", before, other)
    assert f"A is of machine {MACHINE}, B of another" in said
    assert run("compare", before, other, "--across-machines") == 0


# ---- steps in a history


def test_a_step_is_found_where_it_is() -> None:
    random_ = np.random.default_rng(3)
    values = np.exp(0.03 * random_.standard_normal(25))
    values[20:] *= 1.10
    (found,) = change_points(values.tolist())
    assert abs(found.index - 20) <= 1
    assert 1.05 < found.factor < 1.15
    assert found.chance < 0.01


def test_several_steps_are_told_apart() -> None:
    values = [1.0, 1.01, 0.99, 1.0, 1.01, 1.5, 1.51, 1.49, 1.5, 1.52, 1.2, 1.21, 1.19, 1.2, 1.22]
    assert [found.index for found in change_points(values)] == [5, 10]
    assert change_points(values, least_change=0.6) == []


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0], [1.0] * (2 * LEAST_PART - 1), [1.0] * 30])
def test_what_is_short_or_flat_has_no_steps(values: list[float]) -> None:
    assert change_points(values) == []


def test_steps_of_figures_that_are_not_positive_are_refused() -> None:
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="finite positive"):
            change_points([1.0] * 10 + [wrong])


def test_a_search_repeats() -> None:
    values = np.exp(0.2 * np.random.default_rng(0).standard_normal(40)).tolist()
    assert change_points(values) == change_points(values)


@pytest.mark.parametrize("heavy", [False, True], ids=["normal", "heavy"])
def test_simulated_steps_are_found_and_noise_is_not(heavy: bool) -> None:
    got = score(ours, 20, heavy, histories=60, seed=5)
    assert got.found >= (0.8 if heavy else 0.9)
    assert got.elsewhere <= 0.1
    assert got.false_alarms <= 0.1
    assert got.found > score(of_asv, 20, heavy, histories=60, seed=5).found


def commit_of(number: int) -> str:
    return f"{number:08x}" + 32 * "0"


def asv_folder(folder: Path, ratios: Sequence[float], failing_from: int = 10**6) -> Path:
    """asv's results of as many commits as ratios, in the bytes that asv writes: n/a is a bare NaN."""
    for number, ratio in enumerate(ratios):
        commit = commit_of(number)
        content = {
            "commit_hash": commit,
            "env_name": "existing",
            "date": 1_700_000_000_000 + number,
            "params": {"machine": "box"},
            "result_columns": ["result", "params", "version"],
            "results": {
                "attention.Cpu.track_ratio": [[ratio, None], [["'full/matmul'"], ["8", "9"]], "1"],
                "attention.Cpu.track_peak_memory": [[4e6, math.nan], [["'full/matmul'"], ["8", "9"]], "1"],
                "attention.Cpu.track_lengths_not_running": [
                    [float(number >= failing_from)],
                    [["'full/matmul'"]],
                    "1",
                ],
            },
        }
        file = folder / "box" / f"{commit[:8]}-existing.json"
        write_json(str(file), content, 2, compact=True)
    (folder / "box" / "machine.json").write_text("{}", "utf-8")
    return folder


def test_the_history_names_the_commit_of_each_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ratios = [1.0, 1.01, 0.99, 1.0, 1.02, 1.0, 0.98, 1.3, 1.31, 1.29, 1.3, 1.32]
    folder = asv_folder(tmp_path, ratios, failing_from=8)
    found = find_steps(read_commits(folder))
    assert {(step.series.partition("(")[0], int(step.commit[:8], 16), step.worse) for step in found.steps} == {
        ("attention.Cpu.track_ratio", 7, True),
        ("attention.Cpu.track_lengths_not_running", 8, True),
    }
    assert run("history", "--asv", folder, "--match", "track_ratio") == 0
    out = capsys.readouterr().out
    assert "00000007  00000006  attention.Cpu.track_ratio(full/matmul, 8)" in out and "1 steps up, 0 down" in out
    assert run("history", "--asv", folder, "--fail-on-worse") == 1
    assert run("history", "--asv", folder, "--fail-on-worse", "--match", "peak_memory") == 0


def test_the_history_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no results of asv in" in refusal(capsys, "history", "--asv", tmp_path)
    folder = asv_folder(tmp_path, [1.0, 1.0])
    assert "no series whose name contains 'nothing'" in refusal(
        capsys, "history", "--asv", folder, "--match", "nothing"
    )
    assert "it holds box" in refusal(capsys, "history", "--asv", folder, "--machine", "crate")
    (folder / "box" / "zzz.json").write_text("{", "utf-8")
    assert "is no result of asv" in refusal(capsys, "history", "--asv", folder)
    (folder / "box" / "zzz.json").write_text('{"version": 1}', "utf-8")
    assert "version 1 of asv's format" in refusal(capsys, "history", "--asv", folder)


def test_na_is_read_as_asv_writes_it(tmp_path: Path) -> None:
    folder = asv_folder(tmp_path, [1.0])
    (file,) = folder.glob("box/*-existing.json")
    assert "[4000000.0, NaN]" in file.read_text("utf-8")
    (commit,) = read_commits(folder)
    found = {(place.benchmark.partition("track_")[2], place.parameters[1:]): x for place, x in commit.figures.items()}
    assert found == {("ratio", ("8",)): 1.0, ("peak_memory", ("8",)): 4e6, ("lengths_not_running", ()): 0.0}


def test_compare_says_that_a_side_is_neither_a_folder_nor_a_commit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = write(tmp_path / "before", landscape())
    said = refusal(capsys, "compare", before, "nosuch", "--asv", tmp_path / "none")
    assert "nosuch is no file or folder, nor known as a commit: no results of asv in" in said
    folder = asv_folder(tmp_path / "asv", [1.0])
    said = refusal(capsys, "compare", before, "nosuch", "--asv", folder)
    assert "nosuch is no file or folder, nor known as a commit: no results of commit nosuch; there are" in said


def test_two_commits_of_asv_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = asv_folder(tmp_path, [1.0, 1.5])
    commits = read_commits(folder)
    first = readings_of_commit(commits, commit_of(0))
    assert list(first.cases) == ["Cpu(full/matmul, 8) existing", "Cpu(full/matmul, 9) existing"][: len(first.cases)]
    assert run("compare", commit_of(0), commit_of(1), "--asv", folder) == 0
    assert "AMBIGUOUS" in capsys.readouterr().out  # one case of one figure each: its change may be all noise
    assert "several commits begin with 0" in refusal(capsys, "compare", "0", commit_of(1), "--asv", folder)
    assert "no results of commit beef" in refusal(capsys, "compare", "beef", commit_of(1), "--asv", folder)
