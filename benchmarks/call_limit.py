"""How long a call will take, told from what was measured at shorter lengths, so that none is begun that is too long."""

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from benchmarks.measurement import Case, Measurement
from variants.catalogue import load


@dataclass(frozen=True, slots=True)
class Pace:
    """What one call took."""

    case: Case
    seconds: float


@dataclass(slots=True)
class CallLimit:
    """The longest call that is to be measured, and the paces from which others are foretold."""

    seconds: float = math.inf
    _paces: dict[Hashable, dict[int, Pace]] = field(default_factory=dict)

    def learn(self, case: Case, seconds: float) -> None:
        """Keep what a call took; of one length the last counts."""
        if math.isfinite(self.seconds):
            self._paces.setdefault(_curve_of(case), {})[case.problem().length] = Pace(case, seconds)

    def learn_from(self, rows: Iterable[Measurement]) -> None:
        """Keep what the calls of those rows took."""
        for row in rows:
            if row.seconds is not None:
                self.learn(row.case, row.seconds)

    def may_try(self, row: Measurement) -> bool:
        """Whether a row has no figures only because an earlier run allowed shorter calls than this one does."""
        return row.foretold_seconds is not None and row.foretold_seconds <= self.seconds

    def exceeded(self, case: Case) -> tuple[float, str] | None:
        """The seconds that a call would take, with the reason why it is not tried; None where it may be.

        From the nearest shorter length, by the growth of the operations that the variant carries out. What has no
        shorter length is tried.
        """
        paces = self._paces.get(_curve_of(case), {})
        shorter = max((length for length in paces if length < case.problem().length), default=None)
        if shorter is None:
            return None
        nearest = paces[shorter]
        seconds = nearest.seconds * _operations(case) / max(1, _operations(nearest.case))
        if seconds <= self.seconds:
            return None
        known = f"{nearest.seconds:.3g} s at {shorter} tokens"
        return seconds, f"not tried: from {known} a call would take {seconds:.3g} s, and {self.seconds:g} s are allowed"


def _curve_of(case: Case) -> Hashable:
    """What points of one variant at several lengths share."""
    apart = ("tokens", "kv_tokens", "parameters")
    same = (getattr(case, name) for name in case.__struct_fields__ if name not in apart)
    return *same, tuple(sorted(case.parameters.items()))


def _operations(case: Case) -> int:
    return load(case.variant).flops(case.problem(), case.parameters)
