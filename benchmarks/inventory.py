"""What the catalogue holds, as plain data: for lists."""

from dataclasses import dataclass

from variants import Problem
from variants.catalogue import load, package_of
from variants.variant import missing_device


@dataclass(frozen=True, slots=True)
class Item:
    """One variant as a reader sees it; `refusals` are of the default problem on each of its devices.

    `origin` is the distribution that brings it, with its version where it is not this project.
    """

    name: str
    origin: str
    summary: str
    definition: str
    title: str
    formula: str
    source: str
    exact: bool
    default: bool
    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
    modes: tuple[str, ...]
    parameters: dict[str, int]
    refusals: dict[str, list[str]]

    @property
    def ready_on(self) -> list[str]:
        """The devices of this machine on which it runs."""
        return [device for device, reasons in self.refusals.items() if not reasons]

    def state(self) -> str:
        """`ready`, or every reason why not."""
        if self.ready_on:
            return "ready on " + ", ".join(self.ready_on)
        return "; ".join(dict.fromkeys(reason for reasons in self.refusals.values() for reason in reasons))


def describe(name: str) -> Item:
    """One variant, asked on each of its devices with the first of its dtypes that the device is used with.

    Raises `RegistryError` where its file is at fault, also where only its costs are.
    """
    variant = load(name)
    definition = variant.definition
    usual = {device: _usual_problem(device, variant.dtypes) for device in variant.devices}
    refusals = {device: variant.refusals(problem) for device, problem in usual.items()}
    for device, problem in usual.items():
        if not refusals[device]:
            variant.predicted_bytes(problem)
            variant.flops(problem)
    return Item(
        name=name,
        origin=package_of(name).distribution,
        summary=variant.summary,
        definition=definition.name,
        title=definition.title,
        formula=definition.formula,
        source=variant.source,
        exact=definition.exact,
        default=definition.default == name,
        devices=variant.devices,
        dtypes=variant.dtypes,
        modes=variant.modes,
        parameters=definition.resolve(),
        refusals=refusals,
    )


def _usual_problem(device: str, dtypes: tuple[str, ...]) -> Problem:
    usual = "float32" if device == "cpu" else "bfloat16"
    return Problem(tokens=1024, device=device, dtype=usual if usual in dtypes else dtypes[0])


def default_device() -> str:
    """`cuda` where there is a card, else `cpu`."""
    return "cpu" if missing_device("cuda") else "cuda"
