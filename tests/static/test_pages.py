"""Check that the pages show files and drawings as they are."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
DRAWINGS = list(ROOT.glob("docs/**/*.svg"))
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("file", "language"), [("applet.py", "python"), ("applet.js", "javascript")]
)
def test_the_examples_are_in_the_page_as_they_are(file: str, language: str) -> None:
    example = (ROOT / "docs/examples" / file).read_text()
    page = (ROOT / "docs/applets.md").read_text()
    assert f"(examples/{file})" in page
    assert f"\n```{language}\n{example}```\n" in page


def test_links_lead_to_files() -> None:
    """All pages together, because not every page has a link."""
    links = [
        page.parent / target
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    ]
    assert ROOT / "docs/reliability.md" in links
    assert [link for link in links if not link.exists()] == []


def test_the_way_through_the_code_names_files() -> None:
    """README's section on how it is built; its paths begin at the top or in the package."""
    section = (ROOT / "README.md").read_text().partition("## How it is built")[2]
    paths = re.findall(r"`((?:[\w.-]+/)+(?:[\w.-]+)?)`", section.partition("\n## ")[0])
    assert "tunnel/tunnel.py" in paths
    bases = (ROOT, ROOT / "wg4netnsd")
    assert [path for path in paths if not any((base / path).exists() for base in bases)] == []


def test_each_promise_has_its_test() -> None:
    """Each line of a table of docs/security.md names one that exists."""
    page = (ROOT / "docs/security.md").read_text()
    rows = [row for row in page.splitlines() if re.match(r"\| (?!promise )", row)]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row.rpartition(" | ")[2])
        assert named, row
        for path, test in named:
            assert f"\ndef {test}(" in (ROOT / "tests" / path).read_text(), f"{path}::{test}"
        for path in re.findall(r"`([\w/-]+\.go)`", row):
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize("drawing", DRAWINGS, ids=lambda drawing: drawing.name)
def test_a_drawing_is_for_those_too_who_do_not_see_it(drawing: Path) -> None:
    root = ElementTree.parse(drawing).getroot()
    assert root.tag == f"{SVG}svg"
    assert root.findtext(f"{SVG}title")
    assert root.findtext(f"{SVG}desc")


@pytest.mark.parametrize("drawing", DRAWINGS, ids=lambda drawing: drawing.name)
def test_a_drawing_needs_nothing_from_elsewhere(drawing: Path) -> None:
    text = re.sub(r'xmlns(:xlink)?="[^"]*"', "", drawing.read_text())
    assert not re.search(r"https?:|url\((?!#)|@import|<script", text)
