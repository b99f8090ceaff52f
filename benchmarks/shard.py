"""One of n parts of a sweep, for as many machines as there are: the parts share nothing and make up the whole."""

import re
from dataclasses import dataclass
from typing import Self

from benchmarks.measurement import Case


class InvalidShard(ValueError):
    """A part that there is not; the message says what would be right."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `number` (from 1) of `count`."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The part that a word such as 2/8 names. Raises `InvalidShard`."""
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
        number, count = (int(part) for part in found.groups()) if found else (0, 0)
        if not 1 <= number <= count:
            raise InvalidShard(f"--shard takes a part and the number of parts, 1/8 to 8/8, not {text!r}")
        return cls(number, count)

    @property
    def folder(self) -> str:
        """The name of the part's own folder."""
        return f"shard-{self.number}-of-{self.count}"

    def holds(self, case: Case) -> bool:
        """Whether the case is of this part: by the hash of the case alone, so every machine agrees."""
        return int(case.key(""), 16) % self.count == self.number - 1
