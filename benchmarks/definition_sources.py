"""Which sources decide what a definition computes, and a hash of them: what was computed with others is out of date."""

import ast
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.inputs import CAPTURED
from variants.catalogue import ROOT
from variants.definition import Definition
from variants.full import DEFINITION as EXACT

DECLARATIONS: Final = ("declaration", "definition", "problem", "requirement", "variant", "catalogue", "installed")
"""Modules of `variants` that decide no output: a change in them does not outdate what was computed."""


def sources_hash(definitions: Iterable[Definition], modules: Sequence[str]) -> str:
    """A hash of the definitions' sources, of exact attention's, of modules of this room and of the captured inputs.

    Of `variants` those modules count that a definition imports, directly or not.
    """
    paths = {Path(__file__).with_name(f"{name}.py") for name in modules}
    for definition in (*definitions, EXACT):
        paths |= variant_sources(definition.oracle.__module__)
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.parent.name}/{path.name}".encode())
        digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    digest.update(CAPTURED.read_bytes())
    return digest.hexdigest()[:16]


def variant_sources(module: str) -> set[Path]:
    """The file of a module of `variants`, and of those that it imports."""
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file_of(name)
        if path is not None and name not in found:
            found[name] = path
            waiting += _imported(path)
    return set(found.values())


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        room, _, inside = node.module.partition(".")
        if room == ROOT.name and inside not in DECLARATIONS:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)  # one may be a module of its own


def _file_of(name: str) -> Path | None:
    path = ROOT.parent / name.replace(".", "/")
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)
