"""The generated parts of a checkout's documents: written by a command, compared by a test."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

END: Final = "<!-- end -->"


class DocumentsError(ValueError):
    """No checkout, or a document without the place for its generated part."""


def write_documents(
    folder: Path,
    parts: Mapping[tuple[str, str], str],
    command_helps: Mapping[str, str],
    pages: Mapping[str, str],
    *,
    only_check: bool,
) -> list[Path]:
    """Bring parts of documents, the page of commands and other pages up to date; returns the files that were not.

    Parts by their document and name, pages by their path from the folder. Raises `DocumentsError`. With
    `only_check` nothing is written.
    """
    wanted: dict[Path, str] = {}
    for (document, name), content in parts.items():
        path = folder / document
        if not path.is_file():
            raise DocumentsError(f"no {document} in {folder}: the documents belong to a checkout")
        wanted[path] = _with_part(wanted.get(path) or path.read_text(encoding="utf-8"), name, content, path)
    wanted[folder / "docs" / "commands.md"] = _commands_page(command_helps)
    wanted |= {folder / path: text for path, text in pages.items()}
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if not only_check:
        for path in stale:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path], encoding="utf-8")
    return stale


def begin_mark(name: str) -> str:
    """The line after which a generated part stands."""
    return f"<!-- begin {name}: written by `attnscape docs` -->"


def _with_part(text: str, name: str, content: str, path: Path) -> str:
    before, begin, rest = text.partition(begin_mark(name))
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DocumentsError(f"{path} must hold the lines {begin_mark(name)} and {END}")
    return f"{before}{begin}\n{content.rstrip()}\n{end}{after}"


def _commands_page(helps: Mapping[str, str]) -> str:
    parts = ["# Commands\n\nWritten by `attnscape docs` from the commands' own help.\n"]
    parts += [f"## attnscape {name}\n\n```text\n{text.strip()}\n```\n" for name, text in helps.items()]
    return "\n".join(parts)
