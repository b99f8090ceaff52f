"""Curves of measured kernels from a CSV file: the only place that reads one."""

import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from reports.quantities import printable

Count = Annotated[int, Meta(ge=1, le=2**40)]
Name = Annotated[str, Meta(min_length=1)]


class ValidationInputError(ValueError):
    """A file or an option that a validation cannot use; the message is one line."""


class KernelShape(msgspec.Struct, frozen=True, kw_only=True):
    """What a curve was measured on: everything but the length; `window` 0 is full attention."""

    gpu: Name
    software: Name
    kernel: Name
    batch: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    dtype: Name
    kv_dtype: Name
    window: Annotated[int, Meta(ge=0, le=2**40)]

    def visible_pairs(self, tokens: int) -> int:
        """Pairs of query and key that one head computes in causal prefill, with the window."""
        seen = min(self.window or tokens, tokens)
        return seen * (seen + 1) // 2 + (tokens - seen) * seen


class _Line(KernelShape, frozen=True, kw_only=True):
    tokens: Count
    latency_ms: Annotated[float, Meta(gt=0, lt=1e12)]


@dataclass(frozen=True, slots=True)
class KernelCurve:
    """Seconds by length, rising, of one kernel on one shape."""

    shape: KernelShape
    seconds: dict[int, float]


COLUMNS: Final = _Line.__struct_fields__


def read_curves(path: Path) -> list[KernelCurve]:
    """The curves of a file with the columns of `KernelShape`, tokens and latency_ms; others are ignored.

    Raises `ValidationInputError`.
    """
    found: dict[KernelShape, dict[int, float]] = defaultdict(dict)
    for number, line in _lines(path):
        shape = msgspec.convert(line, KernelShape, from_attributes=True)
        if line.tokens in found[shape]:
            raise ValidationInputError(f"{path}, line {number}: {line.tokens} tokens of this curve were there before")
        found[shape][line.tokens] = line.latency_ms / 1000
    if not found:
        raise ValidationInputError(f"{path} holds no measurements")
    return [KernelCurve(shape, dict(sorted(seconds.items()))) for shape, seconds in found.items()]


def _lines(path: Path) -> Iterator[tuple[int, _Line]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            _require_columns(path, reader.fieldnames or ())
            for row in reader:
                yield reader.line_num, _line(path, reader.line_num, row)
    except OSError as error:
        raise ValidationInputError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValidationInputError(f"{path} is not a CSV file in UTF-8: {printable(str(error))}") from error


def _require_columns(path: Path, header: Sequence[str]) -> None:
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise ValidationInputError(f"{path} has no column {', '.join(missing)}; needed are {', '.join(COLUMNS)}")


def _line(path: Path, number: int, row: dict[str, str | None]) -> _Line:
    try:
        return msgspec.convert({name: row[name] for name in COLUMNS}, _Line, strict=False)
    except msgspec.ValidationError as error:
        raise ValidationInputError(f"{path}, line {number}: {printable(str(error))}") from error
