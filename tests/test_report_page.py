"""The page: complete, self-contained, escaped, the same every time; and the numbers behind its pictures."""

import base64
import hashlib
import html
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
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from reports import page as page_module
from reports import page_scripts
from reports.attention_pictures import attention_pictures
from reports.cards import Card
from reports.choice import choose
from reports.curve import Curve, curves
from reports.declared_costs import declare_nothing
from reports.figure_style import PRINTED, THEMED, drawing, styles_of
from reports.figures import pictures, some_of, write_png
from reports.landscape import Point, common_length, error_rows, pareto_front, tradeoff
from reports.length_figures import draw_memory, draw_times, styles_for
from reports.page import Extras, render, write_page
from reports.page_answers import Explored, explored, offered_lengths, steps_for
from reports.page_data import cell_count, page_data
from reports.page_links import asv_links
from reports.page_machines import chosen
from reports.page_tables import figures_table, machine_table, reasons_table, status_table
from reports.page_target import require_page
from reports.quantities import digits, error_text, factor_text, interval_text, mib_text, rounded_up, seconds_text
from reports.question import Budget, Question
from reports.records import Results, ResultsError, read
from reports.roofline import roofline_of
from reports.winner_map import winner_map
from tests import results_builder as builder
from tests.results_builder import as_rows, failed, landscape, measured, write

