"""What a variant's output is held against, as files: made in a process that runs no variant, read where one runs."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.accuracy import (
    Exact,
    Expected,
    Inputs,
    checked_rows,
    exact_of,
    formula_rows,
    gradient_error,
    oracle_gradients,
    oracle_rows,
)
from benchmarks.accuracy import relative_error as distance
from benchmarks.descriptors import describe_inputs
from benchmarks.inputs import make_inputs
from benchmarks.measurement import Case
from benchmarks.plain_precision import Rounded, is_held_to_plain
from variants import Problem
from variants.definition import Definition
from variants.dtypes import TORCH_DTYPES

GRADIENT_SEED: Final = 0
QKV_NAMES: Final = ("q", "k", "v")


class Files(msgspec.Struct, frozen=True):
    """Where a case's reference lies: what all definitions share, and what is the definition's own."""

    shared: Path
    own: Path


class ReferenceMismatch(ValueError):
    """A file that is not of this case, or inputs that are not those it was made of."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Inputs, what an output on them is held against, and their digest; `gradients` in training only.

    `plain_gradient` is the error of theirs in the problem's own half type, NaN where it was not asked for.
    """

    inputs: Inputs
    digest: str
    expected: Expected
    descriptors: dict[str, float]
    gradients: tuple[Tensor, ...] = ()
    plain_gradient: float = math.nan

    def check_inputs(self) -> None:
        """Raises `ReferenceMismatch` where q, k or v are no longer what the reference was made of."""
        if digest_of(self.inputs) != self.digest:
            raise ReferenceMismatch("its inputs are not, or no longer, those that its reference was made of")


def make_reference(case: Case, inputs: Inputs, definition: Definition) -> Reference:
    """The whole reference of a case, made here and now."""
    problem, digest = case.problem(), digest_of(inputs)
    exact = exact_of(inputs, problem)
    expected, gradients, plain_gradient = _of_definition(case, inputs, definition, exact)
    return Reference(inputs, digest, expected, describe_inputs(inputs, problem), gradients, plain_gradient)


def write_shared(case: Case, file: Path) -> None:
    """Draw the inputs and write them, their exact attention and their descriptors; raises `UnavailableInputs`."""
    problem = case.problem()
    inputs = make_inputs(problem, case.inputs, case.seed)
    exact = exact_of(inputs, problem)
    told = {
        **_shared_facts(case),
        "digest": digest_of(inputs),
        "mean_of_v": exact.mean_of_v,
        "descriptors": describe_inputs(inputs, problem),
    }
    _write(file, dict(zip(QKV_NAMES, inputs, strict=True)) | {"exact": exact.rows}, told)


def write_own(case: Case, files: Files, definition: Definition) -> None:
    """Write the definition's own oracle, and in training its gradients, on the inputs that are there."""
    device = case.device
    tensors, told = _read(files.shared, _shared_facts(case), device)
    inputs = (tensors["q"], tensors["k"], tensors["v"])
    exact = Exact(tensors["exact"], told["mean_of_v"])
    expected, gradients, plain_gradient = _of_definition(case, inputs, definition, exact)
    named = {f"gradient_{name}": x for name, x in zip(QKV_NAMES, gradients, strict=False)}
    facts = {**_own_facts(case, definition), "digest": told["digest"], "approximation": expected.approximation}
    facts |= {"plain": expected.plain, "plain_gradient": plain_gradient}
    _write(files.own, {"own": expected.own, **named}, facts)


def read_reference(case: Case, files: Files, definition: Definition) -> Reference:
    """What was written for a case; raises `ReferenceMismatch` where a file is of another."""
    shared, told = _read(files.shared, _shared_facts(case), case.device)
    own, own_told = _read(files.own, _own_facts(case, definition), case.device)
    if told["digest"] != own_told["digest"]:
        raise ReferenceMismatch(f"{files.own.name} was made of other inputs than those of {files.shared.name}")
    # A copy: a variant may write into its inputs, and memory that is a file's is not what it is to be timed on.
    inputs = (shared["q"].clone(), shared["k"].clone(), shared["v"].clone())
    gradients = tuple(own[f"gradient_{name}"] for name in QKV_NAMES) if case.mode == "training" else ()
    expected = Expected(own["own"], own_told["approximation"], told["mean_of_v"], own_told["plain"])
    return Reference(inputs, told["digest"], expected, told["descriptors"], gradients, own_told["plain_gradient"])


