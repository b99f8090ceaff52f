"""The results folder: append-only, one writer, and no half-written line is ever read as a measurement."""

import errno
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import compaction
from benchmarks.append_log import StoreError
from benchmarks.measurement import SCHEMA, Case, Measurement
from benchmarks.store import Store, keys_of, merge_folders, read_folder
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
        assert keys_of(store.rows, "c0de") == {rows[0].key, rows[1].key, rows[3].key}
        assert keys_of(store.rows, "0ther") == {rows[2].key}
        assert keys_of(store.rows, "new") == set()
        store.append(row(64))
        assert row(64).key in keys_of(store.rows, "c0de")


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


# ---- folded into Parquet


def full_row() -> Measurement:
    """A row in which every field holds something."""
    return row(
        2**20,
        reason="a «reason»\n",
        seconds=0.1 + 0.2,
        wall_samples=[0.1, 1e-300],
        minor_faults=[0, 3],
        noisy=False,
        device_state={"power_watts": 1.5, "clock_events": "GpuIdle"},
        descriptors={"row_entropy": 0.25},
        useful_flops=2**60,
    )


def test_folding_changes_no_row(tmp_path: Path) -> None:
    parametric = row(64)
    parametric.case = msgspec.structs.replace(parametric.case, parameters={"window": 4, "block": 2})
    rows = [row(8), row(16, status="timeout", reason="60 s"), full_row(), parametric]
    file = write(tmp_path, *rows)
    with Store(tmp_path) as store:
        assert store.compact() == 4
    assert file.read_bytes() == b""
    assert stored(tmp_path) == rows
    write(tmp_path, row(32))
    assert stored(tmp_path) == [*rows, row(32)]
    with Store(tmp_path) as store:
        assert keys_of(store.rows, "c0de") == {each.key for each in [*rows, row(32)]}
        assert store.compact() == 5
        store.append(row(128))
    assert stored(tmp_path) == [*rows, row(32), row(128)]


def test_every_field_has_its_column_and_its_type() -> None:
    names = compaction.columns().names
    fields = [field.name for struct in (Measurement, Case) for field in msgspec.structs.fields(struct)]
    assert sorted(names) == sorted(name for name in fields if name != "case")
    assert len(set(names)) == len(names)  # none of the case's is one of the measurement's
    schema = compaction.columns()
    assert [str(schema.field(name).type) for name in ("key", "seconds", "tokens", "noisy", "parameters")] == [
        "string", "double", "int64", "bool", "map<string, int64>",
    ]  # fmt: skip


def test_a_crash_between_the_file_and_the_log_doubles_nothing(tmp_path: Path) -> None:
    file = write(tmp_path, row(8), row(16))
    lines = file.read_bytes()
    with Store(tmp_path) as store:
        store.compact()
    file.write_bytes(lines + lines[:40])  # the file is there, the log is not emptied, and its last line is torn
    assert [each.case.tokens for each in stored(tmp_path)] == [8, 16]
    with Store(tmp_path) as store:
        assert store.compact() == 2
    assert [each.case.tokens for each in stored(tmp_path)] == [8, 16]


def test_a_file_that_was_never_finished_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, row(8))
    draft = compaction.draft_of(tmp_path / "measurements.parquet")
    draft.write_bytes(b"PAR1 and no end")
    assert [each.case.tokens for each in read_folder(tmp_path)] == [8]
    assert [each.case.tokens for each in stored(tmp_path)] == [8]
    assert not draft.exists()


@pytest.mark.parametrize("left", [0, 4, 200, -1])
def test_a_file_cut_short_is_named_and_nothing_is_touched(tmp_path: Path, left: int) -> None:
    log = write(tmp_path, row(8), row(16))
    with Store(tmp_path) as store:
        store.compact()
    write(tmp_path, row(32))
    file = tmp_path / "measurements.parquet"
    file.write_bytes(file.read_bytes()[:left])
    before = file.read_bytes(), log.read_bytes()
    with pytest.raises(StoreError, match=r"measurements\.parquet: not a whole file of measurements: "), Store(tmp_path):
        pass
    assert (file.read_bytes(), log.read_bytes()) == before


