"""What pages tell of a definition: what it declares, and what was computed once and is kept beside the pages."""

import inspect
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.accuracy import mean_of_values, relative_error
from benchmarks.attention_matrix import HEAD, HEADS, Realised, realised_matrix
from benchmarks.definition_sources import sources_hash
from benchmarks.drawn_inputs import QKV
from benchmarks.error_table import Method, oracle_output, own_error
from benchmarks.inputs import ALL_KINDS, CAPTURED_HEAD_DIM, CAPTURED_TOKENS, make_inputs
from variants import Problem
from variants.catalogue import ROOT, load, names
from variants.definition import Definition
from variants.full import DEFINITION as EXACT
from variants.requirement import ComputeCapability, Limit, Package, Requirement
from variants.variant import Variant

LENGTHS: Final = (1024, 4096, 16384)
"""Lengths of the table of costs."""
ERROR_HEADS: Final = 4
ERROR_HEAD_DIM: Final = 64
SIGNIFICANT: Final = 4
UNLIKE: Final = 4.0
"""Beyond this ratio of their norms, a matrix is shown on the scale of the exact one."""
SOURCES: Final = ("attention_matrix", "drawn_inputs", "structured_inputs")
"""Modules of this room that decide what is computed, beside the definition itself."""


@dataclass(frozen=True, slots=True)
class Described:
    """A definition as its page shows it, with nothing in it that depends on the machine."""

    name: str
    title: str
    summary: str
    formula: str
    source: str
    exact: bool
    normalised: bool
    oracle: str
    parameters: tuple[tuple[str, int, int, int, str], ...]
    costs: tuple[tuple[int, bool, int, int], ...]
    variants: tuple[dict[str, Any], ...]
    fingerprint: str


def described_definitions(root: Path = ROOT) -> list[Described]:
    """Every definition of this project's own folders, by name."""
    by_name: dict[str, list[Variant]] = {}
    for variant in map(load, names(root)):
        by_name.setdefault(variant.definition.name, []).append(variant)
    return [_described(by_name[name]) for name in sorted(by_name)]


def definition_named(name: str) -> Definition:
    """The definition that a page is about."""
    return next(v.definition for v in map(load, names(ROOT)) if v.definition.name == name)


def _described(variants: list[Variant]) -> Described:
    definition = variants[0].definition
    home = sys.modules[definition.oracle.__module__]
    return Described(
        name=definition.name,
        title=definition.title,
        summary=_prose(inspect.getdoc(home)),
        formula=definition.formula,
        source=definition.source,
        exact=definition.exact,
        normalised=definition.normalised,
        oracle=_prose(inspect.getdoc(definition.oracle)),
        parameters=tuple((p.name, p.default, p.low, p.high, p.meaning) for p in definition.parameters),
        costs=tuple(_cost(definition, length, causal) for length, causal in product(LENGTHS, (False, True))),
        variants=tuple(_declared(variant) for variant in variants),
        fingerprint=sources_hash([definition], SOURCES),
    )


def _declared(variant: Variant) -> dict[str, Any]:
    listed = {"devices": variant.devices, "dtypes": variant.dtypes, "modes": variant.modes}
    needs = [_need(need) for need in variant.requires]
    return {"name": variant.name, "summary": variant.summary, "source": variant.source, **listed, "needs": needs}


def _need(need: Requirement) -> str:
    """A requirement in words, the same on every machine."""
    if isinstance(need, Package):
        return f"{need.name} ≥ {need.minimum}"
    if isinstance(need, ComputeCapability):
        return f"compute capability ≥ {need.major}.{need.minor}"
    return need.reason if isinstance(need, Limit) else type(need).__name__


def _cost(definition: Definition, length: int, causal: bool) -> tuple[int, bool, int, int]:
    problem = Problem(tokens=length, heads=1, head_dim=ERROR_HEAD_DIM, causal=causal)
    parameters = definition.resolve()
    pairs = definition.visible_pairs(problem, **parameters)
    return length, causal, pairs, definition.useful_flops(problem, parameters)


def _prose(doc: str | None) -> str:
    """A docstring without the paragraphs that say what is raised."""
    paragraphs = [" ".join(part.split()) for part in (doc or "").split("\n\n")]
    return "\n\n".join(part for part in paragraphs if part and not part.startswith("Raises"))


# ---- what is computed


def computed_facts(definition: Definition) -> tuple[dict[str, Any], Realised]:
    """Errors on every kind of inputs, by mask, and the realised matrix.

    Errors are relative Frobenius errors of the oracle against exact attention, on inputs of seed 0.
    """
    facts: dict[str, Any] = {
        "fingerprint": sources_hash([definition], SOURCES),
        "tokens": CAPTURED_TOKENS,
        "heads": ERROR_HEADS,
        "head_dim": ERROR_HEAD_DIM,
        "errors": {},
        "refusals": {},
    }
    method = Method(definition, definition.resolve())
    for causal, kind in product((False, True), ALL_KINDS):
        problem, inputs, exact, floor = _drawn(kind, causal)
        error = 0.0 if definition.exact else own_error(method, problem, inputs, exact)
        mask = "causal" if causal else "full"
        if isinstance(error, str):
            facts["refusals"][mask] = error
            continue
        facts["errors"].setdefault(kind, {})[mask] = _rounded(error)
        facts.setdefault("mean_of_v", {}).setdefault(kind, {})[mask] = _rounded(floor)
    realised = realised_matrix(definition)
    facts["matrix"] = matrix_facts(realised)
    return facts, realised


def page_facts(name: str) -> tuple[dict[str, Any], Any, Any]:
    """The facts of the definition of that name, with the realised and the exact matrix as arrays."""
    facts, realised = computed_facts(definition_named(name))
    return facts, realised.matrix.numpy(), realised.exact.numpy()


def matrix_facts(realised: Realised) -> dict[str, Any]:
    """What the caption of a picture says, in numbers."""
    matrix, exact = realised.matrix, realised.exact
    sums = matrix.sum(-1)
    ratio = float(matrix.norm() / exact.norm())
    return {
        "causal": realised.causal,
        "parameters": realised.parameters,
        "derivative": realised.derivative,
        "head": HEAD,
        "heads": HEADS,
        "tokens": matrix.shape[0],
        "head_dim": CAPTURED_HEAD_DIM,
        "row_sums": [_rounded(float(sums.min())), _rounded(float(sums.max()))],
        "negative": _rounded(float((matrix < 0).double().mean())),
        "nought": _rounded(float((matrix == 0).double().mean())),
        "distance": _rounded(float((matrix - exact).norm() / exact.norm())),
        "divided_by": _rounded(ratio) if not 1 / UNLIKE <= ratio <= UNLIKE else 1.0,
    }


_DRAWN: dict[tuple[str, bool], tuple[Problem, QKV, torch.Tensor, float]] = {}
"""Inputs with exact attention on them, which every definition is held against."""


def _drawn(kind: str, causal: bool) -> tuple[Problem, QKV, torch.Tensor, float]:
    if (kind, causal) not in _DRAWN:
        shape = {"heads": ERROR_HEADS, "head_dim": ERROR_HEAD_DIM, "dtype": "float64"}
        problem = Problem(tokens=CAPTURED_TOKENS, causal=causal, **shape)  # type: ignore[arg-type]  # as they are named
        inputs = make_inputs(problem, kind)
        exact = oracle_output(EXACT, inputs, causal=causal)
        mean = mean_of_values(inputs[2], torch.arange(problem.tokens), problem)
        _DRAWN[kind, causal] = (problem, inputs, exact, relative_error(mean, exact))
    return _DRAWN[kind, causal]


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT}g}")
