"""What the tests of other packages' kernels share: attention by the packages' documents, and their own signatures."""

import ast
import inspect
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ready_variants import draw
from variants import Problem
from variants.catalogue import load


def module(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> ModuleType:
    """Stands where a package's module would be imported from, with empty ones above it."""
    above, _, own = name.rpartition(".")
    found = ModuleType(name)
    vars(found).update(contents)
    monkeypatch.setitem(sys.modules, name, found)
    if above:
        parent = sys.modules[above] if above in sys.modules else module(monkeypatch, above)
        monkeypatch.setattr(parent, own, found, raising=False)
    return found


def softmaxed(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Tokens before heads, query heads in groups; a query that sees no key is zero."""
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * scale + bias
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1).nan_to_num(0.0), v)


def strayed(name: str, problem: Problem, parameters: dict[str, int] | None = None) -> float:
    """The greatest difference between a variant's output, with stand-ins in place, and its definition's oracle."""
    variant = load(name)
    chosen = variant.definition.resolve(parameters or {})
    q, k, v = draw(problem.with_(dtype="float64"))
    run = variant.build(problem.with_(dtype="float64"), **chosen)
    want = variant.definition.reference(q, k, v, causal=problem.causal, parameters=chosen)
    if variant.layout == "bnhd":
        got = run(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    else:
        got = run(q, k, v)
    assert got.shape == want.shape
    return float((got - want).abs().max())


def check_signature(stand_in: Callable[..., Any], distribution: str, file: str, name: str) -> None:
    """That a stand-in takes nothing that the package's own function does not; skips where it is not installed."""
    try:
        path = Path(str(metadata.distribution(distribution).locate_file(file)))
    except metadata.PackageNotFoundError:
        pytest.skip(f"{distribution} is not installed")
    (found,) = (
        node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef) and node.name == name
    )
    there = {argument.arg for argument in (*found.args.args, *found.args.kwonlyargs)}
    assert set(inspect.signature(stand_in).parameters) <= there
