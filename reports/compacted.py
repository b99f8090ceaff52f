"""Measurements that were folded into a Parquet file: one column for each field, those of the case among them."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

AS_JSON: Final = ("device_state",)
"""A dictionary of values of several types, which no column has."""


class DamagedFile(ValueError):
    """A file that is not a whole Parquet file of measurements; the message is one line."""


def read_lines(file: Path, own: Collection[str], case: Collection[str]) -> list[dict[str, Any]]:
    """The rows as the lines of a results file would give them, with the named fields and those of the case.

    Raises `DamagedFile` or OSError.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            wanted = [name for name in parquet.schema_arrow.names if name in own or name in case]
            lines = parquet.read(wanted).to_pylist(maps_as_pydicts="strict")
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise DamagedFile(f"{file} is not a whole file of measurements: {' '.join(str(error).split())}") from error
    return [_nested(line, own, case) for line in lines]


def _nested(line: dict[str, Any], own: Collection[str], case: Collection[str]) -> dict[str, Any]:
    known = {name: value for name, value in line.items() if value is not None}
    made: dict[str, Any] = {name: value for name, value in known.items() if name in own}
    made |= {name: json.loads(made[name]) for name in AS_JSON if name in made}
    return made | {"case": {name: value for name, value in known.items() if name in case}}
