"""The results folder: append-only, one writer, and no half-written line is ever read as a measurement."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.measurement import SCHEMA, Case, Measurement
from benchmarks.store import Store, StoreError
from variants import Problem

ROOT = Path(__file__).parent.parent


def row(tokens: int, *, code: str = "c0de", machine: str = "cpu-1", **fields: Any) -> Measurement:
    case = Case.of("full/matmul", {}, Problem(tokens=tokens), "normal")
    made: dict[str, Any] = {
        "key": case.key(machine),
        "run": "r",
        "machine": machine,
        "measured_at": "2026-01-05T10:00:00+00:00",
        "code": code,
        "commit": "",
        "dirty": True,
        "definition": "full",
        "exact": True,
        "case": case,
        "status": "ok",
    }
    return Measurement(**made | fields)


def write(folder: Path, *rows: Measurement) -> Path:
    with Store(folder) as store:
        for each in rows:
            store.append(each)
    return folder / "measurements.jsonl"


def stored(folder: Path) -> list[Measurement]:
    with Store(folder) as store:
        return store.rows


# ---- append and read again


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [row(8, seconds=0.25, wall_samples=[0.2, 0.3], seconds_low=0.2), row(16, status="timeout", reason="60 s")]
    write(tmp_path / "new" / "folder", *rows)
    assert stored(tmp_path / "new" / "folder") == rows


def test_appending_goes_on_after_the_last_line(tmp_path: Path) -> None:
    write(tmp_path, row(8))
    first = (tmp_path / "measurements.jsonl").read_bytes()
    write(tmp_path, row(16), row(32))
    assert (tmp_path / "measurements.jsonl").read_bytes().startswith(first)
    assert [each.case.tokens for each in stored(tmp_path)] == [8, 16, 32]


def test_every_line_is_on_the_disk_before_the_next(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for count, tokens in enumerate((8, 16), 1):
            store.append(row(tokens))
            lines = (tmp_path / "measurements.jsonl").read_bytes().splitlines()
            assert [json.loads(line)["schema"] for line in lines] == [SCHEMA] * count


def test_done_is_what_this_code_has_measured(tmp_path: Path) -> None:
    rows = [row(8), row(16, status="wrong", reason="error 1"), row(32, code="0ther"), row(8, machine="cpu-2")]
    write(tmp_path, *rows)
    with Store(tmp_path) as store:
        assert store.done("c0de") == {rows[0].key, rows[1].key, rows[3].key}
        assert store.done("0ther") == {rows[2].key}
        assert store.done("new") == set()
        store.append(row(64))
        assert row(64).key in store.done("c0de")


def test_a_key_tells_cases_and_machines_apart() -> None:
    case = Case.of("full/matmul", {}, Problem(tokens=8), "normal")
    changed = [
        msgspec.structs.replace(case, **change)
        for change in (
            {"tokens": 9},
            {"parameters": {"window": 4}},
            {"causal": True},
            {"inputs": "smooth"},
            {"seed": 1},
        )
    ]
    keys = [each.key("cpu-1") for each in (case, *changed)] + [case.key("cpu-2")]
    assert len(set(keys)) == len(keys)
    assert case.key("cpu-1") == Case.of("full/matmul", {}, Problem(tokens=8), "normal").key("cpu-1")


# ---- lines that were cut short


@pytest.mark.parametrize("left", [0, 1, 40, -2])
def test_a_last_line_cut_short_is_dropped_and_the_rest_kept(tmp_path: Path, left: int) -> None:
    file = write(tmp_path, row(8), row(16))
    whole = file.read_bytes()
    file.write_bytes(whole + whole.splitlines(keepends=True)[0][:left])
    assert [each.case.tokens for each in stored(tmp_path)] == [8, 16]
    assert file.read_bytes() == whole  # repaired, so that the next line does not join the torn one
    write(tmp_path, row(32))
    assert [each.case.tokens for each in stored(tmp_path)] == [8, 16, 32]


def test_a_file_of_one_torn_line_holds_nothing(tmp_path: Path) -> None:
    file = write(tmp_path, row(8))
    file.write_bytes(file.read_bytes()[:50])
    assert stored(tmp_path) == []


def test_a_torn_line_in_the_middle_is_named_and_nothing_is_touched(tmp_path: Path) -> None:
    file = write(tmp_path, row(8), row(16), row(32))
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[1][:60] + b"\n" + lines[2])
    before = file.read_bytes()
    with (
        pytest.raises(StoreError, match=r"measurements\.jsonl, line 2: not a measurement of schema 1"),
        Store(tmp_path),
    ):
        pass
    assert file.read_bytes() == before


# ---- what must not be touched


def test_another_schema_is_refused_by_name_and_left_alone(tmp_path: Path) -> None:
    file = write(tmp_path, row(8))
    line = json.loads(file.read_bytes()) | {"schema": SCHEMA + 1}
    before = json.dumps(line).encode() + b"\n" + b'{"schema": 2, "key": "never fini'
    file.write_bytes(before)
    said = rf"measurements\.jsonl, line 1: schema {SCHEMA + 1}, but this program writes schema {SCHEMA}"
    with pytest.raises(StoreError, match=said), Store(tmp_path):
        pass
    assert file.read_bytes() == before


def test_another_schema_with_other_fields_is_refused_by_its_number(tmp_path: Path) -> None:
    file = write(tmp_path, row(8))
    line = json.loads(file.read_bytes()) | {"schema": SCHEMA + 1, "case": "elsewhere", "seconds": {"median": 1}}
    file.write_bytes(json.dumps(line).encode() + b"\n")
    with pytest.raises(StoreError, match=rf"line 1: schema {SCHEMA + 1}, but this program"), Store(tmp_path):
        pass


@pytest.mark.parametrize("content", [b"hello\n", b"[1, 2]\n", b"\xff\xfe\n", b"{}\n", b"\n"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "measurements.jsonl").write_bytes(content)
    with pytest.raises(StoreError, match=r"line 1: "), Store(tmp_path):
        pass
    assert (tmp_path / "measurements.jsonl").read_bytes() == content


def test_a_refused_folder_is_free_again(tmp_path: Path) -> None:
    file = tmp_path / "measurements.jsonl"
    file.write_bytes(b"hello\n")
    for _ in range(2):
        with pytest.raises(StoreError, match="line 1"), Store(tmp_path):
            pass
    file.unlink()
    assert stored(tmp_path) == []


# ---- one writer


def test_a_second_runner_is_refused(tmp_path: Path) -> None:
    with Store(tmp_path):
        with pytest.raises(StoreError, match=rf"another run is writing to {tmp_path}; wait for it or choose"):
            Store(tmp_path).__enter__()
        script = (
            "import sys; from pathlib import Path; from benchmarks.store import *; Store(Path(sys.argv[1])).__enter__()"
        )
        command = [sys.executable, "-c", script, str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 1
        assert "another run is writing to" in done.stderr
    assert stored(tmp_path) == []  # and free when the first is done


def test_a_runner_that_failed_lets_go(tmp_path: Path) -> None:
    def fail(store: Store) -> None:
        store.append(row(8))
        raise KeyError

    with pytest.raises(KeyError), Store(tmp_path) as store:
        fail(store)
    assert len(stored(tmp_path)) == 1


# ---- disks


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match=f"cannot write to {folder}: "), Store(folder):
            pass
    with pytest.raises(StoreError, match="cannot write to /proc/nowhere"), Store(Path("/proc/nowhere")):
        pass


def test_a_results_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "measurements.jsonl").mkdir()
    for _ in range(2):
        with pytest.raises(StoreError, match=f"{tmp_path}.*"), Store(tmp_path):
            pass


def is_measured(content: bytes) -> bool:
    """Whether every line but a torn last one is a whole measurement."""
    return all(msgspec.json.decode(line, type=Measurement) for line in content[: content.rfind(b"\n") + 1].splitlines())


def test_a_failing_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Store(tmp_path) as store:
        store.append(row(8))
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match=r"No space left on device; what was measured before is kept"):
            store.append(row(16))
        assert [each.case.tokens for each in store.rows] == [8]
        monkeypatch.undo()
        store.append(row(32))  # there is room again
    assert is_measured((tmp_path / "measurements.jsonl").read_bytes())
    assert [each.case.tokens for each in stored(tmp_path)] == [8, 32]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KiB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount on this machine")
    if mounted.returncode:
        pytest.skip(f"no mount for this user: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_leaves_no_half_line(small_disk: Path) -> None:
    def fill(store: Store) -> None:
        for tokens in range(100):
            store.append(row(tokens))

    with Store(small_disk) as store:
        with pytest.raises(StoreError, match=r"cannot write to .*measurements\.jsonl: No space left on device"):
            fill(store)
        kept = len(store.rows)
        with pytest.raises(StoreError, match="No space left on device"):
            store.append(row(1000))
    assert 2 < kept < 50
    assert is_measured((small_disk / "measurements.jsonl").read_bytes())
    assert [each.case.tokens for each in stored(small_disk)] == list(range(kept))


# ---- the machine's description


def test_a_machine_is_kept_beside_its_measurements_and_replaced_as_a_whole(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.write_machine({"key": "cpu-1", "cpu": "old", "load": 1.0})
        store.write_machine({"key": "cpu-1", "cpu": "new"})
        store.write_machine({"key": "cpu-2", "cpu": "other"})
    assert json.loads((tmp_path / "machines" / "cpu-1.json").read_text("utf-8")) == {"key": "cpu-1", "cpu": "new"}
    assert sorted(path.name for path in (tmp_path / "machines").iterdir()) == ["cpu-1.json", "cpu-2.json"]


def test_a_machine_on_a_full_disk_is_a_store_error(small_disk: Path) -> None:
    with Store(small_disk) as store:
        store.write_machine({"key": "cpu-1", "cpu": "small"})
        with pytest.raises(StoreError, match="No space left on device"):
            store.write_machine({"key": "cpu-1", "cpu": "x" * 100_000})
    assert json.loads((small_disk / "machines" / "cpu-1.json").read_text("utf-8"))["cpu"] == "small"


def test_a_machines_folder_that_is_a_file_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "machines").write_text("", "utf-8")
    with Store(tmp_path) as store, pytest.raises(StoreError, match="cannot write to"):
        store.write_machine({"key": "cpu-1"})
