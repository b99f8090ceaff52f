"""Variants that another installed distribution brings: found, listed, checked, planned and run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.variant_code import variant_codes
from variants import catalogue, installed
from variants.catalogue import names
from variants.installed import CatalogueError, VariantPackage, package_folder

ROOT = Path(__file__).parents[1]

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "other-attention"
version = "0.3"
[project.entry-points."attnscape.variants"]
other = "other_attention.forms"
[tool.hatch.build.targets.wheel]
only-include = ["other_attention"]
"""
DEFINITION = '''
"""The mean of V."""
import torch
from variants.definition import Definition

def oracle(q, k, v, rows, *, causal):
    return v.mean(2, keepdim=True).expand(-1, -1, len(rows), -1)

DEFINITION = Definition(
    name="average", title="Average", formula="o_i = mean of V", source="a test", exact=False, oracle=oracle,
    visible_pairs=lambda problem: problem.kv_tokens, default="average/once",
)
'''
FORM = '''
"""One way."""
from variants.requirement import Limit
from variants.variant import variant

@variant("{name}", summary="a way", devices=("cpu",), modes=("forward",), workspace_bytes=lambda problem, **_: 0,
         requires=(Limit(lambda problem: not problem.causal, "not causal"),))
def build(problem):
    return lambda q, k, v: {body}
'''
MEAN = "v.mean(2, keepdim=True).repeat_interleave(problem.group, 1).expand_as(q).contiguous()"
FILES = {
    "pyproject.toml": PROJECT,
    "other_attention/__init__.py": "",
    "other_attention/forms/__init__.py": "",
    "other_attention/forms/average/__init__.py": DEFINITION,
    "other_attention/forms/average/once.py": FORM.format(name="average/once", body=MEAN),
    "other_attention/forms/full/__init__.py": "from variants.full import DEFINITION\n",
    "other_attention/forms/full/plain.py": FORM.format(
        name="full/plain",
        body="(q @ k.repeat_interleave(problem.group, 1).mT / q.shape[-1] ** 0.5).softmax(-1) "
        "@ v.repeat_interleave(problem.group, 1)",
    ),
}


def write(files: dict[str, str], folder: Path) -> Path:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, "utf-8")
    return folder


def described(folder: Path, package: str, value: str = "") -> Path:
    """What an installer leaves of a distribution with one entry point, beside the package."""
    about = {
        "METADATA": "Metadata-Version: 2.1\nName: careless\nVersion: 1.0\n",
        "entry_points.txt": f"[attnscape.variants]\nforms = {value or package}\n",
    }
    return write({f"careless-1.0.dist-info/{name}": text for name, text in about.items()}, folder)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the distribution."""
    source = write(FILES, tmp_path_factory.mktemp("source"))
    target = tmp_path_factory.mktemp("installed")
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([sys.executable, "-m", "pip", "install", *quiet, "--target", target, source], check=True)
    return target


def python(installation: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installation)}
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


def attnscape(installation: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return python(installation, "-m", "attnscape", *words)


def test_names_are_read_without_importing_the_package(installation: Path) -> None:
    code = """
