"""The page: complete, self-contained, escaped, the same every time; and the numbers behind its pictures."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.curve import curves
from reports.figure_style import PRINTED, THEMED, drawing, styles_of
from reports.figures import draw_memory, draw_times, pictures, styles_for, write_png
from reports.landscape import Point, common_length, error_rows, pareto_front, tradeoff
from reports.page import render
from reports.page_tables import figures_table, machine_table, reasons_table, status_table
from reports.quantities import digits, error_text, factor_text, interval_text, mib_text, rounded_up, seconds_text
from reports.records import ResultsError, read
from tests import results_builder as builder
from tests.results_builder import as_rows, failed, landscape, measured, write

ROOT = Path(__file__).parent.parent
VOID = {"meta", "wbr", "br"}
DEFAULT = as_rows(landscape())
SHAPE = DEFAULT[0].case.shape
CURVES = curves(DEFAULT, SHAPE)


class Page(HTMLParser):
    """Tags, ids, references and text of a page; raises where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.references: set[str] = set()
        self.loads: list[str] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} has a handler"
            if name == "id":
                self.ids[value or ""] += 1
            if name in ("aria-labelledby", "href", "xlink:href"):
                self.references.add((value or "").removeprefix("#"))
            if name in ("src", "srcset", "data", "action") or (
                name.endswith("href") and not (value or "").startswith("#")
            ):
                self.loads.append(value or "")
            self.references |= set(re.findall(r"url\(#([^)]+)\)", value or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def page_of(folder: Path, lines: list[dict[str, Any]], machine: dict[str, Any] | None = None) -> str:
    return render(read(write(folder, lines, machine)), version="1.2.3")


# ---- the page as a whole


def test_the_page_is_whole_and_loads_nothing(tmp_path: Path) -> None:
    text = page_of(tmp_path, landscape() + landscape(causal=True))
    page = Page(text)
    assert page.loads == []
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert page.tags["svg"] == page.tags["title"] - 1 == 8
    assert page.tags["table"] == page.tags["caption"] == 9
    assert page.tags["script"] == 0


def test_ids_are_unique_and_references_meet_them(tmp_path: Path) -> None:
    page = Page(page_of(tmp_path, landscape() + landscape(causal=True) + landscape([256, 512], mode="training")))
    assert [name for name, count in page.ids.items() if count > 1] == []
    assert page.references <= set(page.ids)


def test_a_large_page_stays_below_two_megabytes(tmp_path: Path) -> None:
    lengths = [2**power for power in range(8, 15)]
    lines = [
        line
        for dtype in ("float32", "bfloat16")
        for mode in ("forward", "training")
        for causal in (False, True)
        for line in landscape(lengths, dtype=dtype, mode=mode, causal=causal)
    ]
    assert len(page_of(tmp_path, lines).encode()) < 2e6


def test_markup_in_any_string_is_escaped(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}$\\frac{'
    lines = landscape([256, 1024])
    for line in lines:
        line["kernel"] = line["commit"] = line["measured_at"] = line["baseline"] = line["run"] = evil
        line["case"]["device"] = line["case"]["dtype"] = line["case"]["mode"] = evil
        line["case"]["variant"] += evil
        line["case"]["parameters"] = {evil: 1}
        line["case"]["inputs"] = line["case"]["inputs"].replace("smooth", evil)
        line["reason"] = evil if line["status"] != "ok" else ""
    page = Page(page_of(tmp_path, lines, machine={evil: evil, "nested": {evil: [evil]}}))
    assert page.tags["script"] == page.tags["img"] == 0
    assert "{{7*7}}" in page.words
    assert "49$" not in page.words


def test_the_same_results_give_the_same_page(tmp_path: Path) -> None:
    folder = write(tmp_path, landscape())
    program = (
        "import pathlib, sys; from reports.page import render; from reports.records import read;"
        f"sys.stdout.write(render(read(pathlib.Path({str(folder)!r})), '1'))"
    )
    made = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            check=True,
            timeout=100,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(made) == 1


def test_the_page_says_what_was_measured_and_how(tmp_path: Path) -> None:
    words = Page(page_of(tmp_path, landscape())).words
    for said in (
        "256 to 16384 tokens (4 lengths)",
        "4 unsupported, 1 out_of_memory",
        "predicted 16.1 GiB, 7.2 GiB free",
        "needs CUDA; no float32",
        "Example CPU at 2.60 GHz",
        "19.0 GB/s",
        "A/A twin",
        "mean of all values",
        "Implementation error",
        "Approximation error",
        "Written by attnscape 1.2.3.",
    ):
        assert said in words


def test_a_page_of_failures_only(tmp_path: Path) -> None:
    lines = [failed("full/matmul", 256, "error", "a crash"), failed("full/matmul", 512, "timeout", "")]
    words = Page(page_of(tmp_path, lines)).words
    assert "Nothing to draw" in words
    assert "a crash" in words


def test_several_machines_are_not_joined(tmp_path: Path) -> None:
    lines = [builder.line(builder.case("full/matmul", 256), machine=key) for key in ("m1", "m2")]
    with pytest.raises(ResultsError, match="several machines"):
        page_of(tmp_path, lines)


# ---- the tables


def test_every_figure_is_in_the_table_and_errors_stay_apart() -> None:
    table = figures_table(CURVES)
    assert len(table.rows) == 4 * 6 - 1
    cells = {(row[0], row[1]): dict(zip(table.header[2:], row[2:], strict=True)) for row in table.rows}
    window = cells["1024", "local_window/tiled (window 256)"]
    assert (window["approximation error"], window["implementation error"]) == ("1.4", "3.1e-7")
    assert (window["time"], window["MiB total"], window["MiB extra"]) == ("6.00 ms", "11.9", "3.91")
    assert cells["1024", "full/matmul"]["approximation error"] == "exact"
    assert {row[0] for row in table.rows if "noisy" in row[-1]} == {"256"}


def test_impossible_times_are_flagged() -> None:
    rows = as_rows([measured("full/matmul", 256, figures={"ceiling_share": 1.2})])
    assert "faster than the machine's ceiling" in figures_table(curves(rows, SHAPE)).rows[0][-1]


def test_statuses_and_reasons_are_all_there() -> None:
    lines = [*landscape([256, 1024]), failed("linear_scan/chunked", 1024, "wrong", "error 0.3", inputs="peaky")]
    found = curves(as_rows(lines), SHAPE)
    grid = {row[0]: row[1:] for row in status_table(found).rows}
    assert grid["linear_scan/chunked"] == ("ok", "wrong on peaky")
    assert grid["memory_efficient/xformers"] == ("unsupported", "unsupported")
    assert ("linear_scan/chunked", "wrong", "1024", "peaky", "error 0.3") in reasons_table(found).rows
    assert (
        "memory_efficient/xformers",
        "unsupported",
        "256, 1024",
        "normal",
        "needs CUDA; no float32",
    ) in reasons_table(found).rows


def test_a_machine_may_hold_anything() -> None:
    deep: dict[str, Any] = {}
    for _ in range(50):
        deep = {"deeper": deep, "n": 1}
    rows = dict(
        machine_table({"a": None, "b": True, "l": [1, {"x": 2}], "e": {}, "memory_bytes": 2**30, "d": deep}).rows
    )
    assert (rows["a"], rows["b"], rows["memory_bytes"]) == ("none", "yes", "1024 MiB")
    assert machine_table({}).rows == ()
    assert dict(machine_table(json.loads(json.dumps(builder.DESCRIPTION))).rows)["ceilings.matmul_flops.float32"] == (
        "313 GFLOP/s"
    )


# ---- what the pictures show


def test_pictures_name_units_and_every_variant() -> None:
    made = {picture.title: picture.svg for picture in pictures(CURVES, styles_for(CURVES), "x")}
    assert list(made) == [
        "Time against length",
        "Extra memory against length",
        "Approximation error by inputs",
        "Error against time",
    ]
    assert ">10 ms</text>" in made["Time against length"]
    assert "extra memory (MiB)" in made["Extra memory against length"]
    assert "mean of V (floor)" in made["Approximation error by inputs"]
    for curve in CURVES:
        assert (f">{curve.variant}</text>" in made["Time against length"]) == bool(curve.seconds())


def test_a_failed_length_breaks_the_line_and_draws_nothing() -> None:
    lines = [measured("full/matmul", at) for at in (256, 1024, 4096)]
    lines[1] = failed("full/matmul", 1024, "timeout", "took over 60 s")
    found = curves(as_rows(lines), SHAPE)
    figure = mpl.figure.Figure()
    axes = figure.subplots()
    with drawing(THEMED):
        draw_times(axes, found, styles_for(found))
    (line,) = axes.lines
    assert [bool(value > 0) for value in line.get_ydata()] == [True, False, True]
    axes = figure.subplots()
    with drawing(THEMED):
        draw_memory(axes, found, styles_for(found))
    assert axes.get_ylabel() == "extra memory (MiB)"


def test_colours_follow_folders_and_no_two_variants_look_alike() -> None:
    variants = [(f"{folder}/{name}", folder, folder == "a") for folder in "abcde" for name in "uvwxyz"]
    styles = styles_of(variants, THEMED)
    assert len(set(styles.values())) == len(variants)
    assert len({style.colour for style in styles.values()}) == 5
    assert styles_of(reversed(variants), THEMED) == styles
    assert all((style.fill == THEMED.paper) != label.startswith("a/") for label, style in styles.items())


def test_the_errors_by_inputs_stand_beside_their_floor() -> None:
    rows = {row.inputs: row for row in error_rows(CURVES)}
    assert set(rows) == set(builder.INPUT_FACTORS)
    assert (rows["captured"].length, rows["peaky"].length) == (256, 16384)
    assert rows["peaky"].floor == pytest.approx(0.88)
    assert set(rows["normal"].errors) == {curve.label for curve in CURVES if not curve.exact}


def test_the_tradeoff_takes_the_largest_common_length() -> None:
    found = tradeoff(CURVES)
    assert found is not None
    assert (found.length, found.inputs, len(found.points)) == (4096, "normal", 6)
    assert found.floor == pytest.approx(0.8)
    only = tradeoff(curves(as_rows(landscape([256, 512])), SHAPE))
    assert only is not None
    assert (only.length, only.inputs) == (256, "captured")


def test_common_lengths() -> None:
    assert common_length([{1, 2, 4}, {1, 2}, {1, 2, 4}]) == 2
    assert common_length([{1}, {2}]) == 2
    assert common_length([]) is None


@given(st.lists(st.builds(Point, st.just("x"), st.floats(0.1, 10), st.floats(0.1, 10)), min_size=1))
def test_the_pareto_front_holds_just_what_nothing_beats(points: list[Point]) -> None:
    front = pareto_front(points)

    def beaten(one: Point) -> bool:
        return any(
            other.seconds <= one.seconds
            and other.error <= one.error
            and (other.seconds, other.error) != (one.seconds, one.error)
            for other in points
        )

    assert {(one.seconds, one.error) for one in front} == {
        (one.seconds, one.error) for one in points if not beaten(one)
    }


def test_the_picture_for_a_readme(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        write_png(tmp_path / name, CURVES, "Example CPU, 2 threads")
    content = (tmp_path / "one.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert content == (tmp_path / "two.png").read_bytes()
    assert styles_for(CURVES, PRINTED)["local_window/tiled (window 256)"].fill == "#ffffff"


# ---- how quantities are written


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (seconds_text(0.0123), "12.3 ms"),
        (seconds_text(0.9996), "1.00 s"),
        (seconds_text(123.4), "123 s"),
        (seconds_text(4.2e-6), "4.20 µs"),
        (seconds_text(4.2e-8), "42.0 ns"),
        (interval_text(0.010, 0.012), "10.0 to 12.0 ms"),
        (interval_text(0.0009, 0.0012), "900 µs to 1.20 ms"),
        (mib_text(2**20), "1.00"),
        (mib_text(0), "0"),
        (error_text(0.314), "0.31"),
        (error_text(3.14e-7), "3.1e-7"),
        (error_text(0), "0"),
        (digits(123456), "123456"),
        (digits(99.96), "100"),
        (factor_text(3.14e9), "3.1e9"),
        (rounded_up(0.001, lambda value: value >= 0.001), "0.001"),
        (rounded_up(12.31, lambda value: value >= 12.31), "12.4"),
        (rounded_up(3.1416e-7, lambda value: value >= 3.1416e-7), "3.15e-7"),
    ],
)
def test_quantities(text: str, expected: str) -> None:
    assert text == expected
