"""What a page embeds: its style, its scripts and their checksums, and JSON that no string can leave."""

import base64
import hashlib
from pathlib import Path
from typing import Any, Final

import msgspec

ASSETS: Final = Path(__file__).parent / "page_assets"

SCRIPTS: Final = ("d3.min.js", "plot.umd.min.js", "rule.js", "charts.js", "page.js")
"""In the order in which they run."""

_ESCAPES: Final = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def style() -> str:
    """The style sheet."""
    return (ASSETS / "page.css").read_text("utf-8")


def scripts() -> list[str]:
    """The text of each script."""
    return [(ASSETS / name).read_text("utf-8") for name in SCRIPTS]


def policy(texts: list[str]) -> str:
    """The content security policy under which nothing but these scripts runs and nothing is loaded."""
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {allowed}; "
        "base-uri 'none'; form-action 'none'"
    )


def embedded(data: Any) -> str:
    """Data as JSON for a script element: no character in it can end the element or begin a comment."""
    text = msgspec.json.encode(data).decode()
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text
