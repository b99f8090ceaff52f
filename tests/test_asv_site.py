"""asv's pages work offline after `python -m reports.asv_site`: on a copy of the real pages of the installed asv."""

import base64
import hashlib
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from reports import asv_site

README = asv_site.ASSETS / "README.md"


def asv_pages() -> Path:
    """The pages that `asv publish` copies; asv itself is not imported."""
    spec = find_spec("asv")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "www"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "html"
    shutil.copytree(asv_pages(), folder)
    (folder / "index.json").write_text("{}")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(page: Path, old: str, new: str) -> None:
    text = page.read_text("utf-8")
    assert old in text
    page.write_text(text.replace(old, new), "utf-8")


def integrity_by_ending() -> dict[str, str]:
    """The checksum that asv's page asks for, by the ending of the link."""
    tags = re.findall(r"<(?:script|link)[^>]*integrity[^>]*>", (asv_pages() / "index.html").read_text("utf-8"))
    return {end: tag.split('integrity="')[1].split('"')[0] for tag in tags for end in asv_site.VENDORED if end in tag}


def satisfies(content: bytes, integrity: str) -> bool:
    kind, _, wanted = integrity.partition("-")
    return base64.b64encode(hashlib.new(kind, content).digest()).decode() == wanted


def table_rows(text: str) -> dict[str, list[str]]:
    """The README's table: by file, its other columns."""
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:3] == "| `"
    ]
    return {row[0]: row[1:] for row in rows}


def wrong_checksums(text: str) -> list[str]:
    """Files whose checksum differs from the README's, or that only one of README and folder has."""
    stated = {file: columns[-1] for file, columns in table_rows(text).items()}
    found = {
        path.relative_to(asv_site.ASSETS).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in asv_site.ASSETS.rglob("*.*")
        if path.suffix not in (".md", ".txt")
    }
    return sorted({file for file, _ in stated.items() ^ found.items()})


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    before = (site / "index.html").read_text("utf-8")
    assert len(asv_site.remote_links(before)) == len(asv_site.VENDORED)
    assert asv_site.main([str(site)]) == 0
    after = (site / "index.html").read_text("utf-8")
    assert asv_site.remote_links(after) == []
    assert "integrity" not in after
    assert after.count("js_load_failure()") == before.count("js_load_failure()")


def test_everything_that_is_loaded_lies_in_the_site(site: Path) -> None:
    made_by_publish = {"regressions.xml"}
    asv_site.make_offline(site)
    links = asv_site.local_links((site / "index.html").read_text("utf-8"))
    assert {link for link in links if not (site / link).is_file()} == made_by_publish


def test_scripts_keep_their_order(site: Path) -> None:
    asv_site.make_offline(site)
    text = (site / "index.html").read_text("utf-8")
    places = [text.index(f"vendor/{file}") for file in asv_site.VENDORED.values()]
    assert places == sorted(places)


def test_twice_is_once(site: Path) -> None:
    asv_site.make_offline(site)
    once = contents(site)
    asv_site.make_offline(site)
    assert contents(site) == once


def test_error_page_stays(site: Path) -> None:
    asv_site.make_offline(site)
    assert (site / "error.html").read_bytes() == (asv_pages() / "error.html").read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("jquery-3.3.1.min.js", "jquery-3.7.1.min.js", "no link ends in /jquery-3.3.1.min.js"),
        ("<head>", '<head><script src="https://example.org/new.js"></script>', "https://example.org/new.js"),
        ("<head>", '<head><link rel="stylesheet" href="//example.org/new.css">', "//example.org/new.css"),
        ("<body>", '<body><img src="HTTP://example.org/a.png">', "HTTP://example.org/a.png"),
    ],
)
def test_a_changed_page_is_refused_and_left_alone(
    site: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    edit(site / "index.html", old, new)
    before = contents(site)
    assert asv_site.main([str(site)]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
    assert contents(site) == before


def test_a_remote_script_in_another_page_is_refused(site: Path) -> None:
    edit(site / "error.html", "<body>", '<body><script src="https://example.org/x.js"></script>')
    with pytest.raises(asv_site.SiteError, match=r"error\.html would still load"):
        asv_site.make_offline(site)


def test_a_folder_that_is_no_site_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert asv_site.main([str(tmp_path)]) == 2
    assert asv_site.main([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("is not a site") == 2


def test_links_to_follow_may_be_remote() -> None:
    assert asv_site.remote_links('<a href="https://example.org">x</a>') == []


def test_files_are_those_that_asv_asks_for() -> None:
    rows = table_rows(README.read_text("utf-8"))
    asked = integrity_by_ending()
    assert asked.keys() == asv_site.VENDORED.keys()
    for end, integrity in asked.items():
        file = asv_site.VENDORED[end]
        same = satisfies((asv_site.ASSETS / file).read_bytes(), integrity)
        assert same == (rows[file][3] == "identical"), file
    assert not satisfies(b"another file", asked["/jquery-3.3.1.min.js"])


def test_readme_states_every_checksum_and_licence() -> None:
    text = README.read_text("utf-8")
    assert wrong_checksums(text) == []
    first = next(iter(table_rows(text).values()))[-1]
    assert wrong_checksums(text.replace(first, "0" * 64)) == ["js/jquery.min.js"]
    for licence in re.findall(r"`(licences/[^`]+\.txt)`", text):
        assert "Permission is hereby granted" in (asv_site.ASSETS / licence).read_text("utf-8")


def test_stylesheets_load_nothing_from_elsewhere() -> None:
    text = (asv_site.ASSETS / "css/bootstrap.min.css").read_text("utf-8")
    text += "".join(page.read_text("utf-8") for page in asv_pages().glob("*.css"))
    assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", text) == []


def test_starts_without_torch() -> None:
    code = "import sys, reports.asv_site; sys.exit('torch' in sys.modules or 'asv' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
