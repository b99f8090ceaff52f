"""What a sweep needs of a cluster: jobs go out, each to a machine of its own, and their answers come back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

EXECUTORS: Final = ("local", "ray", "slurm")


class ExecutorError(ValueError):
    """A cluster that cannot be used; the message is one line."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A call that one machine is to make; function, arguments and answer travel pickled.

    `limit_seconds` is what it may take at most, for schedulers that ask.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    limit_seconds: float


@dataclass(frozen=True, slots=True)
class Lost:
    """No answer: the process or the machine ended, or the call raised."""

    reason: str


class Executor(Protocol):
    """Makes calls on the machines of a cluster, on each slot one at a time."""

    slots: int
    """How many jobs run at once."""

    def submit(self, job: Job) -> None:
        """Queue a job. Raises `ExecutorError`."""

    def wait(self) -> tuple[Job, Any]:
        """Any job that has ended, with its answer or `Lost`."""

    def close(self) -> None:
        """End what still runs, and leave the cluster."""


def executor_of(name: str, options: dict[str, str], device: str, folder: Path) -> Executor:
    """The executor of that name; what it writes goes below `folder`.

    Raises `ExecutorError` where there is none, or where what it needs is missing.
    """
    if name == "ray":
        from benchmarks.executor_ray import RayExecutor

        return RayExecutor(options, device)
    if name == "slurm":
        from benchmarks.executor_slurm import SlurmExecutor

        return SlurmExecutor(options, device, folder / "slurm")
    if name == "local":
        raise ExecutorError("--executor local has no options")
    raise ExecutorError(f"--executor must be one of {', '.join(EXECUTORS)}, not {name!r}")


def options_of(settings: Sequence[str]) -> dict[str, str]:
    """An executor's own options, as `name=value` words give them. Raises `ExecutorError`."""
    options = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not (name.strip() and equals and value.strip()):
            raise ExecutorError(f"--executor-set takes name=value, such as address=auto, not {setting!r}")
        options[name.strip()] = value.strip()
    return options


def whole_option(name: str, text: str) -> int:
    """An option that is a whole number from 1. Raises `ExecutorError`."""
    if not text.isdecimal() or int(text) < 1:
        raise ExecutorError(f"--executor-set {name} must be a whole number from 1, not {text!r}")
    return int(text)