ROOT = Path(__file__).parent.parent
VOID = {"meta", "wbr", "br", "input", "img"}
SCRIPTS = 1 + len(page_scripts.SCRIPTS)
POLICY = re.compile(r'http-equiv="Content-Security-Policy" content="([^"]*)"')
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
        self.code: list[str] = []
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
                self.loads += [] if (value or "").startswith("data:image/png;base64,") else [value or ""]
            self.references |= set(re.findall(r"url\(#([^)]+)\)", value or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            self.code.append(data)
        else:
            self.words += data


def page_of(folder: Path, lines: list[dict[str, Any]], machine: dict[str, Any] | None = None) -> str:
    return render(read(write(folder, lines, machine)), version="1.2.3")


# ---- the page as a whole


def test_the_page_is_whole_and_loads_nothing(tmp_path: Path) -> None:
    page = Page(page_of(tmp_path, landscape() + landscape(causal=True)))
    assert page.loads == []
    own = [code for code in page.code if len(code) < 200_000 and not code.startswith("// https://d3js.org")]
    assert len(own) == SCRIPTS - 1
    assert not any("@import" in code or re.search(r"url\((?!#)", code) for code in own)
    assert page.tags["svg"] == page.tags["title"] - 1 == 12
    assert page.tags["table"] == page.tags["caption"] == 9
    assert page.tags["script"] == SCRIPTS


def test_the_policy_allows_the_scripts_of_the_page_and_no_other(tmp_path: Path) -> None:
    text = page_of(tmp_path, landscape([256, 512]))
    found = POLICY.search(text)
    assert found is not None
    policy = dict(part.strip().split(" ", 1) for part in html.unescape(found[1]).split(";"))
    assert (policy["default-src"], policy["img-src"]) == ("'none'", "data:")
    assert "unsafe" not in policy["script-src"]
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    made = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts}
    assert {one.strip("'").removeprefix("sha256-") for one in policy["script-src"].split()} == made


def test_the_libraries_are_those_that_their_readme_names() -> None:
    readme = (page_scripts.ASSETS / "README.md").read_text("utf-8")
    named = dict(re.findall(r"^\| `([^`]+)` \|.*`([0-9a-f]{64})` \|$", readme, re.MULTILINE))
    assert set(named) == {"d3.min.js", "plot.umd.min.js"}
    for name, checksum in named.items():
        assert hashlib.sha256((page_scripts.ASSETS / name).read_bytes()).hexdigest() == checksum
    for licence in re.findall(r"`(licences/[^`]+)`", readme):
        assert "Permission to use, copy, modify" in (page_scripts.ASSETS / licence).read_text("utf-8")


def test_ids_are_unique_and_references_meet_them(tmp_path: Path) -> None:
    page = Page(page_of(tmp_path, landscape([256, 512]) + landscape([256, 512], mode="training")))
    assert [name for name, count in page.ids.items() if count > 1] == []
    assert page.references <= set(page.ids)


def test_a_page_leaves_out_what_it_has_no_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = landscape([256, 512]) + landscape([256, 512], causal=True)
    whole = Page(page_of(tmp_path, lines))
    monkeypatch.setattr(page_module, "MOST_BYTES", 120_000)
    less = Page(page_of(tmp_path, lines))
    assert "leaves out the pictures of this shape" in less.words
    assert 1 < less.tags["svg"] < whole.tags["svg"] == 13 - 1
    monkeypatch.setattr(page_module, "MOST_BYTES", 0)
    monkeypatch.setattr(page_module, "MOST_CELLS", 0)
    least = Page(page_of(tmp_path, lines))
    assert "leaves out the pictures and the errors on every kind of input of this shape" in least.words
    assert (least.tags["svg"], least.tags["form"], least.tags["script"]) == (0, 0, 0)
    assert least.words.count("linear_scan/chunked") >= 4


def test_the_parts_of_a_page_have_room_for_five_megabytes_together(tmp_path: Path) -> None:
    answer = found_in(tmp_path, landscape([2**power for power in range(8, 13)]))
    data = page_scripts.embedded(page_data([("s0", answer)], styles_for(answer.curves)))
    figures = page_module.MOST_CELLS * len(data) / cell_count(answer)
    libraries = sum(map(len, page_scripts.scripts()))
    assert figures + libraries + page_module.MOST_BYTES < page_module.MOST_PAGE_BYTES < 5e6


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
    assert page.tags["script"] <= SCRIPTS
    assert page.loads == []
    assert "{{7*7}}" in page.words
    assert "49$" not in page.words


def test_the_same_results_give_the_same_page(tmp_path: Path) -> None:
    folder = write(tmp_path, landscape([256, 512]))
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


def test_a_page_replaces_pages_only(tmp_path: Path) -> None:
    results = read(write(tmp_path, landscape([256])))
    other, page = tmp_path / "notes.html", tmp_path / "page.html"
    other.write_text("mine", "utf-8")
    require_page(page, results, force=False)
    write_page(page, results, "1")
    require_page(page, results, force=False)
    require_page(other, results, force=True)
    for target, force, said in (
        (other, False, "no page of attnscape"),
        (tmp_path, True, "is a folder"),
        (results.path, True, "the results themselves"),
    ):
        with pytest.raises(ResultsError, match=said):
            require_page(target, results, force=force)


def test_several_machines_are_not_joined(tmp_path: Path) -> None:
    lines = [builder.line(builder.case("full/matmul", 256), machine=key) for key in ("m1", "m2")]
    with pytest.raises(ResultsError, match="several machines"):
        page_of(tmp_path, lines)


def two_machines(folder: Path, factor: float) -> Results:
    here = landscape([256, 1024])
    there = []
    for one in landscape([256, 1024]):
        times = {name: one[name] * factor for name in ("seconds", "seconds_low", "seconds_high") if name in one}
        there.append({**one, **times, "machine": "other1", "key": f"other {one['key']}"})
    found = read(write(folder, [*here, *there]))
    (folder / "machines" / "other1.json").write_text('{"cpu": "Another CPU"}', "utf-8")
    return found


def test_two_machines_stand_side_by_side_and_are_not_joined(tmp_path: Path) -> None:
    here, there = chosen(two_machines(tmp_path, 2.0), None, "other")
    alone = Page(render(here, "1"))
    page = Page(render(here, "1", Extras(there)))
    assert there is not None
    assert (here.machines, there.machines) == ([builder.MACHINE], ["other1"])
    assert "takes 2.00 times as long in the median, from 2.00 to 2.00" in page.words
    assert "Another CPU" in page.words
    assert "1.92 to 2.08" in page.words
    assert alone.words.count("6.00 ms") == page.words.count("6.00 ms") - 1
    assert page.tags["svg"] == alone.tags["svg"] + 1


def test_machines_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    both = two_machines(tmp_path, 2.0)
    with pytest.raises(ResultsError, match="beside itself"):
        chosen(both, "other", "other")
    with pytest.raises(ResultsError, match="no machine 'x'"):
        chosen(both, None, "x")
    here, there = chosen(both, None, "other")
    assert there is not None
    with pytest.raises(ResultsError, match="no variant at the same length"):
        render(
            Results(here.path, tuple(row for row in here.rows if row.case.length == 256)),
            "1",
            Extras(Results(here.path, tuple(row for row in there.rows if row.case.length == 1024))),
        )


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", "https://", "a b", '"><img>', "//host/x", "file:///x", "x?y"]
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ResultsError, match="address of asv's pages"):
        asv_links(address)


