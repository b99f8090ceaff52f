"""asv flags what was planted in a scratch history of this project, on the right variant, and nothing else.

Each commit of the history appends to a file what `dataclasses.replace` can do to a declaration, so that the planting
does not depend on how a variant is written. One commit is planted for each fault, and it lasts: asv needs no second
commit to see a lasting step.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from reports.asv_results import read_commits

ROOT = Path(__file__).parent.parent
LONGEST = 12
SECONDS = 24


class Commit(NamedTuple):
    """What a commit appends to a file of the one before, and what asv is to say of it."""

    title: str
    file: str
    appended: str
    flagged: tuple[str, ...] = ()
    touched: str = ""


SLOWER = """
from dataclasses import replace as _replace
_build = VARIANT.build

def _half_again(problem, **parameters):
    run = _build(problem, **parameters)
    half = problem.with_(heads=problem.heads // 2, kv_heads=problem.kv_heads // 2)
    more = _build(half, **parameters)

    def run_and_more(q, k, v):
        more(*(x[:, : x.shape[1] // 2] for x in (q, k, v)))
        return run(q, k, v)

    return run_and_more

VARIANT = _replace(VARIANT, build=_half_again)
"""
LARGER = """
from dataclasses import replace as _replace
_build = VARIANT.build
_workspace = VARIANT.workspace_bytes

def _twice(problem, **parameters):
    run = _build(problem, **parameters)

    def run_beside(q, k, v):
        beside = torch.empty(_workspace(problem, **parameters), dtype=torch.uint8, device=q.device)
        out = run(q, k, v)
        del beside
        return out

    return run_beside

VARIANT = _replace(VARIANT, build=_twice)
"""
COARSER = """
from dataclasses import replace as _replace
DEFINITION = _replace(
    DEFINITION, parameters=tuple(_replace(p, default=1) if p.name == "rank" else p for p in DEFINITION.parameters)
)
"""
UNFIT = f"""
from dataclasses import replace as _replace
_workspace = VARIANT.workspace_bytes
VARIANT = _replace(
    VARIANT,
    workspace_bytes=lambda problem, **parameters: (
        2**60 if problem.tokens >= {2**LONGEST} else _workspace(problem, **parameters)
    ),
)
"""
HISTORY = (
    Commit("clean base", "README.md", "\n"),
    # In the wheel of this commit the instrument is broken: that it is measured shows that the working tree's runs.
    Commit("clean, but for its own instrument", "benchmarks/sweep.py", "\nraise ImportError('of the commit')\n"),
    Commit(
        "half again as slow",
        "variants/local_window/tiled.py",
        SLOWER,
        flagged=(f"track_ratio('local_window/tiled', {LONGEST})", "track_ratio('local_window/tiled', 10)"),
        touched="local_window/tiled",
    ),
    Commit(
        "more than twice the memory",
        "variants/memory_efficient/chunked.py",
        LARGER,
        flagged=(f"track_peak_memory('memory_efficient/chunked', {LONGEST})",),
        touched="memory_efficient/chunked",
    ),
    Commit(
        "a lower rank",
        "variants/blockwise_low_rank/__init__.py",
        COARSER,
        flagged=(f"track_approximation_error('blockwise_low_rank/merged', {LONGEST})",),
        touched="blockwise_low_rank/merged",
    ),
    Commit(
        "a length that no longer fits",
        "variants/linear_scan/chunked.py",
        UNFIT,
        flagged=("track_lengths_not_running('linear_scan/chunked')",),
        touched="linear_scan/chunked",
    ),
    Commit("clean tip", "README.md", "\n"),
)
VARIANTS = (*sorted(commit.touched for commit in HISTORY if commit.touched), "memory_efficient/sdpa_flash")


class Repository:
    """A scratch repository with the project's files, and asv run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commits: dict[str, Commit] = {}
        home = Path.home()
        self.environment = {
            **os.environ,
            "HOME": str(folder.parent),  # asv writes its machine file there; pip keeps its settings and cache
            "XDG_CONFIG_HOME": os.environ.get("XDG_CONFIG_HOME", str(home / ".config")),
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(home / ".cache")),
            "ATTNSCAPE_ASV_SECONDS": str(SECONDS),
            "ATTNSCAPE_ASV_VARIANTS": ",".join(VARIANTS),
            **{f"GIT_{who}_{what}": "scratch" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }
        folder.mkdir()
        for name in ("variants", "benchmarks", "reports"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("attnscape.py", "pyproject.toml", "asv.conf.json", "constraints.txt", "LICENSE", ".gitignore"):
            shutil.copy(ROOT / name, folder)
        (folder / "README.md").write_text("# scratch\n", "utf-8")
        self.run("git", "init", "--quiet", "--initial-branch", "main")

    def run(self, *command: str, **more: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            check=False,
            timeout=1500,
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def asv(self, *arguments: str) -> str:
        return self.run(sys.executable, "-m", "asv", *arguments)

    def commit(self, commit: Commit, hour: int) -> None:
        """Append what the commit says; what the one before did to the instrument is undone."""
        shutil.copy(ROOT / "benchmarks/sweep.py", self.folder / "benchmarks")
        with (self.folder / commit.file).open("a", encoding="utf-8") as file:
            file.write(commit.appended)
        date = f"2026-01-01T{hour:02}:00:00Z"
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", commit.title, GIT_AUTHOR_DATE=date, GIT_COMMITTER_DATE=date)
        self.commits[self.run("git", "rev-parse", "HEAD").strip()] = commit


def regressions(html: Path) -> dict[str, set[str]]:
    """By benchmark with its parameters, the commits that asv says made it worse."""
    hashes = json.loads((html / "index.json").read_text("utf-8"))["revision_to_hash"]
    found: list[Any] = json.loads((html / "regressions.json").read_text("utf-8"))["regressions"]
    return {name.removeprefix("attention.Cpu."): {hashes[str(jump[1])] for jump in jumps} for name, *_, jumps in found}


@pytest.mark.slow
def test_without_a_card_the_checkout_as_it_is_has_no_figure_of_cuda(tmp_path: Path) -> None:
    name = "memory_efficient/flash_attn_2"  # nothing to measure on the processor either
    repository = Repository(tmp_path / "repository")
    repository.commit(HISTORY[0], 0)
    repository.environment |= {
        "ASV_PYTHONPATH": str(repository.folder),
        "ATTNSCAPE_ASV_VARIANTS": name,
        "CUDA_VISIBLE_DEVICES": "",
    }
    repository.asv("machine", "--yes")
    # A failure would end it with 2.
    repository.asv("run", "-E", "existing", "--set-commit-hash", "main", "--bench", rf"Cuda\..*\('{name}'")
    (file,) = (repository.folder / ".asv/results").glob("*/*-existing-*.json")
    results = json.loads(file.read_bytes())["results"]
    assert {benchmark.partition(".track_")[0] for benchmark in results} == {"attention.Cuda"}
    assert all(math.isnan(value) for values, *_ in results.values() for value in values if value is not None)
    (commit,) = read_commits(repository.folder / ".asv/results")
    assert commit.figures == {}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_was_planted_is_flagged_and_nothing_else(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    for hour, commit in enumerate(HISTORY):
        repository.commit(commit, hour)
    repository.asv("machine", "--yes")
    python = f"virtualenv:{sys.version_info.major}.{sys.version_info.minor}"
    selected = rf"Cpu\..*\('({'|'.join(VARIANTS)})'"
    repository.asv("run", "-E", python, "--bench", selected, "ALL")
    repository.asv("publish")
    titles = {hash_: commit.title for hash_, commit in repository.commits.items()}
    found = regressions(repository.folder / ".asv/html")
    said = {name: sorted(titles[each] for each in hashes) for name, hashes in found.items()}
    for commit in HISTORY:
        for name in commit.flagged:
            assert said.get(name) == [commit.title], f"{name}, of {said}"
    for name, named in said.items():
        assert named == [commit.title for commit in HISTORY if commit.touched and f"'{commit.touched}'" in name], name
