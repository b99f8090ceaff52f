"""A variant: one way to compute a definition, declared as data beside its builder."""

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from jaxtyping import Float
from torch import Tensor

from variants.declaration import (
    RegistryError,
    counted,
    require_builder,
    require_costs,
    require_layout,
    require_requirements,
    require_words,
    unmet_reasons,
)
from variants.definition import Definition, Parameters
from variants.problem import Problem
from variants.requirement import Requirement

__all__ = ["FLOATS", "Attention", "RegistryError", "Variant", "missing_device", "variant"]

Attention = Callable[
    [
        Float[Tensor, "batch heads tokens head_dim"],
        Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ],
    Float[Tensor, "batch heads tokens head_dim"],
]
"""What a builder returns and the instrument times. With layout `bnhd` the axes 1 and 2 are swapped."""

FLOATS = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to compute `definition`, with everything that is known of it before it runs.

    `build(problem, **parameters)` does all set-up and returns the callable that is timed.
    `workspace_bytes(problem, **parameters)` predicts the peak memory beyond inputs and outputs.
    `compiled`: the builder compiles, for seconds at every new shape.
    `spectral`: it sums in the frequency domain, where the rounding errors of each token reach every
    other: where the formula says that a token has no influence, it has one of the size of rounding.
    """

    name: str
    summary: str
    definition: Definition
    build: Callable[..., Attention]
    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
    modes: tuple[str, ...]
    workspace_bytes: Callable[..., int]
    layout: str = "bhnd"
    requires: tuple[Requirement, ...] = ()
    executed_flops: Callable[..., int] | None = None
    source: str = ""
    compiled: bool = False
    spectral: bool = False

    @property
    def family(self) -> str:
        """The folder: the name's first part."""
        return self.name.partition("/")[0]

    @property
    def file(self) -> str:
        """Where its builder is written."""
        return inspect.getfile(inspect.unwrap(self.build))

    def refusals(self, problem: Problem) -> list[str]:
        """Every reason why this variant cannot run the problem on this machine; empty means it runs.

        Raises `RegistryError` where a requirement itself is at fault.
        """
        reasons = []
        if problem.device_type not in self.devices:
            reasons.append("needs CUDA" if self.devices == ("cuda",) else f"runs on {', '.join(self.devices)} only")
        if (reason := missing_device(problem.device)) is not None:
            reasons.append(reason)
        if problem.dtype not in self.dtypes:
            reasons.append(f"no {problem.dtype} (has {', '.join(self.dtypes)})")
        if problem.mode not in self.modes:
            reasons.append(f"no {problem.mode} (has {', '.join(self.modes)})")
        return reasons + unmet_reasons(self.file, self.requires, problem)

    def predicted_bytes(self, problem: Problem, parameters: Parameters | None = None) -> int:
        """Predicted peak bytes: inputs, outputs and workspace; raises `RegistryError` where that is at fault."""
        chosen = self.definition.resolve(parameters)
        workspace = counted(self.file, "workspace_bytes", self.workspace_bytes, problem, chosen)
        return problem.input_output_bytes + workspace

    def flops(self, problem: Problem, parameters: Parameters | None = None) -> int:
        """FLOPs that this variant executes, wasted ones included, backward pass included in training."""
        if self.executed_flops is None:
            return self.definition.useful_flops(problem, parameters)
        chosen = self.definition.resolve(parameters)
        return counted(self.file, "executed_flops", self.executed_flops, problem, chosen)


def missing_device(device: str) -> str | None:
    """Why the device is not on this machine, or None."""
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return None
    import torch  # not at module level: nothing here may touch CUDA at import

    if not torch.cuda.is_available():
        return "no CUDA device on this machine"
    if index and int(index) >= torch.cuda.device_count():
        return f"no {device}: this machine has {torch.cuda.device_count()} CUDA device(s)"
    return None


def variant(
    name: str,
    *,
    summary: str,
    devices: Sequence[str],
    modes: Sequence[str],
    workspace_bytes: Callable[..., int],
    dtypes: Sequence[str] = FLOATS,
    layout: str = "bhnd",
    requires: Sequence[Requirement] = (),
    executed_flops: Callable[..., int] | None = None,
    source: str = "",
    compiled: bool = False,
    spectral: bool = False,
) -> Callable[[Callable[..., Attention]], Callable[..., Attention]]:
    """Declare the decorated builder as the variant of its file.

    Raises `RegistryError`, naming the file, where the name is not the file's path, the file
    declares a second variant, a device, type, mode or layout is unknown, a requirement is none, or
    the builder or a cost does not take the problem and by keyword what its definition declares.
    """

    def declare(build: Callable[..., Attention]) -> Callable[..., Attention]:
        module = inspect.getmodule(build)
        assert module is not None and module.__file__ is not None
        definition = _definition_beside(module)
        where = _file_of(module, name)
        require_words(where, devices=devices, dtypes=dtypes, modes=modes)
        require_layout(where, layout)
        require_requirements(where, requires)
        require_builder(where, build, definition)
        costs = {} if executed_flops is None else {"executed_flops": executed_flops}
        require_costs(where, definition, workspace_bytes=workspace_bytes, **costs)
        module.VARIANT = Variant(  # type: ignore[attr-defined]  # the catalogue reads this attribute
            name=name,
            summary=summary,
            definition=definition,
            build=build,
            devices=tuple(devices),
            dtypes=tuple(dtypes),
            modes=tuple(modes),
            workspace_bytes=workspace_bytes,
            layout=layout,
            requires=tuple(requires),
            executed_flops=executed_flops,
            source=source or definition.source,
            compiled=compiled,
            spectral=spectral,
        )
        return build

    return declare


def _definition_beside(module: ModuleType) -> Definition:
    folder = importlib.import_module(module.__name__.rpartition(".")[0])
    definition = getattr(folder, "DEFINITION", None)
    if not isinstance(definition, Definition):
        raise RegistryError(f"{folder.__file__}: must set DEFINITION to a Definition")
    return definition


def _file_of(module: ModuleType, name: str) -> str:
    """The file, whose path is the name, and which holds no other variant."""
    path = Path(module.__file__ or "")
    expected = f"{path.parent.name}/{path.stem}"
    if name != expected:
        raise RegistryError(f"{path}: declares {name!r}, but its path says {expected!r}")
    if hasattr(module, "VARIANT"):
        raise RegistryError(f"{path}: declares {name!r} twice; one file holds one variant")
    return str(path)
