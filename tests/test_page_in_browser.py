"""The page in a real browser, without a network: what it shows, what it answers, what no results file can change."""

import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from reports.answer import Answer
from reports.choice import choose
from reports.curve import curves
from reports.declared_costs import declare_nothing
from reports.page import render
from reports.page_answers import explored
from reports.question import Budget, Question
from reports.records import Results, read
from reports.winner_map import winner_map
from tests import results_builder as builder
from tests.results_builder import failed, landscape, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REQUIRED = os.environ.get("ATTNSCAPE_REQUIRE_BROWSER") == "1"
OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage")
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
LENGTHS = [256, 512, 1024, 2048, 4096]
EVIL = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "<!--",
    '"><svg onload=alert(3)>',
    "${alert(4)}",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None and not REQUIRED:
        pytest.skip("no chromium on this machine; ATTNSCAPE_REQUIRE_BROWSER=1 makes this a failure")
    assert CHROMIUM is not None, "ATTNSCAPE_REQUIRE_BROWSER=1, but there is no chromium"
    api = pytest.importorskip("playwright.sync_api") if not REQUIRED else __import__("playwright.sync_api").sync_api
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=list(OPTIONS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    lines = landscape(LENGTHS)
    for line in lines:
        if line.get("seconds"):
            line["traffic_bytes"] = line["input_output_bytes"]
            # Wide enough for ties, and for times that are further apart than a tie may be.
            line["seconds_low"], line["seconds_high"] = line["seconds"] * 0.8, line["seconds"] * 1.35
    return read(write(tmp_path_factory.mktemp("results"), lines))


@pytest.fixture(scope="module")
def page_file(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render(results, "1.2.3"), "utf-8")
    return file


@dataclass
class Seen:
    """A page that was opened, and everything that a browser complained of or asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def opened(browser: Any, file: Path, **options: Any) -> Seen:
    context = browser.new_context(**{"viewport": DESK, "offline": True, **options})
    seen = Seen(context.new_page())
    seen.page.set_default_timeout(20_000)
    seen.page.on("console", lambda message: seen.complaints.append(f"{message.type}: {message.text}"))
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.on("dialog", lambda dialog: (seen.complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
    seen.page.on("request", lambda request: seen.requests.append(request.url))
    seen.page.goto(file.as_uri())
    return seen


@pytest.fixture(scope="module")
def desk(browser: Any, page_file: Path) -> Iterator[Seen]:
    seen = opened(browser, page_file)
    yield seen
    assert seen.complaints == []


def shown(page: Any) -> set[str]:
    return set(page.locator("#legend li").all_inner_texts())


def test_it_loads_one_file_only_and_complains_of_nothing(desk: Seen, page_file: Path) -> None:
    assert desk.requests == [page_file.as_uri()]
    assert desk.complaints == []
    assert desk.page.locator("#live-time svg").count() == 1
    assert desk.page.locator("#live-energy").is_hidden()
    assert desk.page.locator("#live-roofline svg").count() == 1
    assert desk.page.locator("p.unscripted").is_hidden()


def test_the_winner_maps_are_those_of_the_reports(desk: Seen, results: Results) -> None:
    shape = results.rows[0].case.shape
    answer = explored(results.rows, curves(results.rows, shape), shape, 4, results.description(), declare_nothing)
    assert answer is not None
    for by in ("error", "memory"):
        known = winner_map(answer, by)
        assert known is not None
        drawn = json.loads(desk.page.locator(f"#live-map-{by}").get_attribute("data-winners"))
        assert drawn == [known.winners[length, limit] for length in known.lengths for limit in known.limits]
        assert desk.page.locator(f"#live-map-{by} svg .winners rect").count() > len(known.lengths) / 2
    assert len(desk.page.locator("#map-legend li").all_inner_texts()) >= 3


def test_predictions_are_dashed_and_have_no_marks(desk: Seen) -> None:
    dashed = desk.page.locator("#live-time .foretold")
    assert dashed.first.get_attribute("stroke-dasharray") == "4 3"
    marks = desk.page.locator("#live-time .points > *").count()
    timed = len(LENGTHS) * len(builder.VARIANTS) - 1
    assert marks == timed


def test_the_filters_filter(desk: Seen) -> None:
    page = desk.page
    everyone = shown(page)
    assert len(everyone) == len(builder.VARIANTS) + 1
    page.fill("#find", "SDPA")
    assert shown(page) == {"memory_efficient/sdpa_flash"}
    assert page.locator("#live-time .points > *").count() == len(LENGTHS)
    assert set(json.loads(page.locator("#live-map-error").get_attribute("data-winners"))) <= {
        "memory_efficient/sdpa_flash",
        None,
    }
    page.fill("#find", "")
    page.check("#exact-only")
    assert shown(page) == {name for name in everyone if name.startswith(("full/", "memory_efficient/"))}
    page.uncheck("#exact-only")
    page.get_by_label("linear_scan", exact=True).uncheck()
    assert shown(page) == everyone - {"linear_scan/chunked"}
    page.click("#no-families")
    assert shown(page) == set()
    assert "Nothing to draw" in page.locator("#live-time").inner_text()
    page.click("#all-families")
    assert shown(page) == everyone


def hover(page: Any, mark: Any) -> str:
    """What the page says of a mark that the mouse points at."""
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = page.locator("#live-time svg g[aria-label=tip]")
    tip.locator("text").first.wait_for()
    return str(tip.text_content())


def test_a_mark_tells_its_figures(desk: Seen) -> None:
    page = desk.page
    assert "measured" in hover(page, page.locator("#live-time .points > *").last)
    page.mouse.move(0, 0)


def asked(page: Any, place: int, budget: tuple[str, str, str]) -> tuple[str, list[str]]:
    """Outcome and ranking of the form, in one go: thousands of key strokes would take minutes."""
    found = page.evaluate(
        """([place, limits]) => {
            const set = (name, value, event) => {
                const field = document.getElementById(name);
                field.value = value;
                field.dispatchEvent(new Event(event, {bubbles: true}));
            };
            set("length", String(place), "change");
            ["max-ms", "max-mib", "max-error"].forEach((name, index) => set(name, limits[index], "input"));
            const headline = document.getElementById("answer-headline");
            return [headline.dataset.outcome, JSON.parse(headline.dataset.ranked)];
        }""",
        [place, list(budget)],
    )
    return found[0], found[1]


def answer_of(results: Results, tokens: int, budget: tuple[str, str, str]) -> Answer:
    limits = Budget.of_options(*(float(limit) if limit else None for limit in budget))
    return choose(results.rows, Question(tokens), limits, description=results.description())


def test_the_form_answers_as_the_command_does(desk: Seen, results: Results) -> None:
    page = desk.page
    lengths = [int(text.split()[0]) for text in page.locator("#length option").all_inner_texts()]
    assert set(LENGTHS) < set(lengths)
    assert max(lengths) == 4 * LENGTHS[-1]
    draw = random.Random(5)
    outcomes, winners = set(), set()
    for tokens in (256, 1722, 4096, 6889, 16384):
        place = lengths.index(tokens)
        free = [one.figures for one in answer_of(results, tokens, ("", "", "")).fitting]
        for _ in range(12):
            budget = [""] * 3
            for index in draw.sample(range(3), draw.randint(0, 3)):
                figure = draw.choice([(one.seconds, one.total_bytes, one.error)[index] for one in free])
                assert figure is not None
                exact = draw.choice([figure.least, figure.value, figure.most, figure.value * draw.uniform(0.5, 2)])
                budget[index] = repr(exact * (1000, 2**-20, 1)[index])
            if draw.random() < 0.1:
                budget[1] = "0.001"
            limits = (budget[0], budget[1], budget[2])
            known = answer_of(results, tokens, limits)
            expected = (known.outcome, [one.label for one in known.fitting])
            assert asked(page, place, limits) == expected, (tokens, limits)
            outcomes.add(known.outcome)
            winners |= {one.label for one in known.fitting[:1]}
    assert outcomes == {"fits", "likely", "nothing fits", "impossible"}
    assert len(winners) >= 3


def test_a_limit_that_cannot_be_is_refused(desk: Seen) -> None:
    page = desk.page
    for wrong in ("0", "-1"):
        page.fill("#max-ms", wrong)
        assert "must be a positive finite number" in page.locator("#answer-headline").inner_text()
        assert page.locator("#max-ms").get_attribute("aria-invalid") == "true"
    page.click("#budget button[type=reset]")
    page.locator("#answer-headline[data-outcome=fits]").wait_for()
    assert page.locator("#max-ms").input_value() == ""


def test_the_keyboard_reaches_and_answers_the_form(browser: Any, page_file: Path) -> None:
    seen = opened(browser, page_file)
    reached = []
    for _ in range(40):
        seen.page.keyboard.press("Tab")
        reached.append(seen.page.evaluate("document.activeElement.id"))
        if reached[-1] == "max-error":
            break
    assert [name for name in reached if name] == ["shape", "length", "max-ms", "max-mib", "max-error"]
    seen.page.keyboard.type("0.001")
    seen.page.keyboard.press("Enter")
    assert seen.page.locator("#answer-headline strong").inner_text() in builder.VARIANTS
    assert "--max-error 0.001" in seen.page.locator("#answer .command").inner_text()
    unnamed = "els => els.filter(el => !el.labels.length && !el.ariaLabel).length"
    assert seen.page.locator("input, select").evaluate_all(unnamed) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_down_only(browser: Any, page_file: Path, scheme: str) -> None:
    seen = opened(browser, page_file, viewport=PHONE, color_scheme=scheme)
    assert seen.page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    paper, ink = seen.page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color].map("
        "text => text.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0))"
    )
    assert (paper > ink) == (scheme == "light")
    assert abs(paper - ink) > 450
    assert seen.complaints == []


def test_without_scripts_everything_is_there(browser: Any, page_file: Path) -> None:
    seen = opened(browser, page_file, java_script_enabled=False)
    assert seen.page.locator("p.unscripted").is_visible()
    assert not seen.page.locator("#explore").is_visible()
    assert seen.page.locator("section[aria-labelledby=s0] figure svg").first.is_visible()
    assert seen.page.get_by_text("Status by length in tokens").first.is_visible()


def test_no_results_file_can_change_the_page(browser: Any, tmp_path: Path) -> None:
    lines = landscape([256, 512, 1024, 2048])
    for index, line in enumerate(lines):
        evil = EVIL[index % len(EVIL)]
        line["reason"] = "".join(EVIL) if line["status"] != "ok" else ""
        line["kernel"] = line["commit"] = line["measured_at"] = line["baseline"] = line["run"] = evil
        line["case"]["variant"] = f"{line['case']['variant']}{EVIL[len(line['case']['variant']) % len(EVIL)]}"
        line["case"]["parameters"] = {EVIL[0]: 1, EVIL[1]: 2}
        line["case"]["inputs"] = line["case"]["inputs"].replace("smooth", EVIL[1])
        line["key"] = json.dumps(line["case"], sort_keys=True)
    lines.append(failed("full/matmul", 256, "error", EVIL[0], dtype=EVIL[0], device=EVIL[1], mode=EVIL[3]))
    machine = {**builder.DESCRIPTION, "cpu": EVIL[1], EVIL[0]: {EVIL[2]: list(EVIL)}}
    clean = tmp_path / "clean.html"
    clean.write_text(render(read(write(tmp_path / "a", landscape([256, 512]))), "1"), "utf-8")
    file = tmp_path / "evil.html"
    file.write_text(render(read(write(tmp_path / "b", lines, machine)), EVIL[0]), "utf-8")
    seen, usual = opened(browser, file), opened(browser, clean)
    for page in (seen.page, usual.page):
        page.fill("#max-error", "0.9")
        hover(page, page.locator("#live-time .points > *").first)
    assert seen.complaints == []
    assert seen.requests == [file.as_uri()]
    assert seen.page.locator("img[src='x'], [onerror], [onload]").count() == 0
    assert seen.page.locator("script").count() == usual.page.locator("script").count()
    kinds = "[...new Set([...document.querySelectorAll('*')].map(el => el.tagName.toLowerCase()))]"
    assert set(seen.page.evaluate(kinds)) == set(usual.page.evaluate(kinds))
    assert EVIL[0] in seen.page.locator("#answer").inner_text()
