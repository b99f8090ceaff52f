"""The front door: `choose` and `report`, their exit statuses, and one clear line for bad input."""

import json
import os
import pty
import re
import resource
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import attnscape
from tests import results_builder as builder
from tests.results_builder import landscape, write

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "pandas", "numpy", "matplotlib", "jinja2")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write(tmp_path / "results", landscape())


def run(*arguments: object) -> int:
    return attnscape.main([str(argument) for argument in arguments])


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of a refusal; nothing may be on stdout."""
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("attnscape: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err


def program(*arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "attnscape", *map(str, arguments)]
    environment = os.environ | settings
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)


# ---- choose


def test_something_fits(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("choose", "--results", results, "--tokens", 4096, "--max-time", "100ms", "--max-mem", "64MiB")
    command = (*command, "--max-error", 0.5)
    assert run(*command) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for said in (
        "Take blockwise_low_rank/merged (block 128, rank 4): 36.9 ms, 55.4 MiB in total, error 0.29 on normal inputs.",
        "The error limit binds: it alone keeps out linear_scan/chunked, local_window/tiled (window 256)",
        "Crossover at ~656 tokens",
        "takes 160 ms, 1.60 times the limit of 100 ms",
        "unsupported at 4096 tokens: needs CUDA; no float32",
        "machine a1b2c3d4 (Example CPU at 2.60 GHz)",
        "Time and memory were measured at 4096 tokens.",
    ):
        assert said in out


def test_interpolated_figures_are_marked(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("choose", "--results", results, "--tokens", 6000) == 0
    out, _ = capsys.readouterr()
    assert "Take linear_scan/chunked: ~32.2 ms, ~75.5 MiB in total, error ~0.72" in out
    assert "~ is interpolated; time and memory between the measured 4096 and 16384 tokens." in out


def test_advice_that_loses_to_the_mean_of_v_says_so(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("choose", "--results", results, "--tokens", 4096)
    assert run(*asked, "--max-ms", 30, "--max-error", 2) == 0
    fast = "linear_scan/chunked"
    assert f"Take {fast}" in capsys.readouterr().out
    lines = [one for one in landscape() if one["case"]["variant"] in ("local_window/tiled", "full/matmul")]
    write(results, lines)
    assert run(*asked, "--max-ms", 30) == 0
    out, _ = capsys.readouterr()
    assert "Take local_window/tiled (window 256)" in out
    assert "It is no better than the mean of V, whose error is 0.80: here it approximates nothing." in out
    assert "no better than mean" in out
    assert run(*asked) == 0
    out, _ = capsys.readouterr()
    assert "Take full/matmul" in out
    assert "Faster, but no better than the mean of V: local_window/tiled (window 256)." in out
    assert "The mean of V alone has an error of 0.80 on normal inputs: what is not closer approximates nothing." in out


def test_nothing_fits(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("choose", "--results", results, "--tokens", 4096, "--max-ms", 1, "--max-error", 1e-9) == 1
    out, _ = capsys.readouterr()
    assert "Nothing fits." in out
    assert "time alone: no rise of it helps" in out
    assert "all together: --max-ms" in out
    assert "below the rounding of float32" in out


def test_sure_and_likely_budgets_are_told_apart(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("choose", "--results", results, "--tokens", 3000, "--max-ms", 1) == 1
    lines = capsys.readouterr().out.splitlines()
    sure = lines.index("To be sure, the nearest budgets:")
    likely = lines.index("The nearest budgets that something likely fits:")
    budgets = [float(lines[place + 1].split()[3]) for place in (sure, likely)]
    assert all("time alone: --max-ms" in lines[place + 1] for place in (sure, likely)) and budgets[1] < budgets[0]
    assert run("choose", "--results", results, "--tokens", 3000, "--max-ms", budgets[1]) == 0
    assert "Likely take" in capsys.readouterr().out


def test_the_named_budget_fits_when_it_is_typed(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("choose", "--results", results, "--tokens", 3000)
    assert run(*asked, "--max-ms", 1, "--max-mib", 30, "--max-error", 0.01, "--json") == 1
    options = json.loads(capsys.readouterr().out)["nearest"]["joint"]["options"]
    assert run(*asked, *options.split()) == 0


def test_json_is_one_document_with_everything(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("choose", "--results", results, "--tokens", 4096, "--max-ms", 200, "--json") == 0
    out, err = capsys.readouterr()
    assert err == ""
    answer = json.loads(out)
    assert (answer["schema"], answer["fits"], answer["machine"]) == (2, True, builder.MACHINE)
    first = answer["fitting"][0]
    assert first["figures"]["seconds"] == {
        "value": pytest.approx(0.022),
        "provenance": "measured",
        "low": pytest.approx(0.022 * 0.98),
        "high": pytest.approx(0.022 * 1.02),
    }
    assert answer["budget"] == {"max_seconds": 0.2, "max_bytes": None, "max_error": None}
    assert {one["variant"] for one in answer["fitting"] + answer["rejected"]} == {
        *builder.VARIANTS,
        "memory_efficient/xformers",
    }
    assert all(one["reasons"] for one in answer["rejected"])


def test_one_machine_of_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = landscape([256]) + [line | {"machine": "other", "key": "x" + line["key"]} for line in landscape([512])]
    folder = write(tmp_path, lines)
    assert "--machine" in refusal(capsys, "choose", "--results", folder, "--tokens", 256)
    assert run("choose", "--results", folder, "--tokens", 512, "--machine", "oth") == 0
    capsys.readouterr()
    assert "no machine 'zz'" in refusal(capsys, "choose", "--results", folder, "--tokens", 256, "--machine", "zz")


# ---- bad input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tokens", "-5"), "tokens must be a whole number of at least 1, not -5"),
        (("--tokens", "0"), "not 0"),
        (("--tokens", "many"), "'--tokens'"),
        ((), "Missing option '--tokens'"),
        (("--tokens", "256", "--kv-heads", "3"), "kv_heads must divide heads: 3 does not divide 8"),
        (("--tokens", "256", "--max-ms", "nan"), "the time limit must be a positive finite number, not nan"),
        (("--tokens", "256", "--max-mib", "0"), "the memory limit must be a positive finite number, not 0"),
        (("--tokens", "256", "--max-error", "-1"), "the error limit must be a positive finite number, not -1"),
        (("--tokens", "256", "--max-ms", "inf"), "not inf"),
        (("--tokens", "256", "--dtype", "int8"), "dtype must be one of"),
        (("--tokens", "256", "--mode", "up"), "mode must be one of"),
        (("--tokens", "256", "--device", "cuda:x"), "device must be cpu, cuda or cuda:N"),
        (("--tokens", "256", "--inputs", "odd"), "nothing was measured on 'odd' inputs"),
        (("--tokens", "255"), "255 tokens is below the measured lengths (256 to 16384)"),
        (("--tokens", "65537"), "65537 tokens is more than 4 times beyond the measured lengths (256 to 16384)"),
        (("--tokens", "256", "--max-time", "5"), "must be a number with a unit, such as 5ms"),
        (("--tokens", "256", "--max-time", "0ms"), "the time limit must be a positive finite number, not 0"),
        (("--tokens", "256", "--max-time=-5ms"), "the time limit must be a positive finite number, not -0.005"),
        (("--tokens", "256", "--max-time", "nan s"), "the time limit must be a positive finite number, not nan"),
        (("--tokens", "256", "--max-mem", "8 parsec"), "such as 8GiB, 512MiB or 500MB, not '8 parsec'"),
        (("--tokens", "256", "--max-mem", "0GiB"), "the memory limit must be a positive finite number, not 0"),
        (("--tokens", "256", "--max-mem", "1GiB", "--max-mib", "5"), "--max-mem and --max-mib are the same limit"),
        (("--tokens", "256", "--max-time", "1s", "--max-ms", "5"), "--max-time and --max-ms are the same limit"),
        (("--tokens", "256", "--card", "Z9000"), "no single card is called 'Z9000'; known are NVIDIA A100"),
        (("--tokens", "256", "--card", "/nowhere/card.toml"), "cannot read /nowhere/card.toml"),
        (("--tokens", "256", "--causal"), "closest first: not causal"),
        (("--tokens", "256", "--colour", "red"), "No such option"),
        (("--tokens", "256", "extra"), "extra"),
    ],
)
def test_bad_input_is_one_line(
    results: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    assert said in refusal(capsys, "choose", "--results", results, *options)


def test_bad_results_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("choose", "--tokens", 256, "--results")
    assert "no results at" in refusal(capsys, *asked, tmp_path / "nowhere")
    folder = write(tmp_path, landscape([256]))
    file = folder / "measurements.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-30])
    assert "was cut short" in refusal(capsys, *asked, folder)
    file.write_bytes(whole.replace(b'"schema": 1', b'"schema": 2'))
    assert "has schema 2" in refusal(capsys, *asked, folder)
    file.write_bytes(b"")
    assert "holds no measurements" in refusal(capsys, *asked, folder)


@pytest.mark.parametrize(
    ("asked", "advised"),
    [(None, "results"), ("/nosuch", "/nosuch"), ("a/b", "a/b"), ("a/measurements.jsonl", "a"), ("a/b.parquet", "a")],
)
def test_results_that_are_not_there_name_the_folder_to_fill(
    asked: str | None, advised: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    err = refusal(capsys, "choose", "--tokens", 256, *(("--results", asked) if asked else ()))
    assert f"`attnscape run --out {advised}` writes them" in err


def test_a_doubt_is_a_sentence(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("choose", "--results", results, "--tokens", 3000, "--max-ms", 60, "--max-error", 0.291) == 0
    assert "It need not fit: it has an error of 0.29, but its band reaches up to" in capsys.readouterr().out


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "No such command 'chose'" in refusal(capsys, "chose")


def test_a_long_refusal_stays_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refusal(capsys, "choose", "--tokens", 256, "--results", tmp_path / "line\nbreak\x1b[31m")


# ---- report


def test_report_writes_a_page_and_prints_its_path(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("report", "--results", results) == 0
    out, err = capsys.readouterr()
    assert (out.strip(), err) == (str(results / "report.html"), "")
    assert (results / "report.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    assert run("report", "--results", results) == 0, "a page is replaced by a newer one"


def test_report_keeps_files_that_are_no_page(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "notes.html"
    other.write_text("mine", "utf-8")
    assert "--force replaces it" in refusal(capsys, "report", "--results", results, "--out", other)
    assert other.read_text("utf-8") == "mine"
    assert run("report", "--results", results, "--out", other, "--force") == 0
    rows = results / "measurements.jsonl"
    capsys.readouterr()
    assert "holds the results themselves" in refusal(capsys, "report", "--results", rows, "--out", rows, "--force")


def test_a_folder_that_cannot_be_written(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    for out in (tmp_path / "file" / "page.html", results):
        assert str(tmp_path) in refusal(capsys, "report", "--results", results, "--out", out, "--force")


# ---- the program


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("choose", "report", "validate-choice"):
        assert run(command, "--help") == 0
        out, _ = capsys.readouterr()
        assert f"\n    attnscape {command} --" in out


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert "attnscape [OPTIONS] COMMAND" in capsys.readouterr().out


def test_output_that_cannot_be_written_is_one_line(results: Path) -> None:
    command = [sys.executable, "-m", "attnscape", "choose", "--results", str(results), "--tokens", "256"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=100, check=False
        )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("attnscape ")


def test_choose_imports_nothing_heavy(results: Path) -> None:
    check = (
        "import sys, attnscape;"
        f"status = attnscape.main(['choose', '--results', {str(results)!r}, '--tokens', '4096']);"
        f"heavy = sorted(set({HEAVY!r}) & set(sys.modules));"
        "sys.exit(f'{status} {heavy}' if status or heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [("--help",), ("choose", "--tokens", "4096")])
def test_it_starts_within_half_a_second_of_processor_time(results: Path, arguments: tuple[str, ...]) -> None:
    if arguments[0] == "choose":
        arguments = (*arguments, "--results", str(results))
    spent = [children_seconds()]
    # The least of several: what else the machine does can only add to it.
    while len(spent) < 2 or (spent[-1] - spent[-2] >= 0.5 and len(spent) < 16):
        assert program(*arguments).returncode == 0
        spent.append(children_seconds())
    assert min(after - before for before, after in pairwise(spent)) < 0.5


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_piped_text_is_plain_and_a_terminal_gets_the_same_words(results: Path) -> None:
    arguments = ("choose", "--results", results, "--tokens", 4096, "--max-ms", 100)
    piped = program(*arguments).stdout
    assert "\x1b" not in piped
    assert "─" not in piped
    shown = on_a_terminal(*arguments)
    assert "─" in shown
    assert "Fits, best first" in shown
    assert "Fits, best first" in piped


def test_text_survives_a_narrow_encoding(results: Path) -> None:
    done = program("choose", "--results", results, "--tokens", 256, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_narrow_terminal_gets_records_instead_of_columns(results: Path) -> None:
    shown = on_a_terminal("choose", "--results", results, "--tokens", 4096, columns=60)
    lines = shown.replace("\r", "").splitlines()
    assert max(map(len, lines)) <= 60
    assert "linear_scan/chunked" in lines
    assert any(line.startswith("  time 22.0 ms, band 21.6 to 22.4 ms") for line in lines)


def on_a_terminal(*arguments: object, columns: int = 200) -> str:
    """What the program prints on a terminal."""
    settings = {"COLUMNS": str(columns), "TERM": "xterm"}
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "attnscape", *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=theirs, env=os.environ | settings) as child:
        os.close(theirs)
        shown = b""
        while chunk := read_some(ours):
            shown += chunk
        os.close(ours)
        assert child.wait(100) == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())


def read_some(descriptor: int) -> bytes:
    """The next output; nothing once the program has closed its end, which Linux reports as an error."""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""
