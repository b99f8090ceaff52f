"""Which code was measured: a hash of the sources, and the commit where there is one."""

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

import benchmarks
import variants


@dataclass(frozen=True, slots=True)
class Provenance:
    """`code` identifies the sources whatever git says; `dirty` is whether the commit does not."""

    code: str
    commit: str
    dirty: bool


def read_provenance() -> Provenance:
    """Hash the imported packages' sources and ask git, where they lie in a checkout, for the commit."""
    digest = hashlib.sha256()
    roots = [Path(package.__path__[0]) for package in (variants, benchmarks)]
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            digest.update(str(path.relative_to(root.parent)).encode())
            digest.update(path.read_bytes())
    # Installed inside somebody else's checkout, the sources are not that repository's.
    known = _git(roots[0], "ls-files", "--error-unmatch", "__init__.py")
    commit = None if known is None else _git(roots[0], "rev-parse", "--verify", "--quiet", "HEAD")
    changed = _git(roots[0], "status", "--porcelain", "--", *(str(root) for root in roots))
    return Provenance(code=digest.hexdigest()[:16], commit=commit or "", dirty=commit is None or changed != "")


def _git(folder: Path, *arguments: str) -> str | None:
    """The command's output; None where there is no git, no repository or no commit."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
