"""The measurements that come with the project, a folder for each machine: with them `choose` answers at once."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from reports.cards import CardError, card_named
from reports.processor import machine_name
from reports.records import Results, ResultsError, read

MEASURED: Final = Path(__file__).parent / "measured"


def shipped(wanted: str, folder: Path = MEASURED) -> Results:
    """The results of the one machine whose processor or key contains `wanted`, in any case. Raises `ResultsError`."""
    known = {place: _name(read(place)) for place in sorted(folder.glob("*")) if place.is_dir()}
    fold = wanted.casefold()
    found = [place for place, name in known.items() if fold in name.casefold() or fold in place.name.casefold()]
    if len(found) != 1:
        raise ResultsError(_refusal(wanted, {place.name: known[place] for place in found or known}, bool(found)))
    return read(found[0])


def _refusal(wanted: str, machines: Mapping[str, str], several: bool) -> str:
    """Which machines match, or which there are; and how to ask for a card, which needs no measurements."""
    names = "; ".join(f"{name} ({key})" for key, name in machines.items()) or "none"
    if several:
        return f"--on {wanted!r} matches {len(machines)} shipped machines, give more of one's name or its key: {names}"
    hint, last = "", wanted.strip().rpartition(" ")[2]
    with suppress(CardError):
        hint = f"; --card {last} answers for {card_named(last).name}"
    return f"--on names a shipped machine, and {wanted!r} is part of none of their names: {names}{hint}"


def _name(results: Results) -> str:
    return machine_name(results.of_machine().description())