def shared_bytes(problem: Problem) -> int:
    """What the shared file takes: the inputs, and the checked rows in float64."""
    return problem.query_bytes + 2 * problem.key_bytes + _rows_bytes(problem)


def own_bytes(problem: Problem) -> int:
    """What the file of one definition takes: the checked rows, and in training three gradients, in float64."""
    if problem.mode != "training":
        return _rows_bytes(problem)
    return _rows_bytes(problem) + 8 * (problem.query_bytes + 2 * problem.key_bytes) // problem.element_bytes


def output_gradient(problem: Problem, like: Tensor) -> Tensor:
    """The gradient of the output from which those of q, k and v are taken: N(0,1), seeded, alike for all variants."""
    generator = torch.Generator().manual_seed(GRADIENT_SEED)
    shape = (problem.batch, problem.heads, problem.tokens, problem.head_dim)
    return torch.randn(shape, generator=generator).to(like.device, like.dtype)


def digest_of(tensors: Inputs) -> str:
    """A hash of shapes, types and bytes."""
    found = hashlib.sha256()
    for x in tensors:
        found.update(f"{tuple(x.shape)} {x.dtype} ".encode())
        found.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _of_definition(
    case: Case, inputs: Inputs, definition: Definition, exact: Exact
) -> tuple[Expected, tuple[Tensor, ...], float]:
    problem, parameters = case.problem(), definition.resolve(case.parameters)
    own = oracle_rows(inputs, problem, definition, parameters, exact)
    training = problem.mode == "training"
    grad = output_gradient(problem, inputs[0])
    gradients = oracle_gradients(inputs, grad, problem, definition, parameters) if training else ()
    plain = plain_gradient = math.nan
    if is_held_to_plain(problem, definition):
        with Rounded(TORCH_DTYPES[problem.dtype]):
            rounded = formula_rows(inputs, problem, definition, parameters)
            others = oracle_gradients(inputs, grad, problem, definition, parameters) if training else ()
        plain = distance(rounded, own)
        plain_gradient = gradient_error(others, gradients) if training else math.nan
    return Expected(own, distance(own, exact.rows), exact.mean_of_v, plain), gradients, plain_gradient


def _rows_bytes(problem: Problem) -> int:
    return 8 * problem.batch * problem.heads * len(checked_rows(problem.with_(device="cpu"))) * problem.head_dim


def _shared_facts(case: Case) -> dict[str, Any]:
    """What tells the inputs of one case from another's, and the rows that are checked."""
    facts: dict[str, Any] = msgspec.to_builtins(case)
    rows = checked_rows(case.problem()).cpu().numpy().tobytes()
    left_out = ("variant", "parameters")
    return {name: value for name, value in facts.items() if name not in left_out} | {
        "rows": hashlib.sha256(rows).hexdigest()
    }


def _own_facts(case: Case, definition: Definition) -> dict[str, Any]:
    return {**_shared_facts(case), "definition": definition.name, "parameters": definition.resolve(case.parameters)}


def _write(file: Path, tensors: dict[str, Tensor], told: dict[str, Any]) -> None:
    """Under another name first: a process that is killed leaves no half file that could be read."""
    draft = file.with_suffix(".part")
    save_file({name: x.detach().cpu().contiguous() for name, x in tensors.items()}, draft, {"told": json.dumps(told)})
    draft.replace(file)


def _read(file: Path, facts: dict[str, Any], device: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(file, "pt", device=device) as opened:
        told: dict[str, Any] = json.loads(opened.metadata()["told"])
        if other := sorted(name for name, value in facts.items() if told.get(name) != value):
            raise ReferenceMismatch(f"{file.name} is of another case: its {', '.join(other)} differ")
        return {name: opened.get_tensor(name) for name in opened.keys()}, told  # noqa: SIM118  # no mapping
