"""The asv suite: its parameters, its lookups, and whose instrument and whose variants asv runs."""

import ast
import importlib.metadata
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from benchmarks import attention
from benchmarks.attention import EXPONENTS, VARIANTS, Cpu, Cuda, Point, Points, point_of
from benchmarks.measurement import Case, Measurement
from variants import Problem, catalogue

ROOT = Path(__file__).parent.parent
TRACKED = sorted(name for name in vars(Cpu.__mro__[1]) if name.startswith("track_"))
NAME = VARIANTS[0]


def asv_script() -> Path:
    """What asv starts its processes with."""
    spec = find_spec("asv")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "benchmark.py"


def configuration() -> dict[str, Any]:
    """asv.conf.json, which may hold lines of comment."""
    text = (ROOT / "asv.conf.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE))
    return found


def point(**fields: Any) -> Point:
    found = point_of(measured(**fields), 0.5)
    assert set(found) == set(Point.__annotations__)
    return found


def measured(**fields: Any) -> Measurement:
    case = Case.of(NAME, {}, Problem(tokens=2 ** EXPONENTS[0]), "normal")
    made: dict[str, Any] = {"key": "k", "run": "r", "machine": "m", "measured_at": "", "code": "c", "commit": ""}
    made |= {"dirty": False, "definition": "full", "exact": True, "case": case, "status": "ok"}
    figures: dict[str, Any] = {"wall_samples": [1, 2.0], "cpu_ratio": 2.0, "extra_bytes": 3, "total_bytes": 4}
    return Measurement(**made | figures | {"implementation_error": 1e-7} | fields)


def points(*statuses: str) -> Points:
    """What was measured of NAME on the CPU at the first lengths."""
    rows = (point(status=status, reason=f"is {status}") for status in statuses)
    return dict(zip([("cpu", NAME, exponent) for exponent in EXPONENTS], rows, strict=False))


def looked_up(benchmark: str, found: Points, exponent: int = EXPONENTS[0]) -> Any:
    """What asv would store of one benchmark: what its setup and its body say."""
    parameters = (NAME,) if benchmark == "track_lengths_not_running" else (NAME, exponent)
    suite = Cpu()
    try:
        suite.setup(found, *parameters)
    except NotImplementedError:
        return "n/a"
    return getattr(suite, benchmark)(found, *parameters)


# ---- parameters


def test_the_variants_are_the_files() -> None:
    assert sorted(catalogue.names(ROOT / "variants")) == VARIANTS


def test_both_devices_have_the_same_parameters() -> None:
    assert list(Cpu.params) == list(Cuda.params) == [VARIANTS, EXPONENTS]
    assert list(Cpu.param_names) == list(Cuda.param_names) == ["variant", "log2(length)"]


def test_asv_finds_these_benchmarks_and_no_helper(tmp_path: Path) -> None:
    command = [sys.executable, str(asv_script()), "discover", str(ROOT / "benchmarks"), str(tmp_path / "found.json")]
    subprocess.run(command, cwd=tmp_path, env={"ASV_PYTHONPATH": str(ROOT)}, check=True, timeout=100)
    found = {each["name"]: each for each in json.loads((tmp_path / "found.json").read_text("utf-8"))}
    assert set(found) == {f"attention.{device}.{name}" for device in ("Cpu", "Cuda") for name in TRACKED}
    assert {each["version"] for each in found.values()} == {"1"}
    assert all(each["timeout"] and each["unit"] != "unit" for each in found.values())
    assert len({each["setup_cache_key"] for each in found.values()}) == 1
    assert all(each["setup_cache_timeout"] > 3600 for each in found.values())
    for name, each in found.items():
        lists = each["params"]
        assert lists[0] == [repr(variant) for variant in VARIANTS]
        assert lists[1:] == ([] if "lengths" in name else [[str(exponent) for exponent in EXPONENTS]])


def test_importing_the_suite_imports_no_torch() -> None:
    code = "import sys, benchmarks.attention; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=60).returncode == 0


def test_variants_are_asked_for_by_name_or_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attention.variants_asked_for() == VARIANTS
    monkeypatch.setenv("ATTNSCAPE_ASV_VARIANTS", "full, local_window/tiled")
    assert attention.variants_asked_for() == ["full/matmul", "full/sdpa_math", "local_window/tiled"]
    monkeypatch.setenv("ATTNSCAPE_ASV_VARIANTS", "full,no_such")
    with pytest.raises(ValueError, match="no variant or folder no_such"):
        attention.variants_asked_for()


# ---- lookups


@pytest.mark.parametrize("benchmark", TRACKED)
def test_values_are_plain_floats(benchmark: str) -> None:
    value = looked_up(benchmark, points("ok"))
    if benchmark == "track_runtime":
        assert value == {"samples": [1.0, 2.0], "number": 1}
        assert {type(sample) for sample in value["samples"]} == {float}
    else:
        assert type(value) is float and math.isfinite(value)


@pytest.mark.parametrize("status", ["out_of_memory", "timeout", "wrong", "error"])
def test_a_failure_has_no_figure_and_is_counted(status: str, caplog: pytest.LogCaptureFixture) -> None:
    found = points("ok", status, status)
    for benchmark in TRACKED:
        value = looked_up(benchmark, found, EXPONENTS[1])
        assert value == 2.0 if benchmark == "track_lengths_not_running" else math.isnan(value)
        assert f"{NAME}: {status}: is {status}" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("benchmark", TRACKED)
def test_what_cannot_run_here_is_not_applicable(benchmark: str) -> None:
    assert looked_up(benchmark, points("unsupported", "unsupported")) == "n/a"
    assert looked_up(benchmark, {}) == "n/a"
    elsewhere: Points = {("cuda", NAME, EXPONENTS[0]): point(), ("cpu", "of/another", EXPONENTS[0]): point()}
    assert looked_up(benchmark, elsewhere) == "n/a"


def test_one_refused_length_does_not_hide_the_others() -> None:
    assert looked_up("track_lengths_not_running", points("unsupported", "ok", "error")) == 1.0
    assert looked_up("track_lengths_not_running", points("unsupported", "ok")) == 0.0


def test_a_figure_that_is_not_there_or_not_finite_is_nan() -> None:
    assert math.isnan(point(cpu_ratio=None)["ratio"])
    assert math.isnan(point(implementation_error=math.inf)["implementation_error"])
    assert math.isnan(looked_up("track_runtime", {("cpu", NAME, EXPONENTS[0]): point(wall_samples=[])}))


def test_the_ratio_is_of_cpu_time_on_a_cpu_and_of_device_time_on_a_card() -> None:
    on_card = Case.of(NAME, {}, Problem(tokens=8, device="cuda"), "normal")
    assert point(ratio=3.0, cpu_ratio=2.0)["ratio"] == 2.0
    assert point(ratio=3.0, cpu_ratio=2.0, case=on_card)["ratio"] == 3.0


def test_rounding_is_no_approximation_error() -> None:
    assert point_of(measured(), 4e-16)["approximation_error"] == 0.0
    assert point_of(measured(), 4e-6)["approximation_error"] == 4e-6


def test_measured_points_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["local_window/tiled", "memory_efficient/sdpa_flash"]
    monkeypatch.setenv("ATTNSCAPE_ASV_VARIANTS", ",".join(names))
    monkeypatch.setenv("ATTNSCAPE_ASV_SECONDS", "0")
    monkeypatch.setattr(attention, "EXPONENTS", [10])
    monkeypatch.setattr(attention, "DEVICES", attention.DEVICES[:1])
    found = Cpu().setup_cache()
    assert sorted(found) == [("cpu", name, 10) for name in names]
    window, exact = (found["cpu", name, 10] for name in names)
    assert (window["status"], exact["status"]) == ("ok", "ok")
    assert all(type(value) in (str, float, list) for value in (*window.values(), *exact.values()))
    assert len(window["wall_samples"]) >= 3
    assert all(type(sample) is float for sample in window["wall_samples"])
    assert 0 < window["ratio"] < math.inf
    assert exact["approximation_error"] == 0.0 < window["approximation_error"]


# ---- the working tree's instrument on the commit's variants

SCRIPT = """
import json, sys
if sys.argv[1:]:
    from asv_runner._aux import update_sys_path
    update_sys_path(sys.argv[1])
from benchmarks import attention, workers
from benchmarks.measurement import Case
import variants
case = Case.of("full/of_the_commit", {}, variants.Problem(tokens=8), "normal")
with workers.Workers() as started:
    worker = started.start()
    answer = worker.ask("prepare", (case, 1, False), 60)
    worker.end()
found = {"files": [attention.__file__, workers.__file__, variants.__file__], "variants": attention.VARIANTS}
print(json.dumps({**found, "answer": answer}))
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder as of an environment with an older commit: an instrument that is of no use, and one other variant."""
    shutil.copytree(ROOT / "variants", tmp_path / "variants", ignore=shutil.ignore_patterns("__pycache__"))
    text = (tmp_path / "variants/full/matmul.py").read_text("utf-8")
    assert '"full/matmul"' in text
    other = tmp_path / "variants/full/of_the_commit.py"
    other.write_text(text.replace('"full/matmul"', '"full/of_the_commit"'), "utf-8")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/__init__.py").write_text("raise ImportError('the instrument of the commit')\n", "utf-8")
    (tmp_path / "script.py").write_text(SCRIPT, "utf-8")
    return tmp_path


def run_in(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """With the working tree as the current directory, which must not matter."""
    command = [sys.executable, str(site / "script.py"), *arguments]
    environment = {**os.environ, "ASV_ENV_DIR": str(site)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=100)


def test_the_instrument_is_the_working_trees_and_the_variants_are_the_commits(site: Path) -> None:
    done = run_in(site, str(ROOT / "benchmarks"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [Path(file) for file in found["files"]] == [
        ROOT / "benchmarks/attention.py",
        ROOT / "benchmarks/workers.py",
        site / "variants/__init__.py",
    ]
    assert found["variants"] == VARIANTS
    assert found["answer"]["status"] == "ok", found["answer"]


def test_without_asvs_importer_the_commits_instrument_is_seen(site: Path) -> None:
    done = run_in(site)
    assert done.returncode == 1
    assert "the instrument of the commit" in done.stderr


def test_variants_from_elsewhere_are_refused_before_anything_is_filed(site: Path) -> None:
    command = [sys.executable, str(asv_script()), "discover", str(ROOT / "benchmarks"), str(site / "found.json")]
    environment = {"ASV_PYTHONPATH": str(site)}  # as `-E existing`, which tells nothing of itself
    done = subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert f"`variants` comes from {site / 'variants'} and not from this checkout" in done.stderr
    assert f"ASV_PYTHONPATH={ROOT}" in done.stderr


def test_variants_are_the_checkouts_or_those_of_asvs_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "lib/variants"
    monkeypatch.delenv("ASV_ENV_DIR", raising=False)
    assert attention.foreign_variants(ROOT / "variants") == ""
    assert "not from this checkout" in attention.foreign_variants(installed)
    monkeypatch.setenv("ASV_ENV_DIR", str(tmp_path))
    assert attention.foreign_variants(installed) == ""
    assert attention.foreign_variants(None) == ""  # a commit that has none: it fails by itself
    assert "unset ASV_PYTHONPATH" in attention.foreign_variants(ROOT / "variants")


# ---- asv's environments


def pinned(name: str) -> str:
    found = re.search(rf"^{re.escape(name)}==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert found, name
    return found[1]


def imported_at_once(path: Path) -> set[str]:
    """The modules that a module imports when it is imported itself."""
    names = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imported_sooner_or_later(path: Path) -> set[str]:
    """The same with what its functions import."""
    tree = ast.walk(ast.parse(path.read_text("utf-8")))
    return {node.module or "" for node in tree if isinstance(node, ast.ImportFrom)}


def needed_by_asv() -> set[str]:
    """Top-level names that are imported when asv's benchmarks run: by them, what they ask for, and every variant."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.glob("benchmarks/*.py")}
    modules |= {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / "variants").rglob("*.py")
    }
    variants = {name for name, path in modules.items() if path.parent.parent.name == "variants"}
    waiting = {"benchmarks.attention", "benchmarks.worker", "benchmarks.workers", *variants}
    waiting |= imported_sooner_or_later(modules["benchmarks.attention"])
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        if name in modules:
            waiting |= imported_at_once(modules[name]) - seen
    return {name.partition(".")[0] for name in seen if name not in modules and name}


def test_the_environments_hold_what_is_imported() -> None:
    requirements, wheel = configuration()["install_command"]
    assert "-c constraints.txt" in requirements and "--no-deps" in wheel
    installed = requirements.partition("-c constraints.txt")[2].split()
    foreign = needed_by_asv() - sys.stdlib_module_names - {"variants", "benchmarks"}
    assert {"torch", "msgspec"} <= foreign
    owners = importlib.metadata.packages_distributions()
    assert {str(canonicalize_name(owners[name][0])) for name in foreign} <= set(installed)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    known = {str(canonicalize_name(re.split(r"[<>=;\s]", line)[0])) for line in declared}
    assert set(installed) - {"asv_runner"} <= known


def test_torch_is_the_pinned_one() -> None:
    assert configuration()["matrix"] == {"req": {"torch": [pinned("torch")]}}
