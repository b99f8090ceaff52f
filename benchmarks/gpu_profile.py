"""The profile of one of the project's kernels that a card's suite writes, to show that profiling works there too."""

from pathlib import Path
from typing import Any, Final

from benchmarks.campaign import InvalidRequest
from benchmarks.profile_session import Asked, cases_of, file_stem, profile_case
from benchmarks.workers import Workers
from variants import Problem

PROFILED: Final = "local_window/triton"
PROFILE_SECONDS: Final = 30.0
FOLDER: Final = "profiles"


def profile_own(
    problem: Problem, workers: Workers, machine: dict[str, Any], out: Path, threads: int, seconds: float
) -> str:
    """Profile the kernel on a problem into `out`, at most once; one line that tells the file, or why there is none."""
    (case,) = cases_of([PROFILED], problem, {})
    folder = out / FOLDER
    if (file := folder / f"{file_stem(case)}.json").exists():
        return f"Profile of {PROFILED}: {file}"
    if not seconds:
        return f"No profile of {PROFILED}: no time was left"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = profile_case(Asked(case, workers, seconds), machine, folder, threads, lambda *_: None)
        return f"Profile of {PROFILED}: {written}"
    except (InvalidRequest, OSError) as error:
        return f"No profile of {PROFILED}: {error}"
