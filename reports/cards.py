"""Cards: what their vendors say of them, the roofline, and times carried from one card to another."""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from reports.prediction import TimePrediction, Unpredictable, refuse_wide
from reports.quantities import percent_text, printable

CARDS: Final = Path(__file__).with_name("cards.toml")

LEAST_SHARE: Final = 0.4
"""Nothing is carried over that takes the roofline for less than this share of its time: other limits hold it."""

PAIRS: Final = {
    frozenset(("NVIDIA H100 80GB HBM3", "NVIDIA H200")): 0.02,
    frozenset(("NVIDIA A100-SXM4-80GB", "NVIDIA L40S")): 0.13,
    frozenset(("NVIDIA A100-SXM4-80GB", "NVIDIA H200")): 0.15,
    frozenset(("NVIDIA H200", "NVIDIA L40S")): 0.25,
}
"""How far rooflines missed between measured pairs of cards, either way (`docs/predictions.md`)."""

UNKNOWN_PAIR: Final = max(PAIRS.values())

UNKNOWN_CACHE: Final = 256 * 2**20
"""What a card may keep in its caches where nothing is known of them: more than any card of the table."""

Name = Annotated[str, Meta(min_length=1)]
Positive = Annotated[float, Meta(gt=0)]


class CardError(ValueError):
    """A card that is not known, or a file that describes none; the message is one line."""


class Card(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A card as its vendor describes it; FLOP/s by type of number, dense. `source` names the datasheet.

    `cache_bytes` is the last level of the caches: so much need not pass the memory between two calls.
    """

    name: Name
    memory_bytes: Annotated[int, Meta(gt=0)]
    bytes_per_second: Positive
    flop_per_second: Annotated[dict[Name, Positive], Meta(min_length=1)]
    source: Name
    cache_bytes: Annotated[int, Meta(ge=0)] = UNKNOWN_CACHE

    def roofline_seconds(self, work: "Work", dtype: str) -> float:
        """The least time that work can take. Raises `CardError` where the type of number is not known."""
        if dtype not in self.flop_per_second:
            raise CardError(f"{self.name} has no figure for {dtype}; known are {', '.join(self.flop_per_second)}")
        return max(work.flop / self.flop_per_second[dtype], work.moved_bytes / self.bytes_per_second)


class _Table(msgspec.Struct, forbid_unknown_fields=True):
    cards: list[Card]


@dataclass(frozen=True, slots=True)
class Work:
    """What one call does at one length: floating-point operations, and bytes read and written."""

    flop: float
    moved_bytes: float


@cache
def known_cards() -> dict[str, Card]:
    """The cards of the table, by name."""
    return {card.name: card for card in msgspec.toml.decode(CARDS.read_bytes(), type=_Table).cards}


def card_named(name: str) -> Card:
    """A card of the table by its own name, the last word of it (`L40S`) or any part that only one has.

    Raises `CardError`.
    """
    cards = known_cards()
    for fits in (str.__eq__, str.endswith, str.__contains__):
        found = [card for known, card in cards.items() if fits(known.casefold(), name.casefold())]
        if len(found) == 1 and name:
            return found[0]
    known = ", ".join(cards)
    raise CardError(f"no single card is called {printable(name)!r}; known are {known}; others need a card file")


def card_of(asked: str) -> Card:
    """The card of a file, where `asked` ends in .json or .toml, else the one of that name. Raises `CardError`."""
    return read_card(Path(asked)) if Path(asked).suffix in (".json", ".toml") else card_named(asked)


def read_card(path: Path) -> Card:
    """The card that a JSON or TOML file describes, by the end of its name. Raises `CardError`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CardError(f"cannot read {path}: {error.strerror}") from error
    decoders = {".json": msgspec.json.decode, ".toml": msgspec.toml.decode}
    if path.suffix not in decoders:
        raise CardError(f"{path}: a card file ends in .json or .toml")
    try:
        found: Any = decoders[path.suffix](content)
        card = msgspec.convert(found, Card)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CardError(f"{path} describes no card: {printable(str(error))}") from error
    if not all(map(math.isfinite, (card.bytes_per_second, *card.flop_per_second.values()))):
        raise CardError(f"{path} describes no card: its figures must be finite")
    return card


def transfer(answer: TimePrediction, work: Work, dtype: str, source: Card, target: Card) -> TimePrediction:
    """Seconds on another card: those on `source` times the ratio of the rooflines, marked `transferred`.

    The band widens by what such ratios missed between measured pairs of cards; of a pair that was not
    measured, the most. Raises `CardError` and `Unpredictable`.
    """
    if source == target:
        return answer
    here, there = source.roofline_seconds(work, dtype), target.roofline_seconds(work, dtype)
    share = here / answer.seconds
    if not share >= LEAST_SHARE:
        raise Unpredictable(
            "far from roofline",
            f"on {source.name} the roofline explains {percent_text(share)} of the time, less than "
            f"{percent_text(LEAST_SHARE)}: what takes the rest need not be the same on {target.name}",
        )
    missed = math.log1p(PAIRS.get(frozenset((source.name, target.name)), UNKNOWN_PAIR))
    low, high = (
        math.exp(math.hypot(missed, math.log(factor)))
        for factor in (answer.seconds / answer.low, answer.high / answer.seconds)
    )
    seconds = answer.seconds * there / here
    carried = TimePrediction(max(there, seconds), max(there, seconds / low), max(there, seconds * high), "transferred")
    refuse_wide(f"on {target.name}", carried.low, carried.high)
    return carried
