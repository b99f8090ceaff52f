"""The answer to "which variant fits this budget?", as plain data."""

from dataclasses import dataclass
from typing import Final, Literal

from reports.curve import Figures, Reason, labelled
from reports.floors import Floors
from reports.interpolation import Provenance
from reports.question import Budget, Limit, Question

COMPARED_ONLY: Final = Reason("not attention", "not attention: measured for comparison only")
"""Why a convolution or a recurrent network is never the answer."""

Outcome = Literal["fits", "likely", "nothing fits", "impossible", "unknown"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A variant with figures at the asked length; `tied` where the fastest is not faster beyond the noise.

    `doubts` are the limits that it keeps, but not with the whole of its band, and `room` is the least share of the
    upper half of such a band that is inside its limit.
    """

    variant: str
    parameters: dict[str, int]
    exact: bool
    figures: Figures
    tied: bool = False
    doubts: tuple[Reason, ...] = ()
    room: float = 1.0

    @property
    def label(self) -> str:
        """The variant with its parameters."""
        return labelled(self.variant, self.parameters)

    @property
    def beats_mean(self) -> bool:
        """Whether it is closer to exact attention than the mean of V, as far as that is known."""
        return self.exact or self.figures.beats_mean


@dataclass(frozen=True, slots=True)
class Rejected:
    """A variant that is out, with every reason; `figures` is None where it has none at this length.

    `may_fit` where every limit that it breaks is inside its band.
    """

    variant: str
    parameters: dict[str, int]
    exact: bool
    reasons: tuple[Reason, ...]
    figures: Figures | None = None
    may_fit: bool = False

    @property
    def label(self) -> str:
        """The variant with its parameters."""
        return labelled(self.variant, self.parameters)


@dataclass(frozen=True, slots=True)
class Binding:
    """The limit that shapes the answer: see `reports.binding`.

    `alone` names the variants that only this limit keeps out; `used` is the winner's share of the limit.
    """

    limit: Limit
    alone: tuple[str, ...]
    rejected: int
    used: float | None


@dataclass(frozen=True, slots=True)
class Relaxation:
    """The nearest budget under which `variant` fits; `factor` is the largest rise of any limit."""

    variant: str
    parameters: dict[str, int]
    budget: Budget
    factor: float
    options: str

    @property
    def label(self) -> str:
        """The variant with its parameters."""
        return labelled(self.variant, self.parameters)


@dataclass(frozen=True, slots=True)
class Nearest:
    """What would have to give where nothing fits.

    `alone` holds, for each limit that is set, the smallest rise of that limit by itself, or None where
    it does not help; `joint` the rise of all limits with the smallest largest factor. Under these something
    surely fits; under those of `likely_alone` and `likely_joint`, which are no larger, it likely does.
    """

    alone: dict[Limit, Relaxation | None]
    joint: Relaxation | None
    likely_alone: dict[Limit, Relaxation | None]
    likely_joint: Relaxation | None


@dataclass(frozen=True, slots=True)
class Crossover:
    """Where winner and rival take the same time: `below` is faster at shorter lengths, `above` at longer ones.

    `tokens` is None where one of them is faster at every length from `shortest` to `longest`; it is
    then both `below` and `above`.
    """

    winner: str
    rival: str
    tokens: int | None
    below: str
    above: str
    shortest: int
    longest: int
    provenance: Provenance = "interpolated"


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything that follows from one question: `fitting` is ranked, its first is the advice.

    `outcome` is `fits` where the advice keeps every limit with its whole band, `likely` where only with its
    values; `impossible` is proved by `floors`, `unknown` where no variant has figures. `card` is the card that
    the figures are for, where that is not the measured one; `nearest` is there unless something surely fits.
    """

    question: Question
    budget: Budget
    machine: str | None
    card: str | None
    outcome: Outcome
    fits: bool
    fitting: tuple[Candidate, ...]
    rejected: tuple[Rejected, ...]
    binding: Binding | None
    crossovers: tuple[Crossover, ...]
    nearest: Nearest | None
    floors: Floors | None
    notes: tuple[str, ...]
    schema: int = 2
