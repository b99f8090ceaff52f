"""The table of errors: it agrees with figures of other code, names what it leaves out, and cannot hide a loss."""

import json
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace

import pytest

import attnscape
from benchmarks.campaign import InvalidRequest
from benchmarks.error_table import (
    USUAL_INPUTS,
    Approximation,
    measure_approximations,
    parameter_values,
    table_inputs,
    table_methods,
    table_problems,
    usual_fingerprint,
)
from reports.error_table import error_blocks, error_markdown, error_table, store_table, stored_table
from variants.definition import InvalidParameter

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "docs" / "errors.json"

EARLIER = {
    ("blockwise_low_rank", 1): (0.75, 0.36, 0.48, 0.97),
    ("blockwise_low_rank", 4): (0.74, 0.12, 0.29, 0.52),
    ("blockwise_low_rank", 16): (0.68, 0.023, 0.20, 0.18),
    ("nystrom", None): (0.77, 0.12, 0.27, 0.76),
    ("monarch", None): (0.79, 0.21, 0.31, 0.74),
    ("local_window", None): (1.8, 1.7, 1.7, 1.3),
    ("top_k", None): (2.0, 1.2, 0.75, 0.065),
    ("mean of V", None): (0.80, 0.64, 0.67, 0.96),
}
"""Figures of the deterministic methods that code before this registry gave, on the same kinds of inputs."""
UNRECORDED = "mixed"
"""How the earlier inputs were mixed is not on record; ours come as near as this."""
UNRECORDED_SHARE = 0.15


def ignore(_done: int, _total: int, _at: str) -> None:
    """A reader of progress that reads nothing."""


def kept_table() -> list[SimpleNamespace]:
    rows = stored_table(KEPT, usual_fingerprint())
    assert rows is not None, "docs/errors.json is of other sources: `attnscape docs` makes it anew"
    return rows


def half_a_digit(value: float) -> float:
    """Half of the second significant digit, to which the earlier figures are rounded."""
    return 0.5 * 10.0 ** (int(f"{value:e}".partition("e")[2]) - 1)


def strays(errors: list[float], earlier: float, kind: str) -> bool:
    """Whether draws disagree with an earlier single draw, by more than their spread and its rounding explain."""
    if kind == UNRECORDED:
        return abs(fmean(errors) / earlier - 1) > UNRECORDED_SHARE
    return abs(fmean(errors) - earlier) > 3 * stdev(errors) + half_a_digit(earlier)


@pytest.mark.parametrize(("method", "figures"), EARLIER.items(), ids=str)
def test_the_usual_table_is_the_earlier_one(
    method: tuple[str, int | None], figures: tuple[float, float, float, float]
) -> None:
    name, rank = method
    for kind, earlier in zip(USUAL_INPUTS, figures, strict=True):
        rows = [row for row in kept_table() if row.inputs == kind and row.parameters.get("rank") in (rank, None)]
        floor = name == "mean of V"
        (errors,) = {
            tuple(row.mean_of_v_errors if floor else row.errors) for row in rows if floor or row.definition == name
        }
        assert not strays(list(errors), earlier, kind), (kind, errors, earlier)


def test_a_figure_that_strays_is_seen() -> None:
    assert strays([0.74, 0.75, 0.73], 0.80, "normal")
    assert strays([0.55, 0.56, 0.54], 0.67, "mixed")
    assert not strays([0.74, 0.75, 0.73], 0.77, "normal")


def test_the_kept_table_is_what_the_oracles_give() -> None:
    methods = [one for one in table_methods((), ()) if one.definition.name in ("blockwise_low_rank", "top_k")][1:]
    found = measure_approximations(methods, table_problems("1024", heads=2), ["smooth"], 1, ignore)
    kept = {(row.definition, str(row.parameters)): row for row in kept_table() if row.inputs == "smooth"}
    for one in found:
        row = kept[one.definition, str(one.parameters)]
        assert one.errors[0] == pytest.approx(row.errors[0], rel=1e-3)
        assert one.mean_of_v_errors[0] == pytest.approx(row.mean_of_v_errors[0], rel=1e-3)


# ---- what is asked for


def test_every_combination_of_values_is_a_method_where_the_definition_has_the_parameter() -> None:
    methods = table_methods(["blockwise_low_rank", "local_window/tiled"], ["rank=1,4", "block=32,64", "window=16"])
    told = [(one.definition.name, one.parameters) for one in methods]
    assert told[:2] == [
        ("blockwise_low_rank", {"block": 32, "rank": 1}),
        ("blockwise_low_rank", {"block": 32, "rank": 4}),
    ]
    assert told[4:] == [("local_window", {"window": 16})]


