"""Measurements as a Parquet file: one column for each field, those of the case among them."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Union, get_args, get_origin

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.append_log import StoreError
from benchmarks.measurement import SCHEMA, Case, Measurement

_SCALARS: Final = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
CASE_FIELDS: Final = tuple(field.name for field in msgspec.structs.fields(Case))
OWN_FIELDS: Final = tuple(field.name for field in msgspec.structs.fields(Measurement) if field.name != "case")


def columns() -> pa.Schema:
    """The columns of the file: the measurement's own, then the case's."""
    types = {field.name: field.type for struct in (Measurement, Case) for field in msgspec.structs.fields(struct)}
    return pa.schema([(name, _column(types[name])) for name in (*OWN_FIELDS, *CASE_FIELDS)])


def write_parquet(path: Path, rows: Sequence[Measurement]) -> None:
    """Replace the file as a whole, once it is on the disk; raises `StoreError`, and then the file is as it was."""
    draft = draft_of(path)
    try:
        with draft.open("wb") as file:
            pq.write_table(pa.Table.from_pylist([_flat(row) for row in rows], columns()), file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync_folder(path.parent)
    except (OSError, pa.ArrowException) as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        told = getattr(error, "strerror", None) or error
        raise StoreError(f"cannot write to {path}: {told}; what was measured before is kept") from error


def read_parquet(path: Path) -> list[Measurement]:
    """The measurements of a file; raises `StoreError` where it is damaged, of another kind or another schema."""
    try:
        table = pq.ParquetFile(path).read()
        for schema in table.column("schema").unique().to_pylist():
            if schema != SCHEMA:
                raise StoreError(f"{path}: schema {schema}, but this program writes schema {SCHEMA}; use another --out")
        return [msgspec.convert(_nested(line), Measurement) for line in table.to_pylist(maps_as_pydicts="strict")]
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{path}: not a whole file of measurements: {' '.join(str(error).split())}") from error


def draft_of(path: Path) -> Path:
    """What is being written before it takes the file's name; one that is left was never complete."""
    return path.with_name(f".{path.name}.part")


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, so that a renamed file outlives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _column(kind: Any) -> pa.DataType:
    kinds = [each for each in get_args(kind) if each is not NoneType] if get_origin(kind) in (Union, UnionType) else []
    if len(kinds) == 1:
        return _column(kinds[0])
    if get_origin(kind) is list:
        return pa.list_(_column(get_args(kind)[0]))
    if get_origin(kind) is dict:
        value = get_args(kind)[1]
        # A column has one type: a dictionary of several is kept as JSON.
        return pa.map_(pa.string(), _SCALARS[value]) if value in _SCALARS else pa.string()
    return _SCALARS[kind]


_AS_JSON: Final = tuple(
    field.name
    for field in msgspec.structs.fields(Measurement)
    if get_origin(field.type) is dict and get_args(field.type)[1] not in _SCALARS
)


def _flat(row: Measurement) -> dict[str, Any]:
    line: dict[str, Any] = msgspec.to_builtins(row)
    case: dict[str, Any] = line.pop("case")
    return line | case | {name: json.dumps(line[name]) for name in _AS_JSON}


def _nested(line: dict[str, Any]) -> dict[str, Any]:
    """What the writer flattened; a column that is missing or empty leaves its field's default."""
    known = {name: value for name, value in line.items() if value is not None}
    made = {name: known[name] for name in OWN_FIELDS if name in known}
    made |= {name: json.loads(made[name]) for name in _AS_JSON if name in made}
    return made | {"case": {name: known[name] for name in CASE_FIELDS if name in known}}
