"""Results files as typed rows: the only place that reads them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from reports.compacted import DamagedFile, read_lines
from reports.quantities import printable
from reports.shape import Shape

SCHEMA: Final = 1
"""The one schema of results files that these reports understand."""

MEASUREMENTS: Final = "measurements.jsonl"
COMPACTED: Final = "measurements.parquet"
"""Older measurements, folded by `attnscape compact`: those of a folder are the rows of both files."""

MACHINES: Final = "machines"

Status = Literal["ok", "unsupported", "out_of_memory", "timeout", "wrong", "error"]
Count = Annotated[int, Meta(ge=0)]
Size = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
MachineKey = Annotated[str, Meta(pattern=r"^[\w.-]+$")]


class ResultsError(ValueError):
    """Results that cannot be read, or cannot answer what was asked; the message is one line."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured: a variant with its parameters, on one problem and one kind of input."""

    variant: str
    parameters: dict[str, int]
    batch: Count
    heads: Size
    kv_heads: Size
    tokens: Count
    kv_tokens: Count
    head_dim: Size
    dtype: str
    device: str
    causal: bool
    mode: str
    inputs: str = "normal"
    seed: int = 0

    @property
    def shape(self) -> Shape:
        """All of the problem but its length."""
        queries = 0 if self.tokens == self.kv_tokens and self.mode != "decode" else self.tokens
        return Shape(
            batch=self.batch,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
            device=self.device,
            causal=self.causal,
            mode=self.mode,
            queries=queries,
        )

    @property
    def length(self) -> int:
        """The length that a sweep grows: the number of keys."""
        return self.kv_tokens


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement, with the fields that reports need; units as in `benchmarks.measurement`."""

    schema: int
    key: str
    machine: MachineKey
    definition: str
    exact: bool
    attention: bool = True
    case: Case
    status: Status
    run: str = ""
    measured_at: str = ""
    commit: str = ""
    dirty: bool = False
    reason: str = ""

    foretold_seconds: Positive | None = None
    seconds: Positive | None = None
    seconds_low: Positive | None = None
    seconds_high: Positive | None = None
    noisy: bool | None = None
    timer: str | None = None
    latency_seconds: Positive | None = None
    host_bound_share: NotNegative | None = None
    hot_seconds: Positive | None = None
    hot_reason: str = ""
    device_state: dict[str, float | str] = {}

    baseline: str | None = None
    baseline_causal: bool | None = None
    ratio: Positive | None = None
    ratio_low: Positive | None = None
    ratio_high: Positive | None = None
    cpu_ratio: Positive | None = None
    cpu_ratio_low: Positive | None = None
    cpu_ratio_high: Positive | None = None
    twin_ratio: Positive | None = None
    twin_cpu_ratio: Positive | None = None
    process_ratios: tuple[Positive, ...] = ()
    process_cpu_ratios: tuple[Positive, ...] = ()

    input_output_bytes: Count | None = None
    predicted_bytes: Count | None = None
    extra_bytes: Count | None = None
    total_bytes: Count | None = None
    energy_joules: Positive | None = None

    implementation_error: NotNegative | None = None
    approximation_error: NotNegative | None = None
    mean_of_v_error: NotNegative | None = None

    kernel: str | None = None
    useful_flops: Count | None = None
    traffic_bytes: Count | None = None
    visible_pairs: Count | None = None
    ceiling_share: float | None = None
    threads: int | None = None

    @property
    def baseline_label(self) -> str | None:
        """The baseline, with its mask where that is not the case's own."""
        if self.baseline is None or self.baseline_causal in (None, self.case.causal):
            return self.baseline
        return f"{self.baseline} ({'causal' if self.baseline_causal else 'not causal'})"

    @property
    def moved_bytes(self) -> int | None:
        """The traffic without the keys and values that the definition shows to no query, as most of a window's cache.

        Rows that were measured earlier count the whole cache in `traffic_bytes`.
        """
        if self.traffic_bytes is None or self.visible_pairs is None:
            return self.traffic_bytes
        shape, keys = self.case.shape, self.case.kv_tokens
        unseen = max(0, keys - self.visible_pairs)
        return min(self.traffic_bytes, shape.input_output_bytes(keys) - shape.cache_bytes(unseen))

    @property
    def doubtful(self) -> bool:
        """Whether it was faster than the machine's ceilings; where keys are left out, its traffic sets the ceiling."""
        if self.ceiling_share is None or not self.traffic_bytes:
            return (self.ceiling_share or 0.0) > 1
        return self.ceiling_share * (self.moved_bytes or 0) / self.traffic_bytes > 1


class _Stamp(msgspec.Struct):
    schema: int