def test_the_variants_of_one_definition_are_one_method() -> None:
    assert [one.definition.name for one in table_methods(["full", "memory_efficient"], [])] == ["full"]


@pytest.mark.parametrize("setting", ["rank", "rank=", "rank=x", "rank=1,-4", "rank=1.5"])
def test_a_value_that_is_none_is_refused(setting: str) -> None:
    with pytest.raises(InvalidRequest, match="--set takes a parameter and whole numbers"):
        parameter_values([setting])


def test_what_no_definition_has_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="none of the definitions has a parameter 'rank'; there are window"):
        table_methods(["local_window"], ["rank=4"])
    with pytest.raises(InvalidParameter, match="window must be a whole number"):
        table_methods(["local_window"], ["window=0"])
    with pytest.raises(InvalidRequest, match="inputs must be of normal, "):
        table_inputs("smooth,bumpy")


def test_without_a_form_for_the_mask_there_is_a_reason_and_no_error() -> None:
    (problem,) = table_problems("64", causal=True, heads=1)
    window, linformer = measure_approximations(
        table_methods(["local_window", "linformer"], ["window=8", "projected=8"])[::-1],
        [problem],
        ["normal"],
        2,
        ignore,
    )
    assert linformer.definition == "linformer" or window.definition == "linformer"
    by_name = {one.definition: one for one in (window, linformer)}
    assert by_name["linformer"].errors == () and "no causal form" in by_name["linformer"].reason
    assert len(by_name["local_window"].errors) == 2 and by_name["local_window"].reason == ""
    text = "\n".join(str(block) for block in error_blocks([window, linformer]))
    assert "linformer (projected 8) on normal: no causal form" in text


def test_inputs_that_are_too_short_have_a_reason() -> None:
    (found,) = measure_approximations(
        table_methods(["local_window"], []), table_problems("600", heads=1), ["captured"], 1, ignore
    )
    assert found.errors == () and "512 tokens" in found.reason


# ---- how it is shown


def found(
    name: str, errors: tuple[float, ...], floor: float, kind: str = "normal", *, exact: bool = False
) -> Approximation:
    return Approximation(name, name, exact, {}, kind, 64, False, errors, (floor,) * len(errors))


def test_the_mean_of_v_stands_first_and_losses_to_it_are_marked() -> None:
    table = error_table(
        [found("near", (0.1, 0.3), 0.5), found("far", (0.5, 0.5), 0.5), found("same", (0.0,), 0.5, exact=True)]
    )
    assert table.rows[0] == ("mean of V", "0.50 ± 0")
    assert table.rows[1] == ("near", "0.20 ± 0.1")
    assert table.rows[2][1].endswith(" *") and table.rows[3][1] == "exact"
    assert "\\*" in error_markdown([found("far", (0.6,), 0.5)])


def test_a_kept_table_of_other_sources_is_none(tmp_path: Path) -> None:
    path = tmp_path / "errors.json"
    assert stored_table(path, "a") is None
    store_table(path, "a", [found("near", (0.123456,), 0.5)])
    kept = stored_table(path, "a")
    assert kept is not None and kept[0].errors == [0.1235]
    assert stored_table(path, "b") is None
    path.write_text("{")
    assert stored_table(path, "a") is None


def test_the_command_prints_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["errors", "--variants", "local_window", "--set", "window=8,16", "--tokens", "64", "--seeds", "2"]
    assert attnscape.main([*words, "--inputs", "normal,smooth"]) == 0
    out = capsys.readouterr().out
    assert "mean of V" in out and "local_window (window 16)" in out
    assert attnscape.main([*words, "--inputs", "smooth", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["parameters"]["window"] for row in rows] == [8, 16]
    assert rows[0]["error"] == pytest.approx(fmean(rows[0]["errors"])) and len(rows[0]["errors"]) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["--variants", "local_windov"],
        ["--set", "depth=3"],
        ["--inputs", "file.safetensors"],
        ["--tokens", "x"],
        ["--seeds", "0"],
        ["--heads", "3", "--kv-heads", "2"],
    ],
)
def test_bad_input_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert attnscape.main(["errors", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("attnscape: ") and err.count("\n") == 1
