"""Jobs on a Slurm cluster, through submitit."""

import math
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from benchmarks.executor import ExecutorError, Job, Lost, whole_option

DEFAULT_JOBS: Final = 4
POLL_SECONDS: Final = {"slurm": 5.0, "local": 0.1}


class SlurmExecutor:
    """Makes each call in a job of its own; what a job leaves on the disk stays only where it went wrong."""

    def __init__(self, options: dict[str, str], device: str, folder: Path) -> None:
        """Option `jobs` is how many run at once; `cluster=local` runs them as processes of this machine.

        All others are submitit's (`slurm_partition=gpu`). Raises `ExecutorError`.
        """
        try:
            import submitit
            from submitit.core.utils import UncompletedJobError
        except ModuleNotFoundError as error:
            raise ExecutorError("--executor slurm needs submitit: pip install 'attnscape[slurm]'") from error
        given = dict(options)
        cluster = given.pop("cluster", "slurm")
        if cluster not in POLL_SECONDS:
            raise ExecutorError(f"--executor-set cluster must be slurm or local, not {cluster!r}")
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise ExecutorError("no sbatch on this machine; --executor slurm is started where jobs are submitted")
        self.slots = whole_option("jobs", given.pop("jobs", "1" if cluster == "local" else str(DEFAULT_JOBS)))
        self._poll_seconds, self._is_local = POLL_SECONDS[cluster], cluster == "local"
        self._folder, self._unfinished = folder, UncompletedJobError
        had_parent = folder.parent.exists()
        self._executor: Any = submitit.AutoExecutor(folder, cluster=cluster)
        self._running: dict[Any, Job] = {}
        try:
            cards = {"gpus_per_node": 1} if device.startswith("cuda") else {}
            self._executor.update_parameters(**cards, **{name: _value(text) for name, text in given.items()})
        except (NameError, TypeError, ValueError, AssertionError) as error:
            with suppress(OSError):
                folder.rmdir()
                if not had_parent:
                    folder.parent.rmdir()
            told = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ExecutorError(f"--executor-set: submitit refuses {', '.join(sorted(given))}: {told[:200]}") from error

    def submit(self, job: Job) -> None:
        """Queue a job. Raises `ExecutorError`."""
        self._executor.update_parameters(timeout_min=math.ceil(job.limit_seconds / 60))
        try:
            self._running[self._executor.submit(job.function, *job.arguments)] = job
        except (OSError, RuntimeError) as error:
            raise ExecutorError(f"Slurm did not take a job: {' '.join(str(error).split())[:300]}") from error

    def wait(self) -> tuple[Job, Any]:
        """Any job that has ended, with its answer or `Lost`."""
        while True:
            for handle in self._running:
                if handle.done():
                    return self._running.pop(handle), self._answer(handle)
            time.sleep(self._poll_seconds)

    def close(self) -> None:
        """End what still runs, and leave the cluster."""
        for handle in self._running:
            handle.cancel(check=False)
        with suppress(OSError):  # what is left in it is of jobs that went wrong
            self._folder.rmdir()

    def _answer(self, handle: Any) -> Any:
        paths = handle.paths
        if self._is_local and not paths.result_pickle.exists():  # no file system to wait for
            return Lost(f"job {handle.job_id} ended without an answer")
        try:
            answer = handle.result()
        except (self._unfinished, RuntimeError) as error:
            # Below the job's own words submitit tells where its logs are.
            told = str(error).partition("You can check full logs")[0]
            lines = [line.strip() for line in told.splitlines() if line.strip(" -")]
            return Lost(f"job {handle.job_id}: {(lines or [type(error).__name__])[-1][:200]}")
        for path in (paths.submission_file, paths.result_pickle, paths.submitted_pickle, paths.stdout, paths.stderr):
            path.unlink(missing_ok=True)
        return answer


def _value(text: str) -> int | str:
    return int(text) if text.isdecimal() else text
