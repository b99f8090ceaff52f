"""Where a page may be written: nowhere that anything else would be lost."""

from pathlib import Path
from typing import Final

from reports.records import Results, ResultsError

_MARK: Final = b'<meta name="generator" content="attnscape">'
_HEAD_BYTES: Final = 1024


def require_page(page: Path, results: Results, *, force: bool) -> None:
    """Raise `ResultsError` where the page would replace the results, a folder or, unless forced, another file."""
    if not page.exists():
        return
    if any(page.samefile(file) for file in results.files):
        raise ResultsError(f"{page} holds the results themselves")
    if page.is_dir():
        raise ResultsError(f"{page} is a folder; the page is one file, such as {page / 'report.html'}")
    if not (force or is_page(page)):
        raise ResultsError(f"{page} exists and is no page of attnscape; --force replaces it")


def is_page(path: Path) -> bool:
    """Whether a file is a page that was written here, so that writing it anew loses nothing."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _MARK in file.read(_HEAD_BYTES)
