"""Requirements as data: each says, when asked, why it is not met on this machine."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Protocol

from packaging.version import InvalidVersion, Version

from variants.problem import Problem


class InvalidRequirement(ValueError):
    """A requirement that cannot be asked; the message says what would be right."""


class Requirement(Protocol):
    """Something that a variant needs from the machine or the problem."""

    def unmet(self, problem: Problem) -> str | None:
        """The reason why it is not met, or None."""
        ...


@dataclass(frozen=True, slots=True)
class Package:
    """A distribution of at least a version, which in turn `imports` these modules of others.

    Raises `InvalidRequirement`.
    """

    name: str
    minimum: str
    imports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """What is declared is wrong on every machine, also where the package is not asked for."""
        try:
            Version(self.minimum)
        except (InvalidVersion, TypeError) as error:
            raise InvalidRequirement(
                f"the least version of {self.name} must be one such as '1.2', not {self.minimum!r}"
            ) from error
        _require_tuple(f"imports of {self.name}", self.imports)

    def unmet(self, problem: Problem) -> str | None:
        """Reads the installed distribution's metadata; imports nothing."""
        try:
            installed = metadata.version(self.name)
        except metadata.PackageNotFoundError:
            return f"needs {self.name} ≥ {self.minimum} (not installed)"
        if Version(installed) < Version(self.minimum):
            return f"needs {self.name} ≥ {self.minimum} ({installed} is installed)"
        if missing := [module for module in self.imports if find_spec(module) is None]:
            return f"needs what {self.name} imports ({', '.join(missing)}: not found)"
        return None


def _require_tuple(what: str, given: object) -> None:
    if not isinstance(given, tuple):
        raise InvalidRequirement(f"{what} must be a tuple of modules, not {given!r}")


@dataclass(frozen=True, slots=True)
class ComputeCapability:
    """A CUDA card of at least a compute capability, and at most `most`; silent where there is no card to ask."""

    major: int
    minor: int = 0
    most: tuple[int, int] | None = None

    def unmet(self, problem: Problem) -> str | None:
        """Asks the driver, so it initialises CUDA where there is a card."""
        import torch  # imported here: the catalogue starts without torch

        if problem.device_type != "cuda" or not torch.cuda.is_available():
            return None
        found = torch.cuda.get_device_capability(problem.device)
        if found < (self.major, self.minor):
            return f"needs compute capability ≥ {self.major}.{self.minor} (this card has {found[0]}.{found[1]})"
        if self.most is not None and found > self.most:
            return f"needs compute capability ≤ {self.most[0]}.{self.most[1]} (this card has {found[0]}.{found[1]})"
        return None


@dataclass(frozen=True, slots=True)
class Limit:
    """A condition on the problem, with the words that say what would be right."""

    holds: Callable[[Problem], bool]
    reason: str

    def unmet(self, problem: Problem) -> str | None:
        """The reason where the condition does not hold."""
        return None if self.holds(problem) else self.reason