def test_a_file_of_another_schema_or_kind_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "measurements.parquet"
    compaction.write_parquet(file, [row(8, schema=SCHEMA + 1)])
    with pytest.raises(StoreError, match=f"schema {SCHEMA + 1}, but this program writes"), Store(tmp_path):
        pass
    pq.write_table(pa.table({"lengths": [1, 2]}), file)
    with pytest.raises(StoreError, match="not a whole file of measurements"), Store(tmp_path):
        pass


def test_a_full_disk_keeps_the_lines_that_are_folded(small_disk: Path) -> None:
    with Store(small_disk) as store:
        for tokens in range(3):
            store.append(row(tokens))
        lines = store.path.read_bytes()
        left = os.statvfs(small_disk)
        (small_disk / "filling").write_bytes(bytes((left.f_bavail - 1) * left.f_frsize))  # too little for a footer
        with pytest.raises(StoreError, match=r"measurements\.parquet: .*what was measured before is kept"):
            store.compact()
        assert store.path.read_bytes() == lines
    assert [each.case.tokens for each in stored(small_disk)] == [0, 1, 2]
    assert {path.name for path in small_disk.iterdir()} == {".lock", "filling", "measurements.jsonl"}


def test_a_disk_that_fails_while_folding_keeps_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = write(tmp_path, row(8))
    with Store(tmp_path) as store:
        store.compact()
        store.append(row(16))
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space left on device; what was measured before is kept"):
            store.compact()
        monkeypatch.undo()
    assert file.read_bytes()
    assert [each.case.tokens for each in stored(tmp_path)] == [8, 16]


def test_only_a_long_log_is_folded_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path) as store:
        store.append(row(8))
        store.compact_if_long()
        assert not store.compacted.exists()
        monkeypatch.setattr("benchmarks.store.COMPACT_FROM_BYTES", 100)
        store.compact_if_long()
        assert store.compacted.exists() and not store.path.read_bytes()


APPEND_AND_FOLD = """
import sys
from pathlib import Path
from benchmarks import compaction  # pyarrow takes its time
from benchmarks.store import Store
from tests.test_store import row
with Store(Path(sys.argv[1])) as store:
    print(len(store.rows), flush=True)
    for tokens in range(len(store.rows), 100_000):
        store.append(row(tokens))
        print(tokens + 1, flush=True)
        if tokens % 3 == 0:
            store.compact()
"""


def test_a_runner_killed_at_any_point_loses_nothing(tmp_path: Path) -> None:
    generator = random.Random()
    known = 0
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", APPEND_AND_FOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as script:
            assert script.stdout is not None
            assert int(script.stdout.readline()) >= known  # nothing that was told is gone
            time.sleep(generator.uniform(0.0, 0.3))
            script.kill()
            known = max(map(int, script.stdout.read().split()), default=known)
    tokens = [each.case.tokens for each in stored(tmp_path)]
    assert tokens == list(range(len(tokens)))  # nor is anything there twice, or out of its order
    assert len(tokens) >= known > 4


# ---- several folders in one


def test_folders_are_gathered_and_none_twice(tmp_path: Path) -> None:
    for name, rows, machine in (("a", [row(8), row(16)], "cpu-1"), ("b", [row(16), row(32)], "cpu-2")):
        with Store(tmp_path / name) as store:
            store.extend(rows)
            store.write_machine({"key": machine, "cpu": name})
    with Store(tmp_path / "b") as store:
        store.compact()
        store.append(row(64))
    assert merge_folders([tmp_path / "a", tmp_path / "b"], tmp_path / "all") == (4, 1)
    assert [each.case.tokens for each in stored(tmp_path / "all")] == [8, 16, 32, 64]
    assert json.loads((tmp_path / "all" / "machines" / "cpu-2.json").read_text("utf-8"))["cpu"] == "b"
    assert merge_folders([tmp_path / "a", tmp_path / "b"], tmp_path / "all") == (0, 5)
    assert merge_folders([tmp_path / "all"], tmp_path / "all") == (0, 4)


def test_a_folder_without_results_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    write(tmp_path / "a", row(8))
    with pytest.raises(StoreError, match=f"no measurements.jsonl in {tmp_path / 'none'}"):
        merge_folders([tmp_path / "a", tmp_path / "none"], tmp_path / "all")
    assert not (tmp_path / "all").exists()
