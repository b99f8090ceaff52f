"""What asv stored of every commit, as plain figures: one for each machine, benchmark and set of parameters."""

import ast
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from reports.comparison import Reading, Readings
from reports.records import ResultsError

VERSION: Final = 2
"""Of asv's result files."""

NOT_RESULTS: Final = frozenset({"machine.json"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a figure belongs: its series on the pages. The environment counts: other software, other series."""

    machine: str
    environment: str
    benchmark: str
    parameters: tuple[str, ...]

    def __str__(self) -> str:
        """As the pages name it."""
        return f"{self.benchmark}({', '.join(self.parameters)})"


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit's figures; `date` is that of the commit, in milliseconds; NaN and null are left out."""

    commit: str
    date: int
    figures: dict[Place, float]


class _File(msgspec.Struct):
    version: int
    commit_hash: str = ""
    env_name: str = ""
    date: int = 0
    params: dict[str, Any] = {}
    results: dict[str, list[Any]] = {}
    result_columns: list[str] = []


def read_commits(folder: Path, machine: str | None = None) -> list[Commit]:
    """Every commit in asv's results folder, oldest first. Raises `ResultsError`."""
    files = [file for file in sorted(folder.glob("*/*.json")) if file.name not in NOT_RESULTS]
    if not files:
        raise ResultsError(f"no results of asv in {folder}; `asv run` writes them, or --asv names another folder")
    machines = sorted({file.parent.name for file in files})
    if machine is not None:
        if machine not in machines:
            raise ResultsError(f"no machine {machine!r} in {folder}; it holds {', '.join(machines)}")
        files = [file for file in files if file.parent.name == machine]
    joined: dict[str, Commit] = {}
    for file in files:
        found = _read(file)
        commit = joined.setdefault(found.commit_hash, Commit(found.commit_hash, found.date, {}))
        commit.figures.update(_figures(file, found))
    return sorted(joined.values(), key=lambda commit: (commit.date, commit.commit))


def _read(file: Path) -> _File:
    try:
        # asv writes n/a as a bare NaN, which is no JSON to msgspec.
        found = msgspec.convert(json.loads(file.read_bytes()), type=_File)
    except OSError as error:
        raise ResultsError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors, and so are those of the encoding
        raise ResultsError(f"{file} is no result of asv: {error}") from error
    if found.version != VERSION:
        raise ResultsError(f"{file} is of version {found.version} of asv's format; version {VERSION} is understood")
    return found


def _figures(file: Path, found: _File) -> Iterator[tuple[Place, float]]:
    for benchmark, values in found.results.items():
        column = dict(zip(found.result_columns, values, strict=False))
        results, parameters = column.get("result"), column.get("params") or []
        if results is None:
            continue
        combinations = list(itertools.product(*parameters)) or [()]
        for texts, value in zip(combinations, results, strict=False):
            if isinstance(value, int | float) and math.isfinite(value):
                named = tuple(_parameter(text) for text in texts)
                yield Place(file.parent.name, found.env_name, benchmark, named), float(value)


def _parameter(text: str) -> str:
    """The text of a parameter without the quotes that asv keeps."""
    try:
        return str(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return str(text)


def readings_of_commit(commits: list[Commit], wanted: str) -> Readings:
    """One commit as a side of a comparison: ratios, peaks and implementation errors. Raises `ResultsError`.

    asv keeps the ratio as one figure without an interval, so the noise is that of the cases among each other.
    """
    matching = [commit for commit in commits if commit.commit.startswith(wanted)]
    if len(matching) != 1:
        known = ", ".join(commit.commit[:8] for commit in commits[-8:])
        fault = "several commits begin with" if matching else "no results of commit"
        raise ResultsError(f"{fault} {wanted}; there are, among others, {known}")
    (commit,) = matching
    cases: dict[str, dict[str, float]] = {}
    machines = sorted({place.machine for place in commit.figures})
    if len(machines) > 1:
        raise ResultsError(f"{wanted} was measured on {', '.join(machines)}: choose one with --machine")
    for place, value in commit.figures.items():
        device, _, quantity = place.benchmark.removeprefix("attention.").partition(".track_")
        case = f"{device}({', '.join(place.parameters)}) {place.environment}"
        cases.setdefault(case, {})[quantity] = value
    # The count of lengths that do not run is one for a variant as a whole, and no case.
    readings = {case: _reading(found) for case, found in cases.items() if found.keys() != {"lengths_not_running"}}
    return Readings(commit.commit[:8], machines[0] if machines else "", readings, None)


def _reading(quantities: dict[str, float]) -> Reading:
    return Reading(
        "ok",
        ratio=quantities.get("ratio"),
        extra_bytes=quantities.get("peak_memory"),
        error=quantities.get("implementation_error"),
    )
