"""Make the site that `asv publish` wrote work offline: `python -m reports.asv_site DIR`.

asv's pages load their JavaScript and one stylesheet from content networks. The same files lie in
`reports/asv_assets` (its README names each one's package, version, licence and checksum); they are
copied to DIR/vendor and the links point there.
"""

import argparse
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

ASSETS: Final = Path(__file__).parent / "asv_assets"
VENDOR: Final = "vendor"

VENDORED: Final = {
    "/jquery-3.3.1.min.js": "js/jquery.min.js",
    "/flot/0.8.3/jquery.flot.min.js": "js/jquery.flot.js",
    "/flot/0.8.3/jquery.flot.time.min.js": "js/jquery.flot.time.js",
    "/flot/0.8.3/jquery.flot.selection.min.js": "js/jquery.flot.selection.js",
    "/flot/0.8.3/jquery.flot.categories.min.js": "js/jquery.flot.categories.js",
    "/flot-orderbars@1.0.0/js/jquery.flot.orderBars.js": "js/jquery.flot.orderBars.js",
    "/stupidtable/1.0.1/stupidtable.min.js": "js/stupidtable.min.js",
    "/blueimp-md5/2.19.0/js/md5.min.js": "js/md5.min.js",
    "/bootstrap@3.1.1/dist/js/bootstrap.min.js": "js/bootstrap.min.js",
    "/bootstrap@3.1.1/dist/css/bootstrap.min.css": "css/bootstrap.min.css",
}
"""How a link of asv's page ends, version included, and the file in `asv_assets` that takes its place."""

_TAG: Final = re.compile(r"<(?:script|link)\b[^>]*>", re.IGNORECASE)
_LINK: Final = re.compile(r"""\b(src|href)=(["'])((?:https?:)?//[^"']+)\2""", re.IGNORECASE)
_NETWORK_ONLY: Final = re.compile(r"""\s+(?:integrity|crossorigin|referrerpolicy)=(["'])[^"']*\1""", re.IGNORECASE)


class SiteError(ValueError):
    """The folder is no published site, or its pages are not those of the asv that this module knows."""


def make_offline(site: Path) -> None:
    """Copy the assets to `site`/vendor and point every page's links there; a second call changes nothing.

    Raises `SiteError`, before anything is written, where `site` is no published site, where a link
    that asv's page should hold is missing, or where a page would still load something from elsewhere.
    """
    if not all((site / name).is_file() for name in ("index.html", "index.json")):
        raise SiteError(f"{site} is not a site that `asv publish` wrote: it lacks index.html or index.json")
    pages = {page: rewritten(page.read_text("utf-8")) for page in sorted(site.glob("*.html"))}
    linked = local_links(pages[site / "index.html"])
    if missing := [end for end, file in VENDORED.items() if f"{VENDOR}/{file}" not in linked]:
        raise SiteError(f"asv's index.html has changed: no link ends in {', '.join(missing)}")
    for page, text in pages.items():
        if remote := remote_links(text):
            raise SiteError(f"{page.name} would still load {', '.join(remote)}")
    shutil.copytree(ASSETS, site / VENDOR, dirs_exist_ok=True)
    for page, text in pages.items():
        page.write_text(text, "utf-8")


def rewritten(text: str) -> str:
    """The page with every link that `VENDORED` knows made local; all else stays as it is."""
    return _TAG.sub(lambda tag: _rewritten_tag(tag[0]), text)


def local_links(text: str) -> set[str]:
    """What the page loads from its own site."""
    return {link for link in _loaded(text) if not _is_remote(link)}


def remote_links(text: str) -> list[str]:
    """What the page loads from elsewhere: scripts, stylesheets, images, frames; not links to follow."""
    return [link for link in _loaded(text) if _is_remote(link)]


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0 where the site works offline, 2 and one line on stderr where it cannot."""
    parser = argparse.ArgumentParser(prog="python -m reports.asv_site", description="Make asv's pages work offline.")
    parser.add_argument("site", type=Path, metavar="DIR", help="the folder that `asv publish` wrote, such as .asv/html")
    site = parser.parse_args(arguments).site
    try:
        make_offline(site)
    except (SiteError, OSError) as fault:
        print(f"asv_site: {fault}", file=sys.stderr)
        return 2
    print(f"{site}: works offline; serve it with `python -m http.server --directory {site}`")
    return 0


def _rewritten_tag(tag: str) -> str:
    link = _LINK.search(tag)
    file = next((file for end, file in VENDORED.items() if link and link[3].endswith(end)), None)
    if link is None or file is None:
        return tag
    return _NETWORK_ONLY.sub("", tag.replace(link[0], f'{link[1]}="{VENDOR}/{file}"'))


def _loaded(text: str) -> list[str]:
    page = _Loads()
    page.feed(text)
    page.close()
    return page.links


def _is_remote(link: str) -> bool:
    return re.match(r"\s*(?:[a-z][a-z0-9+.-]*:)?//", link, re.IGNORECASE) is not None


class _Loads(HTMLParser):
    """Collects what a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        loaded = named.get("href") if tag == "link" else named.get("src")
        if loaded:
            self.links.append(loaded)


if __name__ == "__main__":
    sys.exit(main())
