"""The site of the documentation: every page is there, and every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from checkpoints import ROOT

from refl.lessons.lesson import lessons
from refl.verification.quality import documentation
from refl.verification.quality.documentation import Page, build, dead

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without the API reference."""
    out = tmp_path_factory.mktemp("site")
    build(out, api=False)
    return out


def test_every_link_leads_somewhere(site: Path) -> None:
    assert list(dead(site)) == []


def test_every_page_is_in_the_contents(site: Path) -> None:
    front = (site / "index.html").read_text(encoding="utf-8")
    wanted = [f"refl/lessons/{one.name}.html" for one in lessons()]
    for folder in ("refl/guide", "verification/reports"):
        wanted += [f"{folder}/{path.stem}.html" for path in (ROOT / folder).glob("*.md")]
    assert len(wanted) > 30
    assert [page for page in wanted if f'<li><a href="{page}"' not in front] == []
    assert 'href="walk.html"' in front and (site / "walk.html").stat().st_size < 8e6


def test_nothing_comes_from_a_network(site: Path) -> None:
    """No page loads anything, and none runs a script but the walk."""
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r'(?:src|<link[^>]* href)="(?:https?:)?//', text), path
        assert "<script" not in text or path.name == "walk.html"
    assert "url(" not in (site / "site.css").read_text(encoding="utf-8")


def test_pages_and_sources_are_as_they_are(site: Path) -> None:
    """A picture is copied, a file of code has its lines, what a lesson folds away stays folded."""
    keys = "refl/guide/pictures/keys.svg"
    assert (site / keys).read_bytes() == (ROOT / keys).read_bytes()
    source = (site / "rules" / "linear.py.html").read_text(encoding="utf-8")
    lines = (ROOT / "rules" / "linear.py").read_text(encoding="utf-8").count("\n")
    assert f'"L{lines}"' in source and f'"L{lines + 1}"' not in source
    lesson = (site / "refl" / "lessons" / "01_a_share_of_z.html").read_text(encoding="utf-8")
    assert "<details>" in lesson and 'class="gp"' in lesson and "&gt;&gt;&gt;" in lesson


def test_where_links_lead(tmp_path: Path) -> None:
    pages = [Page("README.md", "refl"), Page("refl/guide/speed.md", "How fast")]
    site = documentation.Site(ROOT, tmp_path, {"": pages})
    for source, link, leads in (
        ("README.md", "refl/guide/speed.md", "refl/guide/speed.html"),
        ("refl/guide/speed.md", "../../README.md#in-python", "../../index.html#in-python"),
        ("refl/guide/speed.md", "../sweep.py", "../sweep.py.html"),
        ("refl/guide/speed.md", "pictures/keys.svg", "pictures/keys.svg"),
        ("refl/guide/speed.md", "https://example.org/a.md", "https://example.org/a.md"),
        ("refl/guide/speed.md", "#how-fast", "#how-fast"),
    ):
        assert site.address(source, link) == leads
    assert site.files == {"refl/sweep.py", "refl/guide/pictures/keys.svg"}


def test_headings_have_the_names_of_code_hosts() -> None:
    used: dict[str, int] = {}
    named = [documentation._slug(text, used) for text in ("`refl` in *Python*: a, b", "A", "A")]
    assert named == ["refl-in-python-a-b", "a", "a-1"]


def test_dead_links_are_found(tmp_path: Path) -> None:
    """Of a file, of a place in one, of a picture; not those to other sites."""
    links = "".join(f'<a href="{to}">x</a>' for to in ("b.html", "#c", "#d", "https://a.b/c"))
    (tmp_path / "a.html").write_text(f'<p id="c">{links}<img alt="" src="e.svg"></p>')
    assert list(dead(tmp_path)) == ["a.html: b.html", "a.html: #d", "a.html: e.svg"]


def test_a_folder_with_something_else_stays(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="something else"):
        build(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.needs("pdoc")
def test_the_whole_site(tmp_path: Path, capsys: Capture) -> None:
    """With the API reference, dark where the rest is, and back to the front page."""
    assert documentation.main([str(tmp_path / "site")]) == 0
    assert "every link leads somewhere" in capsys.readouterr().out
    page = tmp_path / "site" / "api" / "refl" / "rules" / "linear.html"
    text = page.read_text(encoding="utf-8")
    back = re.search(r'class="refl-site" href="([^"]*)"', text)
    assert back and (page.parent / back[1]).resolve() == tmp_path / "site" / "index.html"
    assert re.search(r"prefers-color-scheme:\s*dark", text) and "#16181c" in text
    assert not (tmp_path / "site" / "templates").exists()