import sys
from variants.catalogue import ROOT, names
print(*sorted(set(names()) - set(names(ROOT))))
print(*(name for name in ("torch", "other_attention") if name in sys.modules))
"""
    done = python(installation, "-c", code)
    assert done.stdout.split("\n")[:2] == ["average/once full/plain", ""], done.stderr


def test_list_says_where_a_variant_comes_from(installation: Path) -> None:
    items = {item["name"]: item for item in json.loads(attnscape(installation, "list", "--json").stdout)}
    assert set(items) == {*names(catalogue.ROOT), "average/once", "full/plain"}
    assert items["average/once"]["origin"] == items["full/plain"]["origin"] == "other-attention 0.3"
    assert items["full/matmul"]["origin"] == "attnscape"
    assert items["full/plain"]["definition"] == "full" and items["average/once"]["definition"] == "average"
    assert "From other-attention 0.3: average/once, full/plain" in attnscape(installation, "list").stdout


def test_the_variants_are_checked_against_their_oracles(installation: Path) -> None:
    words = ("average", "full/plain", "full/matmul", "--tokens", "40", "--inputs", "normal,peaky", "--json")
    done = attnscape(installation, "check", *words)
    rows = json.loads(done.stdout)
    ok = [(row["case"]["variant"], row["case"]["inputs"]) for row in rows if row["status"] == "ok"]
    assert done.returncode == 0, done.stderr
    assert {("average/once", "peaky"), ("full/plain", "peaky"), ("full/matmul", "normal")} <= set(ok)
    average = next(row for row in rows if row["case"]["variant"] == "average/once" and row["status"] == "ok")
    assert average["approximation_error"] == average["mean_of_v_error"] > 0.1


def test_the_variants_are_planned_and_run(installation: Path, tmp_path: Path) -> None:
    chosen = ("--variants", "average/once,full/matmul", "--tokens", "32", "--inputs", "normal", "--no-causal")
    words = (*chosen, "--seconds", "1", "--out", str(tmp_path / "results"), "--json")
    done = attnscape(installation, "run", *words)
    found = json.loads(done.stdout)["rows"]
    assert {row["case"]["variant"] for row in found} == {"average/once", "full/matmul"}, done.stderr
    assert [(row["status"], row["reason"]) for row in found] == [("ok", "")] * 2
    assert all(row["seconds"] and row["ratio"] for row in found)
    assert len({row["code"] for row in found}) == 2
    planned = json.loads(attnscape(installation, "run", *chosen, "--plan", "--json").stdout)
    assert [entry["case"]["variant"] for entry in planned] == ["average/once", "full/matmul"]


def test_a_change_in_another_package_changes_the_code_of_its_variants_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = VariantPackage("other", write({"new/one.py": "", "shared.py": ""}, tmp_path), "other 1.0")
    monkeypatch.setattr(catalogue, "installed_packages", lambda: [package])
    before = variant_codes("abc", ["new/one", "full/matmul"])
    assert before["full/matmul"] == "abc" != before["new/one"]
    assert variant_codes("abd", ["new/one"]) != variant_codes("abc", ["new/one"])
    write({"shared.py": "# changed"}, tmp_path)
    after = variant_codes("abc", ["new/one", "full/matmul"])
    assert after["full/matmul"] == "abc"
    assert after["new/one"] != before["new/one"]


def test_two_files_of_one_name_are_both_named(tmp_path: Path) -> None:
    described(write({"careless/__init__.py": "", "careless/full/matmul.py": ""}, tmp_path), "careless")
    done = attnscape(tmp_path, "list", "--names")
    assert (done.returncode, done.stdout) == (2, "")
    own, other = catalogue.ROOT / "full/matmul.py", tmp_path / "careless/full/matmul.py"
    assert done.stderr == f"attnscape: two variants are called 'full/matmul': {own} and {other}\n"
    assert "two variants are called" in attnscape(tmp_path, "check", "full").stderr


def test_a_file_that_is_at_fault_is_named_below_the_others(tmp_path: Path) -> None:
    faulty = FORM.format(name="average/late", body=MEAN).replace("**_: 0", "**_: -1")
    folder = {"careless/__init__.py": "", "careless/average/__init__.py": DEFINITION}
    files = {"once.py": FORM.format(name="average/once", body=MEAN), "broken.py": "def build(:", "late.py": faulty}
    described(write(folder | {f"careless/average/{name}": text for name, text in files.items()}, tmp_path), "careless")
    done = attnscape(tmp_path, "list", "--json")
    broken, late = done.stderr.splitlines()
    assert done.returncode == 2
    assert {item["name"] for item in json.loads(done.stdout)} == {*names(catalogue.ROOT), "average/once"}
    assert broken.startswith(f"attnscape: {tmp_path}/careless/average/broken.py: cannot be imported: SyntaxError")
    said = "workspace_bytes must return a whole number of at least 0, not -1"
    assert late == f"attnscape: {tmp_path}/careless/average/late.py: {said}"
    done = attnscape(tmp_path, "check", "average")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{broken}\n")


@pytest.mark.parametrize("value", ["absent", "absent.forms", "careless.absent", "careless:FORMS", "careless.module"])
def test_an_entry_point_that_names_no_package_is_an_error(tmp_path: Path, value: str) -> None:
    described(write({"careless/__init__.py": "", "careless/module.py": ""}, tmp_path), "careless", value)
    done = attnscape(tmp_path, "list", "--names")
    assert done.returncode == 2
    said = "careless 1.0: its entry point 'forms' in attnscape.variants must name an importable package, not "
    assert done.stderr == f"attnscape: {said}{value!r}\n"


def test_the_suite_of_asv_keeps_to_the_working_tree(installation: Path) -> None:
    code = "from benchmarks.attention import VARIANTS; print(*VARIANTS)"
    assert python(installation, "-c", code).stdout.split() == names(catalogue.ROOT)


def test_a_folder_is_found_without_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbidden = "raise AssertionError('imported')"
    write({"outer_forms/__init__.py": forbidden, "outer_forms/inner/__init__.py": forbidden}, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert package_folder("outer_forms.inner") == tmp_path / "outer_forms/inner"
    assert package_folder("outer_forms.inner.more") is None


def test_a_clash_between_two_packages_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = [VariantPackage(name, write({"new/one.py": ""}, tmp_path / name), name) for name in ("a", "b")]
    monkeypatch.setattr(catalogue, "installed_packages", lambda: packages)
    with pytest.raises(CatalogueError, match=r"two variants are called 'new/one': .*a/new/one\.py and .*b/new/one"):
        names()
    assert "new/one" not in names(catalogue.ROOT)


def test_own_variants_keep_the_code_of_the_checkout() -> None:
    assert installed.GROUP == "attnscape.variants"
    assert variant_codes("abc", ["full/matmul", "full/matmul"]) == {"full/matmul": "abc"}
