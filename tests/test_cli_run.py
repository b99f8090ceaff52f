"""The command line where it measures: list, check, run and docs, as a user types them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

import attnscape
from benchmarks.campaign import Outcome
from benchmarks.measurement import Measurement
from variants.catalogue import names

ROOT = Path(__file__).parents[1]
WINDOWS = ["local_window/masked", "local_window/tiled"]
SMALL = ["--variants", ",".join(WINDOWS), "--tokens", "64", "--seconds", "8", "--inputs", "normal,peaky", "--causal"]


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = attnscape.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    assert attnscape.main(["run", *SMALL, "--out", str(folder)]) == 0
    return folder


def rows_of(folder: Path) -> list[Measurement]:
    lines = (folder / "measurements.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=Measurement) for line in lines]


def test_list_names_every_file_and_imports_no_torch() -> None:
    code = (
        "import sys, attnscape; status = attnscape.main(['list', '--names']);"
        "sys.exit(status or any(name in sys.modules for name in ('torch', 'pandas', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == names()


def test_list_says_of_each_variant_where_it_runs_or_every_reason_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "list", "--json")
    items = {item["name"]: item for item in json.loads(out)}
    assert status == 0
    assert list(items) == names()
    assert items["memory_efficient/sdpa_flash"]["ready_on"][0] == "cpu"
    assert items["memory_efficient/sdpa_flash"]["default"]
    assert all(item["ready_on"] or any(item["refusals"].values()) for item in items.values())
    assert (
        "no CUDA device" in str(items["memory_efficient/xformers"]["refusals"])
        or items["memory_efficient/xformers"]["ready_on"]
    )


def test_a_package_that_is_missing_is_named_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = [sys.executable, "-S", "-m", "attnscape", "gpu"]  # without any installed package
    done = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "the package typer is not installed" in done.stderr
    monkeypatch.setitem(sys.modules, "msgspec", None)
    monkeypatch.delitem(sys.modules, "benchmarks.measurement", raising=False)
    monkeypatch.delitem(sys.modules, "benchmarks.campaign", raising=False)
    status, out, err = call(capsys, "run", "--plan")
    assert (status, out, err.count("\n")) == (2, "", 1) and "the package msgspec is not installed" in err


def test_a_module_of_our_own_that_is_missing_is_a_fault_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.campaign", None)
    with pytest.raises(ModuleNotFoundError, match=r"benchmarks\.campaign"):
        attnscape.main(["run", "--plan"])


def test_check_finds_the_window_right(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "check", *WINDOWS, "--tokens", "40", "--inputs", "normal", "--set", "window=8")
    assert status == 0
    assert "8 of 8 are right." in out
    assert "local_window/tiled (window 8)" in out
    assert re.search(r"tiled \(window 8\) +yes +4 over 2 +40 +normal +ok", out)
    assert re.search(r"tiled \(window 8\) +yes +4 +40 over 61 +normal +ok", out)


def test_check_ends_with_1_where_a_variant_is_wrong(
    capsys: pytest.CaptureFixture[str], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = msgspec.structs.replace(rows_of(results)[0], status="wrong", reason="implementation error 1e-1 > 2e-05")
    monkeypatch.setattr("benchmarks.campaign.check_variants", lambda *_, **__: [wrong])
    status, out, _ = call(capsys, "check")
    assert status == 1
    assert "0 of 1 are right." in out
    assert wrong.reason in out


def test_check_names_the_problems_that_a_variant_was_left_out_of(
    capsys: pytest.CaptureFixture[str], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = rows_of(results)[0]
    decoding = msgspec.structs.replace(row.case, tokens=1, kv_tokens=77, inputs="q.safetensors#3@0123abcd")
    refused = msgspec.structs.replace(row, case=decoding, status="unsupported", reason="as many queries as keys only")
    card = msgspec.structs.replace(row.case, variant="memory_efficient/sdpa_cudnn")
    absent = msgspec.structs.replace(row, case=card, status="unsupported", reason="needs CUDA")
    monkeypatch.setattr("benchmarks.campaign.check_variants", lambda *_, **__: [row, refused, absent])
    status, out, _ = call(capsys, "check")
    left = out[out.index("Left out") :]
    assert status == 0
    assert re.search(rf"{row.case.variant} +yes +8 +1 over 77 +{decoding.inputs} +{refused.reason}", left)
    assert "Not on this machine (`attnscape list` says why): memory_efficient/sdpa_cudnn." in left


def test_a_run_ends_with_1_where_a_row_of_it_is_wrong(
    capsys: pytest.CaptureFixture[str], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = rows_of(results)[0]
    cases = [msgspec.structs.replace(row.case, causal=causal, inputs=inputs) for causal, inputs in WRONG_ON]
    rows = [
        msgspec.structs.replace(row, case=case, status="wrong", reason=f"implementation error {n}e-1 > 2e-05")
        for n, case in enumerate(cases)
    ]
    for found, expected in (([], 0), ([row], 0), ([row, *rows], 1)):
        outcome = Outcome(rows=found, seconds=1.0)
        monkeypatch.setattr("benchmarks.campaign.run_campaign", lambda *_, outcome=outcome, **__: outcome)
        status, out, _ = call(capsys, "run", "--variants", "full/matmul")
        assert status == expected
    for (causal, inputs), wrong in zip(WRONG_ON, rows, strict=True):
        assert re.search(rf"{re.escape(wrong.reason)} +{'yes' if causal else 'no'} +{inputs} +64\n", out)


WRONG_ON = [(False, "normal"), (True, "normal"), (True, "peaky")]


def test_a_run_without_time_is_refused_before_torch_is_loaded() -> None:
    code = (
        "import sys, attnscape; status = attnscape.main(['run', '--seconds', '0']);"
        "sys.exit(10 * ('torch' in sys.modules) + status)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "attnscape: --seconds must be positive, not 0\n")


@pytest.mark.parametrize("at", ["benchmarks.request_options.request_of", "benchmarks.campaign.run_campaign"])
def test_ctrl_c_before_the_first_row_says_that_the_same_command_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(at, interrupted)
    status, out, err = call(capsys, "run", "--variants", "full/matmul", "--out", "kept")
    said = "attnscape: stopped; what is done is in kept, and the same command goes on from there\n"
    assert (status, out, err) == (130, "", said)


def test_a_run_writes_a_row_for_each_case_with_its_machine(results: Path) -> None:
    rows = rows_of(results)
    assert {(row.case.variant, row.case.inputs) for row in rows} == {
        (f"local_window/{form}", inputs) for form in ("masked", "tiled") for inputs in ("normal", "peaky")
    }
    assert all(row.status == "ok" and row.implementation_error is not None for row in rows)
    timed = [row for row in rows if row.case.inputs == "normal"]
    assert all(row.seconds and row.ratio and row.extra_bytes is not None and row.baseline for row in timed)
    assert all(row.seconds is None for row in rows if row.case.inputs == "peaky")
    (machine,) = (results / "machines").iterdir()
    assert json.loads(machine.read_text())["key"] == rows[0].machine == machine.stem
    assert json.loads(machine.read_text())["ceilings"]["matmul_flops"]["float32"] > 0


def test_the_same_command_measures_nothing_twice(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    before = (results / "measurements.jsonl").read_bytes()
    status, out, _ = call(capsys, "run", *SMALL, "--out", results, "--json")
    summary = json.loads(out)
    assert status == 0
    assert (summary["measured"], summary["already_there"]) == (0, 4)
    assert (results / "measurements.jsonl").read_bytes() == before


def test_what_was_run_can_be_reported_and_chosen_from(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    status, out, _ = call(capsys, "report", "--results", results, "--picture", results / "picture.png")
    assert status == 0
    assert Path(out.strip()).read_text().startswith("<!")
    assert (results / "picture.png").read_bytes().startswith(b"\x89PNG")
    status, out, _ = call(
        capsys, "choose", "--results", results, "--tokens", 64, "--causal", "--max-ms", 10000, "--json"
    )
    assert status == 0
    assert json.loads(out)["fits"]


def test_a_plan_measures_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, _ = call(capsys, "run", "--plan", "--json", "--tokens", "64:128", "--out", tmp_path / "none")
    planned = json.loads(out)
    assert status == 0
    assert not (tmp_path / "none").exists()
    assert {entry["case"]["variant"] for entry in planned} == set(names())
    assert all(entry["predicted_bytes"] > 0 for entry in planned)
    status, out, _ = call(capsys, "run", "--plan", "--tokens", "64", "--variants", "memory_efficient/xformers")
    assert "needs CUDA" in out or "time, memory, errors" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "--variants", "local_windw"], "nearest is 'local_window'"),
        (["run", "--tokens", "-5"], "a whole number from 1"),
        (["run", "--tokens", "512:256"], "the second must not be less"),
        (["run", "--tokens", "64,256:1000"], "from 512 to 1024 and leaves out 1000; write 256:512,1000"),
        (["run", "--kv-heads", "3"], "3 does not divide 8"),
        (["run", "--dtype", "float8"], "dtype must be one of"),
        (["run", "--mode", "backward"], "mode must be one of"),
        (["run", "--device", "tpu"], "device must be cpu, cuda or cuda:N"),
        (["run", "--inputs", "random"], "inputs must be among"),
        (["run", "--set", "window"], "such as window=128"),
        (["run", "--set", "rnk=4"], "no chosen variant has a parameter 'rnk'"),
        (["run", "--set", "rank=3"], "rank must divide block"),
        (["run", "--set", "window=0"], "window must be a whole number from 1"),
        (["run", "--seconds", "nan"], "--seconds must be positive"),
        (["run", "--seconds", "-1"], "--seconds must be positive"),
        (["run", "--threads", "-1"], "--threads must be 0, for all that this process may use, or how many, not -1"),
        (["run", "--threads", "4096"], "which is what this process may use, not 4096"),
        (["tune", "--max-error", "1", "--tokens", "8", "--threads", "4096"], "this process may use, not 4096"),
        (["profile", "full/matmul", "--tokens", "8", "--threads", "-1"], "or how many, not -1"),
        (["profile", "full/matmul", "--tokens", "8", "--threads", "4096"], "this process may use, not 4096"),
        (["peers", "--threads", "-1"], "or how many, not -1"),
        (["check", "--heads", "6", "--kv-heads", "4"], "4 does not divide 6"),
        (["check", "no_such/thing"], "unknown variant 'no_such/thing'"),
        (["check", "--tokens", "many"], "a whole number from 1"),
        (["run", "--no-such-option"], "--no-such-option"),
    ],
)
def test_bad_input_is_one_line_and_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], told: str
) -> None:
    extra = ["--out", str(tmp_path / "out")] if words[0] == "run" else []
    status, out, err = call(capsys, *words, *extra)
    assert status == 2
    assert not out
    assert err.startswith("attnscape: ")
    assert told in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out" / "measurements.jsonl").exists()


def test_results_of_another_schema_are_refused_and_kept(
    capsys: pytest.CaptureFixture[str], results: Path, tmp_path: Path
) -> None:
    old = (results / "measurements.jsonl").read_bytes().replace(b'"schema":1', b'"schema":99')
    (tmp_path / "measurements.jsonl").write_bytes(old)
    status, _, err = call(capsys, "run", *SMALL, "--out", tmp_path)
    assert status == 2
    assert "schema 99" in err
    assert (tmp_path / "measurements.jsonl").read_bytes() == old


def test_a_folder_that_is_a_file_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    status, _, err = call(capsys, "run", *SMALL, "--out", tmp_path / "file")
    assert status == 2
    assert "cannot write to" in err
    assert (tmp_path / "file").read_text() == "mine"


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [sys.executable, "-m", "attnscape", "run", "--variants", "local_window/tiled", "--tokens", "64:128"]
    words += ["--inputs", "normal,smooth,peaky,sink,local", "--causal", "--seconds", "60", "--out", str(tmp_path)]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        file = tmp_path / "measurements.jsonl"
        deadline = time.monotonic() + 60
        while not (file.exists() and file.read_bytes().count(b"\n") >= 8):
            assert time.monotonic() < deadline, "no rows within a minute"
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command goes on from there" in err
    kept = rows_of(tmp_path)
    assert len(kept) >= 8
    # In this process, which has a zygote already.
    status, out, _ = call(capsys, *words[3:-4], "--seconds", "8", "--out", tmp_path, "--json")
    assert (status, json.loads(out)["already_there"]) == (0, len(kept))
    assert len(rows_of(tmp_path)) == 10


def test_generated_documents_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "docs", "--check")
    assert (status, out) == (0, "")


def test_every_command_shows_an_example_and_stands_in_the_documents() -> None:
    helps = attnscape._command_helps()
    assert {"list", "check", "run", "choose", "report"} <= set(helps)
    readme = (ROOT / "README.md").read_text()
    for name, text in helps.items():
        assert re.search(rf"Examples?:\n    attnscape {name}", text), name
    assert all(f"attnscape {name}" in readme for name in ("list", "check", "run", "choose", "report"))
