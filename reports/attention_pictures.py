"""Pictures of attention on a real head, exact and approximate: those that lie beside the code, as data for a page."""

import base64
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reports.page_scripts import ASSETS

FOLDERS: Final = (ASSETS / "attention", Path(__file__).parent.parent / "docs" / "variants" / "pictures")
"""In an installed package, and in a checkout: one PNG for each definition, by its name."""

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class AttentionPicture:
    """One definition's picture as a data URI: exact attention, its own, and their difference side by side."""

    family: str
    width: int
    height: int
    source: str


def attention_pictures(families: Iterable[str], room: int, folders: Iterable[Path] = FOLDERS) -> list[AttentionPicture]:
    """The pictures of the given definitions, by name, as long as there is room for their data, in characters."""
    folder = next((one for one in folders if one.is_dir()), None)
    if folder is None:
        return []
    known = {path.stem: path for path in folder.glob("*.png")}
    made = []
    for family in sorted(set(families) & set(known)):
        content = known[family].read_bytes()
        picture = _picture(family, content) if content.startswith(_SIGNATURE) else None
        if picture is not None and len(picture.source) <= room:
            made.append(picture)
            room -= len(picture.source)
    return made


def _picture(family: str, content: bytes) -> AttentionPicture:
    width, height = struct.unpack(">II", content[16:24])
    return AttentionPicture(family, width, height, f"data:image/png;base64,{base64.b64encode(content).decode()}")
