"""The lengths of a sweep, as a user writes them."""

from typing import Final

LONGEST: Final = 2**24


class InvalidLengths(ValueError):
    """Not a list of lengths; the message says what would be right."""


def parse_lengths(text: str) -> list[int]:
    """`256:4096` is every power of two times 256 up to 4096, which must be one; `300,1000` is just those.

    Raises `InvalidLengths`.
    """
    found: list[int] = []
    for part in text.split(","):
        first, colon, last = part.partition(":")
        start = _length(first)
        stop = _length(last) if colon else start
        if stop < start:
            raise InvalidLengths(f"lengths {part!r}: the second must not be less than the first")
        while start <= stop:
            found.append(start)
            start *= 2
        if found[-1] != stop:
            raise InvalidLengths(
                f"lengths {part.strip()!r}: doubling goes from {found[-1]} to {start} and leaves out {stop}; write "
                f"{first.strip()}:{found[-1]},{stop}"
            )
    return sorted(set(found))


def _length(text: str) -> int:
    if not text.strip().isdecimal() or not 1 <= int(text) <= LONGEST:
        raise InvalidLengths(
            f"a length must be a whole number from 1 to {LONGEST}, not {text.strip()!r}; write 256:4096 or 256,1000"
        )
    return int(text)
