"""Links from a page to the pages that `asv publish` wrote."""

import re
from typing import Final
from urllib.parse import urlsplit

from reports.records import ResultsError

_PLACES: Final = (
    ("every benchmark over the commits", "index.html"),
    ("all benchmarks as a list", "index.html#/summarylist"),
    ("regressions", "index.html#/regressions"),
)


def asv_links(address: str) -> list[tuple[str, str]]:
    """Texts and targets; the address is that of asv's folder, on the web or relative to the page.

    Raises `ResultsError`.
    """
    parts = urlsplit(address)
    on_web = parts.scheme in ("http", "https") and parts.netloc
    relative = not parts.scheme and not parts.netloc and parts.path
    if not (on_web or relative) or parts.query or parts.fragment or re.search(r"[\s\\<>\"']", address):
        raise ResultsError(f"--asv takes the address of asv's pages, such as https://example.org/asv/, not {address!r}")
    folder = address.removesuffix("index.html").rstrip("/")
    return [(text, f"{folder}/{place}") for text, place in _PLACES]
