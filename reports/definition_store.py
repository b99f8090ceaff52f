"""What was computed of each definition, kept beside its page: a JSON file and a picture, and whether both hold."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from reports.definition_pages import definition_page, index_page, short_table
from reports.definition_picture import STYLE, picture_png

FOLDER: Final = "docs/variants"
"""Of a checkout."""


def stale_facts(root: Path, items: Iterable[Any]) -> list[Any]:
    """The definitions, given as `benchmarks.definition_facts.Described`, whose facts or picture do not hold."""
    return [item for item in items if not _holds(root, item)]


def read_facts(root: Path, name: str) -> dict[str, Any] | None:
    """The facts of a definition, or None where there are none that can be read."""
    try:
        facts = json.loads(facts_path(root, name).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def write_facts(root: Path, item: Any, facts: Mapping[str, Any], matrix: Any, exact: Any) -> list[Path]:
    """Draw the picture and write both files; the facts hold the picture's hash, so that neither changes alone."""
    png = picture_png(matrix, exact, facts["matrix"], item.title)
    kept = {**facts, "style": STYLE, "picture": hashlib.sha256(png).hexdigest()}
    picture, path = picture_path(root, item.name), facts_path(root, item.name)
    for one in (picture, path):
        one.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(png)
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return [path, picture]


def update_facts(
    root: Path,
    items: Iterable[Any],
    compute: Callable[[str], tuple[dict[str, Any], Any, Any]],
    show: Callable[[int, int, str], None],
) -> list[Path]:
    """Compute and write what does not hold, one definition after another; returns the files written.

    `compute(name)` gives the facts, the realised matrix and the exact one.
    """
    stale, written = stale_facts(root, items), list[Path]()
    for done, item in enumerate(stale):
        show(done, len(stale), item.name)
        written += write_facts(root, item, *compute(item.name))
    show(len(stale), len(stale), "")
    return written


def definition_pages(root: Path, items: Sequence[Any]) -> tuple[dict[str, str], str]:
    """Every page and the index, by path, of the definitions that have facts; and the table for a document elsewhere."""
    known = {item.name: facts for item in items if (facts := read_facts(root, item.name)) is not None}
    shown = [item for item in items if item.name in known]
    pages = {f"{FOLDER}/{item.name}.md": definition_page(item, known[item.name]) for item in shown}
    pages[f"{FOLDER}/README.md"] = index_page(shown, known)
    return pages, short_table(shown, known, FOLDER)


def facts_path(root: Path, name: str) -> Path:
    """Where the facts of a definition lie."""
    return root / FOLDER / "data" / f"{name}.json"


def orphans(root: Path, items: Iterable[Any]) -> list[Path]:
    """Files of definitions that are no more."""
    names = {item.name for item in items}
    folder = root / FOLDER
    found = [*folder.glob("*.md"), *folder.glob("data/*.json"), *folder.glob("pictures/*.png")]
    return sorted(path for path in found if path.stem not in names and path.name != "README.md")


def picture_path(root: Path, name: str) -> Path:
    """Where the picture of a definition lies."""
    return root / FOLDER / "pictures" / f"{name}.png"


def _holds(root: Path, item: Any) -> bool:
    facts, picture = read_facts(root, item.name), picture_path(root, item.name)
    if facts is None or not picture.is_file():
        return False
    told = (facts.get("fingerprint"), facts.get("style"), facts.get("picture"))
    return told == (item.fingerprint, STYLE, hashlib.sha256(picture.read_bytes()).hexdigest())
