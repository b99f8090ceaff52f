"""The measurements that come with the project: whole, small, and answers without any of one's own."""

import json
import re
from pathlib import Path

import pytest

import attnscape
from reports.processor import EXTENSIONS, machine_name, processor_name
from reports.records import ResultsError, read
from reports.shipped import MEASURED, shipped
from tests.results_builder import DESCRIPTION, landscape, write

FOLDERS = sorted(place for place in MEASURED.iterdir() if place.is_dir())
MOST_BYTES = 4 * 2**20


def test_something_is_shipped_and_it_is_small() -> None:
    assert FOLDERS
    assert sum(file.stat().st_size for file in MEASURED.rglob("*") if file.is_file()) < MOST_BYTES


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_each_folder_is_of_one_machine_that_is_described(folder: Path) -> None:
    found = read(folder)
    assert found.machines == [folder.name]
    assert machine_name(found.of_machine().description()).strip(" ,")
    assert any(row.seconds is not None for row in found.rows)
    assert shipped(folder.name).path == found.path
    names = {file.name for file in folder.rglob("*") if file.is_file()}
    assert names == {"measurements.parquet", f"{folder.name}.json"}


def test_choose_answers_from_what_is_shipped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    words = ["choose", "--on", FOLDERS[0].name, "--tokens", "1000", "--json"]
    assert attnscape.main(words) == 0
    assert json.loads(capsys.readouterr().out)["fits"]


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert attnscape.main(["choose", "--tokens", "1000", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_a_name_must_be_of_one_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "'abacus' is part of none of their names: " in refusal(capsys, "--on", "abacus")
    assert "--card H200 answers for NVIDIA H200" in refusal(capsys, "--on", "NVIDIA H200")
    assert "give one of them" in refusal(capsys, "--on", FOLDERS[0].name, "--results", str(tmp_path))
    for name in ("first", "second"):
        write(tmp_path / name, landscape())
    write(tmp_path / "third", landscape(), DESCRIPTION | {"cpu": "Another"})
    both = "Example CPU at 2.60 GHz, 2 threads (first); Example CPU at 2.60 GHz, 2 threads (second)"
    with pytest.raises(ResultsError, match=rf"matches 2 shipped machines, .*: {re.escape(both)}$"):
        shipped("example cpu", tmp_path)
    assert len(shipped("FIRST", tmp_path).rows) == len(landscape())


def test_machines_are_named_by_their_card_or_processor() -> None:
    assert machine_name(DESCRIPTION) == "Example CPU at 2.60 GHz, 2 threads"
    assert machine_name(DESCRIPTION | {"gpu": {"name": "NVIDIA H200"}}) == "NVIDIA H200"
    assert machine_name({}) == "unknown processor"


@pytest.mark.parametrize("number", range(len(EXTENSIONS)))
def test_processors_of_one_name_are_told_apart_by_their_widest_extension(number: int) -> None:
    flags = ["fma", *EXTENSIONS[number:]]
    assert processor_name({"cpu": "AMD EPYC", "cpu_flags": flags}) == f"AMD EPYC with {EXTENSIONS[number]}"
