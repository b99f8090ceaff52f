"""What one machine of a cluster does: plan a request as it would run there, or measure a pack of its cases."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

from benchmarks.campaign import InvalidRequest, Request, read_machine, require_device, usable_threads
from benchmarks.foreign_processes import foreign_processes
from benchmarks.measurement import Case, Measurement
from benchmarks.provenance import read_provenance
from benchmarks.slot import slot_of
from benchmarks.sweep import Settings, Sweep
from benchmarks.variant_code import variant_codes
from benchmarks.workers import Workers
from variants.catalogue import UnknownVariant
from variants.definition import InvalidParameter
from variants.installed import CatalogueError
from variants.variant import RegistryError


@dataclass(frozen=True, slots=True)
class Where:
    """The device that is asked for, and the ceilings that are known, by `machine_name`."""

    device: str
    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    lock_folder: str = ""


@dataclass(frozen=True, slots=True)
class Planned:
    """A request as one machine of the cluster would run it; `refused` says why it cannot."""

    machine: dict[str, Any] = field(default_factory=dict)
    threads: int = 0
    timed: tuple[Case, ...] = ()
    untimed: tuple[Case, ...] = ()
    codes: dict[str, str] = field(default_factory=dict)
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """The rows of a pack, the cases that no time was left for, and the machine that they are of."""

    rows: tuple[Measurement, ...]
    left: tuple[Case, ...]
    machine: dict[str, Any]
    measured_seconds: float
    seconds: float


def plan_there(request: Request, settings: Settings, where: Where) -> Planned:
    """The cases that this machine would measure, with its description.

    Asked of a machine of the cluster, since the one that asks may have no card.
    """
    try:
        require_device(where.device)
        timed, untimed = request.cases()
        with _held(settings, where, timed=False) as (_, machine):
            provenance = read_provenance()
            codes = variant_codes(provenance.code, (case.variant for case in (*timed, *untimed)))
            return Planned(machine, _threads(settings), tuple(timed), tuple(untimed), codes)
    except (InvalidRequest, UnknownVariant, InvalidParameter, CatalogueError, RegistryError) as error:
        return Planned(refused=str(error))


def measure_there(timed: tuple[Case, ...], untimed: tuple[Case, ...], settings: Settings, where: Where) -> Measured:
    """Measure a pack, alone on its card: errors first, then times."""
    begin = monotonic()
    rows: list[Measurement] = []
    with _held(settings, where, timed=bool(timed)) as (workers, machine):
        provenance = read_provenance()
        codes = variant_codes(provenance.code, (case.variant for case in (*timed, *untimed)))
        stop = monotonic() + settings.stop_after_seconds
        sweep = Sweep(workers, replace(settings, threads=_threads(settings)), machine, provenance)
        left = sweep.measure_errors(untimed, rows.append, settings.seconds, stop)
        left += sweep.measure(timed, rows.append, settings.seconds, stop)
    others = len(machine["foreign_processes"] | foreign_processes(_uuid(machine)))
    for row in rows:
        row.code = codes[row.case.variant]
        seen = {"foreign_processes": float(others)} if machine["gpu"] else {}
        row.device_state = {**row.device_state, **seen, "host": machine["host"]}
    return Measured(tuple(rows), tuple(left), machine, sweep.measured_seconds, monotonic() - begin)


def machine_name(machine: dict[str, Any]) -> str:
    """What tells one machine's card from another's, where both have the same key."""
    return f"{machine['key']} {machine['host']} {_uuid(machine)}"


@contextmanager
def _held(settings: Settings, where: Where, *, timed: bool) -> Iterator[tuple[Workers, dict[str, Any]]]:
    """Workers on this machine while its card is held, and its description; times need its ceilings besides."""
    threads = _threads(settings)
    with Workers() as workers:
        machine = _described(read_machine(workers, where.device, threads, "describe"))
        with slot_of(_uuid(machine), where.lock_folder):
            others = foreign_processes(_uuid(machine))
            if (ceilings := where.known.get(machine_name(machine))) is not None:
                machine["ceilings"] = ceilings
            elif timed:
                machine = _described(read_machine(workers, where.device, threads))
            yield workers, machine | {"foreign_processes": others}


def _described(machine: dict[str, Any]) -> dict[str, Any]:
    return machine | {"host": platform.node()}


def _uuid(machine: dict[str, Any]) -> str:
    return str(machine["gpu"]["uuid"]) if machine["gpu"] else ""


def _threads(settings: Settings) -> int:
    return settings.threads or usable_threads()
