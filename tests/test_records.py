"""Results files: what is read, what is refused, and that writer and reader hold to the same contract."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from benchmarks import measurement
from reports import records, shape
from reports.records import ResultsError, read
from tests import results_builder as builder
from variants import problem


def field_names(struct: type[msgspec.Struct]) -> set[str]:
    return {field.name for field in msgspec.structs.fields(struct)}


# ---- the contract with the writer


def test_reader_and_writer_share_one_contract() -> None:
    assert records.SCHEMA == measurement.SCHEMA
    assert get_args(records.Status) == measurement.STATUSES
    assert field_names(records.Case) == field_names(measurement.Case)
    assert field_names(records.Row) <= field_names(measurement.Measurement)
    assert shape.ELEMENT_BYTES == problem.DTYPE_BYTES
    assert shape.MODES == problem.MODES


def test_built_lines_are_what_the_writer_writes() -> None:
    for line in builder.landscape([256, 1024]):
        assert set(line) <= field_names(measurement.Measurement)
        made = msgspec.convert(line, measurement.Measurement)
        assert msgspec.json.decode(msgspec.json.encode(made), type=records.Row).key == made.key


@pytest.mark.parametrize("mode", problem.MODES)
def test_input_output_bytes_are_those_of_the_problem(mode: str) -> None:
    made = problem.Problem.of_length(300, batch=2, heads=8, kv_heads=2, head_dim=32, dtype="bfloat16", mode=mode)
    fields = {"batch": 2, "kv_heads": 2, "head_dim": 32, "dtype": "bfloat16", "mode": mode}
    (row,) = builder.as_rows([builder.line(builder.case("full/matmul", 300, **fields))])
    assert row.case.shape.input_output_bytes(300) == made.input_output_bytes


# ---- what is read


def test_a_folder_and_its_file_read_the_same(tmp_path: Path) -> None:
    folder = builder.write(tmp_path / "out", builder.landscape())
    assert read(folder) == read(folder / "measurements.jsonl")
    assert read(folder).description()["cpu"] == builder.DESCRIPTION["cpu"]


def test_the_latest_line_of_a_key_wins(tmp_path: Path) -> None:
    lines = [builder.measured("full/matmul", 256, figures={"seconds": seconds}) for seconds in (1.0, 2.0)]
    (row,) = read(builder.write(tmp_path, lines)).rows
    assert row.seconds == 2.0


def test_unknown_fields_and_a_missing_last_line_break_are_no_fault(tmp_path: Path) -> None:
    line = builder.measured("full/matmul", 256) | {"a_later_field": [1, {"x": None}]}
    file = tmp_path / "kept.jsonl"
    file.write_text(json.dumps(line), "utf-8")
    assert len(read(file).rows) == 1
    assert read(file).description() == {}


def test_machines_are_never_joined_silently(tmp_path: Path) -> None:
    lines = [builder.line(builder.case("full/matmul", 256), machine=key) for key in ("cpu-1111", "cpu-2222")]
    results = read(builder.write(tmp_path, lines))
    assert results.of_machine("cpu-2").machines == ["cpu-2222"]
    with pytest.raises(ResultsError, match=r"several machines \(cpu-1111, cpu-2222\).*--machine"):
        results.of_machine()
    with pytest.raises(ResultsError, match=r"several machines"):
        results.of_machine("cpu")
    with pytest.raises(ResultsError, match=r"no machine 'gpu' .* holds cpu-1111, cpu-2222"):
        results.of_machine("gpu")


# ---- what is refused


def fault(path: Path) -> str:
    with pytest.raises(ResultsError) as caught:
        read(path)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_missing_results(tmp_path: Path) -> None:
    assert "no results at" in fault(tmp_path / "nowhere")
    assert "no measurements.jsonl in" in fault(tmp_path)


def test_an_empty_file(tmp_path: Path) -> None:
    assert "holds no measurements" in fault(builder.write(tmp_path, []))


def test_a_cut_last_line_names_the_repair(tmp_path: Path) -> None:
    file = builder.write(tmp_path, builder.landscape([256])) / "measurements.jsonl"
    count = len(file.read_bytes().splitlines())
    file.write_bytes(file.read_bytes()[:-40])
    assert fault(file) == f"{file}, line {count} was cut short; `attnscape run --out {tmp_path}` repairs it and goes on"


def test_a_cut_line_in_the_middle(tmp_path: Path) -> None:
    file = builder.write(tmp_path, builder.landscape([256])) / "measurements.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1][:60] + b"\n"
    file.write_bytes(b"".join(lines))
    assert "line 2 is cut short or not JSON" in fault(file)


def wrong(field: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda line: line | {field: value}


def wrong_case(field: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda line: line | {"case": line["case"] | {field: value}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (wrong("schema", 2), "line 2 has schema 2; this version reads schema 1 only"),
        (lambda line: wrong("schema", 7)(wrong("seconds", "?")(line)), "line 2 has schema 7"),
        (
            lambda line: {key: value for key, value in line.items() if key != "schema"},
            "missing required field `schema`",
        ),
        (wrong("schema", "1"), "Expected `int`, got `str` - at `$.schema`"),
        (wrong("seconds", "fast"), "Expected `float | null`, got `str` - at `$.seconds`"),
        (wrong("seconds", 0.0), "Expected `float` > 0.0 - at `$.seconds`"),
        (wrong("implementation_error", -1.0), "at `$.implementation_error`"),
        (wrong("total_bytes", 1.5), "at `$.total_bytes`"),
        (wrong("status", "fine"), "Invalid enum value 'fine' - at `$.status`"),
        (wrong("machine", "../../etc"), "at `$.machine`"),
        (wrong_case("tokens", -5), "at `$.case.tokens`"),
        (wrong_case("parameters", {"window": "wide"}), "at `$.case.parameters[...]`"),
        (lambda _: [1, 2], "Expected `object`, got `array`"),
    ],
)
def test_a_wrong_line_is_named_with_its_place(tmp_path: Path, change: Callable[[Any], Any], said: str) -> None:
    lines = [builder.measured("full/matmul", tokens) for tokens in (256, 512, 1024)]
    lines[1] = change(lines[1])
    text = fault(builder.write(tmp_path, lines))
    assert said in text
    assert "line 2" in text


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00\n", b"\x89PNG\r\n", b"<html>\n", b"[" * 100_000 + b"\n", b"1e999\n"]
)
def test_files_of_another_kind(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "other.jsonl"
    file.write_bytes(content)
    assert f"{file}, line 1" in fault(file)


def test_control_characters_do_not_reach_the_message(tmp_path: Path) -> None:
    text = fault(builder.write(tmp_path, [builder.measured("full/matmul", 256) | {"status": "\x1b[31mred\x07"}]))
    assert text.isprintable()


def test_a_broken_machine_description(tmp_path: Path) -> None:
    folder = builder.write(tmp_path, builder.landscape([256]))
    (folder / "machines" / f"{builder.MACHINE}.json").write_text('{"cpu": ', "utf-8")
    with pytest.raises(ResultsError, match="is not a machine description"):
        read(folder).description()
