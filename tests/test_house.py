"""The house: import arrows, names that nobody else owns, pinned versions, file names, and a guide that works."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
ROOMS = ("variants", "benchmarks", "reports")
FRONT_DOOR = "attnscape"
MAY_NOT_IMPORT = {
    "variants": {"benchmarks", "reports", FRONT_DOOR},
    "benchmarks": {"reports", FRONT_DOOR},
    "reports": {"variants", "benchmarks", FRONT_DOOR, "torch"},
    FRONT_DOOR: set[str](),
}
WORN_OUT_NAMES = {"util", "utils", "helper", "helpers", "common", "manager", "managers", "misc"}


def modules() -> Iterator[Path]:
    yield ROOT / f"{FRONT_DOOR}.py"
    for room in ROOMS:
        yield from sorted((ROOT / room).rglob("*.py"))


# ---- the arrows


class Imports(ast.NodeVisitor):
    """What a module imports, as (line, top-level name, when): `now`, `later` in a function, or only for `types`."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.when = "now"
        self.found: list[tuple[int, str, str]] = []

    def add(self, node: ast.stmt | ast.expr, module: str) -> None:
        self.found.append((node.lineno, module.partition(".")[0], self.when))

    def inside(self, when: str, nodes: list[ast.stmt]) -> None:
        before, self.when = self.when, when
        for node in nodes:
            self.visit(node)
        self.when = before

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.add(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.add(node, self.package if node.level else node.module or "")

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        first = node.args[0] if node.args else None
        if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
            self.add(node, str(first.value))
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.inside("later", node.body)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.inside("later", node.body)

    def visit_If(self, node: ast.If) -> None:
        types_only = ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        self.inside("types" if types_only else self.when, node.body)
        self.inside(self.when, node.orelse)


def wrong_imports(path: str, source: str) -> list[str]:
    """The imports of the module at `path`, from the root, that run against the arrows."""
    package = path.partition("/")[0].removesuffix(".py")
    visitor = Imports(package)
    visitor.visit(ast.parse(source))
    wrong = [f"{path}:{line} imports {name}" for line, name, _ in visitor.found if name in MAY_NOT_IMPORT[package]]
    if package == FRONT_DOOR:
        early = [(line, name) for line, name, when in visitor.found if name in (*ROOMS, "torch") and when == "now"]
        wrong += [f"{path}:{line} imports {name} outside a function" for line, name in early]
    return wrong


def test_imports_follow_the_arrows() -> None:
    found = [
        wrong
        for path in modules()
        for wrong in wrong_imports(path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("variants/full/matmul.py", "import benchmarks.timing"),
        ("variants/problem.py", "def f():\n    from reports.choice import choose"),
        ("variants/catalogue.py", "import importlib\nimportlib.import_module('attnscape')"),
        ("benchmarks/attention.py", "import numpy, reports"),
        ("benchmarks/measurement.py", "from attnscape import main"),
        ("reports/page.py", "import torch.nn"),
        ("reports/page.py", "from variants import Problem"),
        ("reports/page.py", "if TYPE_CHECKING:\n    from benchmarks.measurement import Case"),
        ("attnscape.py", "import reports.choice"),
        ("attnscape.py", "if True:\n    from variants.catalogue import load"),
        ("attnscape.py", "class Command:\n    import torch"),
    ],
)
def test_an_import_against_the_arrows_is_seen(path: str, source: str) -> None:
    assert len(wrong_imports(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("variants/full/matmul.py", "import torch\nfrom variants.problem import Problem\nfrom . import oracle"),
        ("benchmarks/attention.py", "from variants.catalogue import names\nfrom benchmarks import measurement"),
        ("reports/page.py", "from reports import curve\nimport torchlike"),
        ("attnscape.py", "import typer\ndef choose():\n    from reports.choice import choose\n    import torch"),
        ("attnscape.py", "if TYPE_CHECKING:\n    from variants import Problem"),
    ],
)
def test_an_import_along_the_arrows_is_not(path: str, source: str) -> None:
    assert wrong_imports(path, source) == []


# ---- the names are generic: nobody else may own them


def foreign_owners(owners: Mapping[str, list[str]]) -> dict[str, set[str]]:
    """Rooms that other distributions own too, with those."""
    foreign = {
        name: {str(canonicalize_name(owner)) for owner in owners.get(name, [])} - {FRONT_DOOR}
        for name in (*ROOMS, FRONT_DOOR)
    }
    return {name: found for name, found in foreign.items() if found}


def test_no_other_distribution_owns_a_room() -> None:
    assert foreign_owners(metadata.packages_distributions()) == {}


def test_another_owner_is_seen() -> None:
    owners = {"benchmarks": ["attnscape", "Careless.Package"], "variants": ["attnscape"], "numpy": ["numpy"]}
    assert foreign_owners(owners) == {"benchmarks": {"careless-package"}}


# ---- pinned versions


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def declared() -> list[Requirement]:
    """Dependencies, those of the extras, and the build backend."""
    about = project()
    extras = [line for lines in about["project"]["optional-dependencies"].values() for line in lines]
    return [
        Requirement(line) for line in (*about["project"]["dependencies"], *extras, *about["build-system"]["requires"])
    ]


def pins(text: str) -> dict[str, str]:
    """Version by name; any line that is no plain pin is an error."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            pin = re.fullmatch(r"([A-Za-z0-9._-]+)==([^+\s]+)", line)
            assert pin, f"not a pin without a local version: {line}"
            found[canonicalize_name(pin[1])] = pin[2]
    return found


def unpinned(requirements: list[Requirement], pinned: dict[str, str]) -> list[str]:
    """Requirements without a pin, or with one that they do not allow."""
    return [
        str(need)
        for need in requirements
        if canonicalize_name(need.name) not in pinned
        or Version(pinned[canonicalize_name(need.name)]) not in need.specifier
    ]


def test_every_dependency_is_pinned() -> None:
    pinned = pins((ROOT / "constraints.txt").read_text("utf-8"))
    assert unpinned(declared(), pinned) == []
    installed = metadata.distribution("torch")
    assert unpinned([need for line in installed.requires or [] if not (need := Requirement(line)).marker], pinned) == []


def test_a_missing_pin_is_seen() -> None:
    needs = [Requirement("numpy>=2"), Requirement("rich"), Requirement("nvidia-ml-py>=12")]
    assert unpinned(needs, {"numpy": "1.26.4", "rich": "15.0.0"}) == ["numpy>=2", "nvidia-ml-py>=12"]
    with pytest.raises(AssertionError, match="not a pin"):
        pins("torch==2.13.0+cpu")


# ---- names and words


def worn_out(paths: list[str]) -> list[str]:
    """Files whose name says nothing of what they hold."""
    return [path for path in paths if WORN_OUT_NAMES & set(re.split(r"[_.]", Path(path).stem.lower()))]


def test_files_are_named_for_what_they_hold() -> None:
    files = [path.relative_to(ROOT).as_posix() for path in (*modules(), *(ROOT / "tests").rglob("*.py"))]
    assert worn_out(files) == []
    assert worn_out(["variants/utils.py", "tests/test_helper.py", "variants/full/matmul.py"]) == [
        "variants/utils.py",
        "tests/test_helper.py",
    ]


def test_changelog_has_this_version() -> None:
    headings = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert project()["project"]["version"] in headings


# ---- the guide's examples, as they stand in CONTRIBUTING.md

EXAMPLE = re.compile(r"<!-- (variants/\S+\.py) -->\n```python\n(.*?)```", re.DOTALL)
RUN_EXAMPLES = """
import sys, torch
from variants.catalogue import load
from variants.problem import Problem
from variants.tolerance import IMPLEMENTATION_TOLERANCE
generator = torch.Generator().manual_seed(0)
for name in sys.argv[1:]:
    ran = 0
    for causal in (False, True):
        problem = Problem(tokens=5, kv_tokens=7, heads=4, kv_heads=2, head_dim=8, causal=causal)
        if load(name).refusals(problem):
            continue
        q, k, v = (torch.randn(1, h, n, 8, generator=generator) for h, n in ((4, 5), (2, 7), (2, 7)))
        expected = load(name).definition.reference(q, k, v, causal=causal)
        got = load(name).build(problem)(q, k, v)
        assert got.shape == q.shape
        assert ((got - expected).norm() / expected.norm()).item() <= IMPLEMENTATION_TOLERANCE["float32"], name
        ran += 1
    assert ran, f"{name} is refused"
"""


def examples() -> dict[str, str]:
    """The guide's modules, by path."""
    return dict(EXAMPLE.findall((ROOT / "CONTRIBUTING.md").read_text("utf-8")))


def fault_of(sources: dict[str, str], tree: Path) -> str:
    """What goes wrong with these modules added to a copy of variants/; empty where nothing does."""
    for module in (ROOT / "variants").rglob("*.py"):
        copy = tree / module.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(module.read_bytes())
    for path, source in sources.items():
        (tree / path).parent.mkdir(exist_ok=True)
        (tree / path).write_text(source, "utf-8")
    names = [path.removeprefix("variants/").removesuffix(".py") for path in sources if not path.endswith("__init__.py")]
    command = [sys.executable, "-c", RUN_EXAMPLES, *names]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=100, check=False).stderr


def test_the_guides_examples_work(tmp_path: Path) -> None:
    assert len(examples()) == 3
    assert not any((ROOT / path).exists() for path in examples())
    assert fault_of(examples(), tmp_path) == ""


def test_a_wrong_example_is_seen(tmp_path: Path) -> None:
    wrong = {path: source.replace("return torch.cat(", "return 2 * torch.cat(") for path, source in examples().items()}
    assert "full/by_head" in fault_of(wrong, tmp_path)