def test_links_to_the_pages_of_asv(tmp_path: Path) -> None:
    results = read(write(tmp_path, landscape([256, 512])))
    for address, start in (("https://example.org/asv", "https://example.org/asv/"), ("../html/index.html", "../html/")):
        page = Page(render(results, "1", Extras(asv=address)))
        assert page.loads == [
            f"{start}index.html",
            f"{start}index.html#/summarylist",
            f"{start}index.html#/regressions",
        ]


# ---- the winner map, the roofline and the pictures of attention


def found_in(folder: Path, lines: list[dict[str, Any]]) -> Explored:
    results = read(write(folder, lines))
    answer = explored(results.rows, curves(results.rows, SHAPE), SHAPE, 2, results.description(), declare_nothing)
    assert answer is not None
    return answer


def test_the_offered_lengths() -> None:
    assert offered_lengths([256, 512], 1) == [256, 512, 1024, 2048]
    assert offered_lengths([256, 512], 2) == [256, 362, 512, 724, 1024, 1448, 2048]
    assert offered_lengths([1000], 1) == [1000, 2000, 4000]
    assert [steps_for(12, 6, 9000), steps_for(500, 8, 9000), steps_for(5000, 9, 9000)] == [4, 2, 1]


def test_the_winner_map_is_what_choose_says(tmp_path: Path) -> None:
    answer = found_in(tmp_path, landscape())
    rows = read(tmp_path).rows
    found = {by: winner_map(answer, by) for by in ("error", "memory")}
    checked = Counter[str | None]()
    for by, one in found.items():
        assert one is not None
        assert len(one.winners) == len(one.lengths) * len(one.limits)
        for (length, limit), winner in list(one.winners.items())[::17]:
            budget = Budget(max_error=limit) if by == "error" else Budget(max_bytes=limit)
            fitting = choose(rows, Question(length), budget, description=builder.DESCRIPTION).fitting
            assert winner == (fitting[0].label if fitting else None)
            checked[winner] += 1
    assert len(checked) >= 3
    assert None in checked


def test_the_roofline_has_the_measured_points_and_the_ceilings() -> None:
    lines = [measured("full/matmul", at, figures={"traffic_bytes": at * 1024}) for at in (256, 1024)]
    lines.append(measured("linear_scan/chunked", 256))
    rows = as_rows(lines)
    card = Card(
        name="x", memory_bytes=1, bytes_per_second=1e10, flop_per_second={"float32": 1e12}, source="a test's ceilings"
    )
    roof = roofline_of(curves(rows, SHAPE), card, "float32")
    assert roof is not None
    assert [(point.length, point.intensity) for point in roof.points] == [(256, 512.0), (1024, 2048.0)]
    assert roof.points[1].flop_per_second == pytest.approx(4 * 64 * 8 * 1024**2 / 0.040)
    assert (roof.ceiling(1), roof.ceiling(1e6)) == (1e10, 1e12)
    assert roofline_of(curves(rows, SHAPE), card, "bfloat16") is None
    assert roofline_of(curves(rows, SHAPE), None, "float32") is None


def test_foretold_times_are_dashed_and_have_no_marks(tmp_path: Path) -> None:
    answer = found_in(tmp_path, landscape([256, 512, 1024, 2048, 4096]))
    ahead = answer.foretold("memory_efficient/sdpa_flash", "seconds")
    assert list(ahead) == [5793, 8192, 11585, 16384]
    figure = mpl.figure.Figure()
    axes = figure.subplots()
    with drawing(THEMED):
        draw_times(axes, answer.curves, styles_for(answer.curves), answer.foretold)
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    whole = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert dashed
    assert {line.get_marker() for line in dashed} == {"None"}
    assert max(max(line.get_xdata()) for line in dashed) == 16384
    assert max(max(line.get_xdata()) for line in whole) == 4096


