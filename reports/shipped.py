"""The measurements that come with the project, a folder for each machine: with them `choose` answers at once."""

from pathlib import Path
from typing import Final

from reports.processor import machine_name
from reports.records import Results, ResultsError, read

MEASURED: Final = Path(__file__).parent / "measured"


def shipped(wanted: str, folder: Path = MEASURED) -> Results:
    """The results of the one machine whose processor or key contains `wanted`, in any case. Raises `ResultsError`."""
    known = {place: _name(read(place)) for place in sorted(folder.glob("*")) if place.is_dir()}
    fold = wanted.casefold()
    found = [place for place, name in known.items() if fold in name.casefold() or fold in place.name.casefold()]
    if len(found) != 1:
        fault = "several of them match" if found else "none of them matches"
        there = "; ".join(f"{name} ({place.name})" for place, name in known.items()) or "none"
        raise ResultsError(f"--on names a machine whose measurements are shipped, and {fault} {wanted!r}: {there}")
    return read(found[0])


def _name(results: Results) -> str:
    return machine_name(results.of_machine().description())