@dataclass(frozen=True, slots=True)
class Results:
    """The rows of one results file, the latest of each key, in the order of the file."""

    path: Path
    rows: tuple[Row, ...]

    @property
    def machines(self) -> list[str]:
        """The keys of the machines that the rows come from."""
        return sorted({row.machine for row in self.rows})

    @property
    def files(self) -> list[Path]:
        """What the rows were read from: nothing else may be written there."""
        beside = [self.path.with_name(name) for name in (MEASUREMENTS, COMPACTED)]
        return [file for file in {self.path, *beside} if file.exists()]

    def of_machine(self, wanted: str | None = None) -> "Results":
        """The rows of one machine, named by the start of its key.

        Raises `ResultsError` where that leaves none or several: machines are never joined.
        """
        found = [key for key in self.machines if key.startswith(wanted or "")]
        if not found:
            raise ResultsError(f"no machine {wanted!r} in {self.path}; it holds {', '.join(self.machines)}")
        if len(found) > 1:
            raise ResultsError(f"{self.path} holds several machines ({', '.join(found)}): choose one with --machine")
        return Results(self.path, tuple(row for row in self.rows if row.machine == found[0]))

    def description(self) -> dict[str, Any]:
        """What is known of the one machine of these rows; empty where it was not written down."""
        (machine,) = self.machines
        return _read_description(self.path.parent / MACHINES / f"{machine}.json")


def read(path: Path) -> Results:
    """Read a results folder, or a results file, JSON lines or Parquet. Raises `ResultsError`."""
    folder = path.parent if path.name == MEASUREMENTS and path.with_name(COMPACTED).exists() else path
    if folder.is_dir():
        return _read_folder(folder)
    rows = _parquet_rows(path) if path.suffix == ".parquet" else list(_rows(path, _content(path)))
    return _results(path, rows)


def _read_folder(folder: Path) -> Results:
    """The log is read first: what a run folds meanwhile is then read twice rather than not at all."""
    log, compacted = folder / MEASUREMENTS, folder / COMPACTED
    logged = list(_rows(log, _content(log))) if log.exists() else []
    if not compacted.exists():
        if not log.exists():
            raise ResultsError(f"no {MEASUREMENTS} in {folder}; `attnscape run --out {folder}` writes it")
        return _results(log, logged)
    return _results(log if log.exists() else compacted, [*_parquet_rows(compacted), *logged])


def _results(file: Path, rows: Sequence[Row]) -> Results:
    found = latest(rows)
    if not found:
        raise ResultsError(f"{file} holds no measurements; `attnscape run --out {file.parent}` writes them")
    return Results(file, tuple(found))


def decoded(measurements: Sequence[msgspec.Struct]) -> list[Row]:
    """Measurements that have just been made, as the rows that a results file would give."""
    return [msgspec.convert(msgspec.to_builtins(measurement), Row) for measurement in measurements]


def latest(rows: Iterable[Row]) -> list[Row]:
    """The last row of each key: a case that was measured again replaces the earlier figures."""
    return list({row.key: row for row in rows}.values())


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise ResultsError(_nothing_at(file)) from None
    except OSError as error:
        raise ResultsError(f"cannot read {file}: {error.strerror}") from error


def _nothing_at(path: Path) -> str:
    """How to fill a folder that is not there, or that of a file."""
    folder = path.parent if path.suffix in (".jsonl", ".parquet") else path
    return f"no results at {path}; `attnscape run --out {folder}` writes them"


def _rows(file: Path, content: bytes) -> Iterator[Row]:
    decoder = msgspec.json.Decoder(Row)
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ResultsError(_fault(file, number, line, error, is_tail=number == len(lines))) from error
        if row.schema != SCHEMA:
            raise ResultsError(_other_schema(file, number, row.schema))
        yield row


def _parquet_rows(file: Path) -> list[Row]:
    names = tuple(tuple(field.name for field in msgspec.structs.fields(struct)) for struct in (Row, Case))
    try:
        lines = read_lines(file, *names)
        for number, line in enumerate(lines, start=1):
            if line.get("schema") != SCHEMA:
                raise ResultsError(_other_schema(file, number, line.get("schema")))
        return [msgspec.convert(line, Row) for line in lines]
    except FileNotFoundError:
        raise ResultsError(_nothing_at(file)) from None
    except OSError as error:
        raise ResultsError(f"cannot read {file}: {error.strerror or error}") from error
    except msgspec.ValidationError as error:
        raise ResultsError(f"{file} holds a row that is not a measurement: {printable(str(error))}") from error
    except DamagedFile as error:
        raise ResultsError(printable(str(error))) from error


def _fault(file: Path, number: int, line: bytes, error: Exception, *, is_tail: bool) -> str:
    """Why a line is no row; `is_tail` marks text after the last line break, which only a broken write leaves."""
    if isinstance(error, msgspec.ValidationError):
        schema = _schema_of(line)
        if schema is not None and schema != SCHEMA:
            return _other_schema(file, number, schema)
        return f"{file}, line {number} is not a measurement: {printable(str(error))}"
    if is_tail:
        return f"{file}, line {number} was cut short; `attnscape run --out {file.parent}` repairs it and goes on"
    return f"{file}, line {number} is cut short or not JSON: {printable(str(error))}"


def _schema_of(line: bytes) -> int | None:
    try:
        return msgspec.json.decode(line, type=_Stamp).schema
    except msgspec.ValidationError:
        return None


def _other_schema(file: Path, number: int, schema: int | None) -> str:
    return f"{file}, line {number} has schema {schema}; this version reads schema {SCHEMA} only"


def _read_description(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        return msgspec.json.decode(_content(file), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ResultsError(f"{file} is not a machine description: {printable(str(error))}") from error