def test_pictures_of_attention_are_those_of_the_measured_definitions(tmp_path: Path) -> None:
    Image.new("L", (30, 20)).save(tmp_path / "full.png")
    Image.new("L", (30, 20)).save(tmp_path / "other.png")
    (tmp_path / "local_window.png").write_bytes(b"<svg onload=alert(1)>")
    (found,) = attention_pictures({"full", "local_window"}, 10_000, [tmp_path / "none", tmp_path])
    assert (found.family, found.width, found.height) == ("full", 30, 20)
    assert attention_pictures({"full"}, 10_000, [tmp_path / "none"]) == []
    assert attention_pictures({"full"}, 50, [tmp_path]) == []


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


def test_of_a_card_all_three_times_are_shown_and_what_disturbed_them() -> None:
    state = {"power_capped_share": 0.25, "rejected_share": 0.1, "foreign_processes": 1.0, "slice": "MIG"}
    card = {"noisy": False, "seconds": 1e-4, "latency_seconds": 3e-4, "host_bound_share": 0.5, "device_state": state}
    lines = [
        measured("full/matmul", 256, figures=card | {"hot_seconds": 5e-5}),
        measured("memory_efficient/sdpa_flash", 256, figures=card | {"host_bound_share": 0.0, "device_state": {}}),
    ]
    table = figures_table(curves(as_rows(lines), SHAPE))
    assert table.header[2:6] == ("time", "95 % interval", "hot", "latency") and "latency" in table.title.lower()
    plain, flash = sorted(table.rows, key=lambda row: row[1])
    assert plain[4:6] == ("50.0 µs", "300 µs") and flash[4:6] == ("–", "300 µs")
    assert plain[-1] == (
        "waits for the host in 50% of its calls, 25% of samples at the card's power limit, "
        "10% of samples braked, left out, others on the card, a slice of the card (MIG)"
    )
    assert flash[-1] == ""
    assert "hot" not in figures_table(CURVES).header


@pytest.mark.parametrize(("share", "doubted"), [(60.0, False), (80.0, True)])
def test_a_window_in_decode_need_not_move_the_whole_cache(share: float, doubted: bool) -> None:
    whole = 2 * 8 * 64 * 4 * (1 + 16384)
    figures = {"ceiling_share": share, "traffic_bytes": whole}
    (row,) = as_rows([measured("local_window/tiled", 16384, mode="decode", figures=figures)])
    assert row.moved_bytes == 2 * 8 * 64 * 4 * (1 + 256), "63.75 times less"
    assert row.doubtful is doubted
    counted = msgspec.structs.replace(row, traffic_bytes=row.moved_bytes)
    assert (counted.moved_bytes, counted.doubtful) == (row.moved_bytes, True)


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


def test_the_picture_for_a_readme_shows_some_of_many() -> None:
    def curve(variant: str, seconds: float, exact: bool = False, last: int = 1024, attention: bool = True) -> Curve:
        figures = {"seconds": seconds}
        lines = [measured("full/matmul", at, figures=figures) for at in (256, last)]
        rows = as_rows(line | {"exact": exact, "attention": attention} for line in lines)
        return Curve(variant, (), exact, {("normal", row.case.length): row for row in rows})

    many = [
        curve("full/slow", 2.0, exact=True),
        curve("full/fast", 1.0, exact=True),
        curve("full/short", 0.1, exact=True, last=512),
        curve("no_attention/fastest", 0.1, attention=False),
        *(curve(f"approximation_{number}/one", 1.0 + number) for number in range(14)),
    ]
    assert some_of(many[:8]) == many[:8]
    assert [one.variant for one in some_of(many)] == [
        "full/fast",
        *(f"approximation_{number}/one" for number in (0, 2, 4, 6, 8, 10, 12)),
    ]


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
