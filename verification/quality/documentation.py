"""The documentation as a static site: README, guide, lessons, a walk, reports, sources, and the API
reference. It needs no network and no server (the extra `docs`):

    python -m refl.verification.quality.documentation [FOLDER]     (default: build/site)
    python -m refl.verification.quality.documentation FOLDER --no-api    without the API reference

A page stands where its Markdown stands, so that a link works on a code host and here: to a page it
leads to that page, to a file of the repository to a page with its lines. Exit status 1 where a link
leads nowhere.
"""

from __future__ import annotations

import argparse
import html
import os
import posixpath
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from refl.verification.quality.import_graph import PROJECT

STYLE = Path(__file__).with_name("documentation.css")
FRONT, API, WALK = "README.md", "api/refl.html", "walk.html"
TEXT = "the keys to the cabinet"
PICTURES = (".svg", ".png")
OTHERS = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.IGNORECASE)
"""How the address of another site begins."""
DARK = """\
@media (prefers-color-scheme: dark) {
:root { color-scheme: dark; --pdoc-background: #16181c }
.pdoc { --text: #e4e6ea; --muted: #a2a9b3; --link: #7db4f5; --link-hover: #a9cdf8; --code: #21252b;
  --active: #3a4048; --accent: #21252b; --accent2: #4a515b; --nav-hover: rgba(255, 255, 255, 0.1);
  --name: #7db4f5; --def: #7ee081; --annotation: #63c98a }
%s
}
"""
MODULE = """\
{% extends "default/module.html.jinja2" %}
{% block nav_title %}
<a class="refl-site" href="{{ "../" * module.modulename.count(".") }}../index.html">
refl: front page</a>
{{ super() }}
{% endblock %}
"""


# -- which pages -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    """Markdown of the repository by its path there, and what the table of contents calls it."""

    source: str
    title: str

    @property
    def target(self) -> str:
        return "index.html" if self.source == FRONT else f"{self.source.removesuffix('.md')}.html"


def contents(project: Path = PROJECT) -> dict[str, list[Page]]:
    """Group -> its pages, in the order of reading: the guide's is that of its index."""
    guide = re.findall(r"(?m)^\| \[.*?\]\((\w+\.md)\)", _read(project, "refl/guide/index.md"))
    groups = {
        "": [FRONT],
        "Guide": [f"refl/guide/{name}" for name in ("index.md", *guide)],
        "Lessons": _found(project, "refl/lessons/*.md"),
        "Reports": _found(project, "verification/reports/*.md"),
        "For other implementations": [
            "verification/conformance/README.md",
            "verification/vectors/README.md",
            "verification/vectors/models/README.md",
        ],
        "How refl is tested": _found(project, "verification/quality/*.md"),
        "The project": ["CONTRIBUTING.md", "CHANGELOG.md", *_found(project, "refl/shipped/*.md")],
    }
    return {
        group: [Page(source, _title(project, source)) for source in sources]
        for group, sources in groups.items()
    }


def _found(project: Path, pattern: str) -> list[str]:
    """README.md first."""
    found = sorted(project.glob(pattern), key=lambda path: (path.name != FRONT, path.name))
    return [path.relative_to(project).as_posix() for path in found]


def _read(project: Path, source: str) -> str:
    return (project / source).read_text(encoding="utf-8")


def _title(project: Path, source: str) -> str:
    heading = re.search(r"^# (.*)$", _read(project, source), re.MULTILINE)
    return heading[1].replace("`", "") if heading else source


# -- Markdown --------------------------------------------------------------------------------------


@dataclass
class Site:
    """What is written where, and the files of the repository that pages lead to."""

    project: Path
    out: Path
    groups: dict[str, list[Page]]
    api: bool = True
    files: set[str] = field(default_factory=set)

    @property
    def pages(self) -> list[Page]:
        return [page for pages in self.groups.values() for page in pages]

    def address(self, source: str, link: str) -> str:
        """Where a link of a page leads in the site."""
        path, hash_, fragment = link.partition("#")
        if not path or OTHERS.match(link):
            return link
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), unquote(path)))
        targets = {page.source: page.target for page in self.pages}
        here = posixpath.dirname(targets.get(source, source))
        return posixpath.relpath(self._target(wanted, targets), here or ".") + hash_ + fragment

    def _target(self, wanted: str, targets: dict[str, str]) -> str:
        if wanted in targets:
            return targets[wanted]
        if not (self.project / wanted).is_file():
            return wanted  # the check of links says so
        self.files.add(wanted)
        return wanted if wanted.endswith(PICTURES) else f"{wanted}.html"

    def body(self, page: Page) -> str:
        """The page's Markdown as HTML, links led to the site's pages."""
        markdown = _markdown()
        tokens = markdown.parse(_read(self.project, page.source))
        headings: dict[str, int] = {}
        for i, token in enumerate(tokens):
            if token.type == "heading_open":
                token.attrSet("id", _slug(tokens[i + 1].content, headings))
            for inside in token.children or ():
                for name in ("href", "src"):
                    if name in inside.attrs:
                        inside.attrSet(name, self.address(page.source, str(inside.attrs[name])))
        text = str(markdown.renderer.render(tokens, markdown.options, {}))
        return text.replace(
            "<pre>", '<pre tabindex="0">'
        )  # what scrolls is reached by the keyboard


def _slug(text: str, used: dict[str, int]) -> str:
    """As code hosts name a heading."""
    text = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", text).lower()).replace(" ", "-")
    used[text] = used.get(text, -1) + 1
    return f"{text}-{used[text]}" if used[text] else text


@cache
def _markdown() -> Any:
    """CommonMark with tables, which scroll by themselves, and code in color."""
    from markdown_it import MarkdownIt

    markdown = MarkdownIt("commonmark", {"html": True, "highlight": _colored}).enable("table")
    opened = '<div class="wide" tabindex="0" role="group" aria-label="table"><table>\n'
    markdown.add_render_rule("table_open", lambda *_: opened)
    markdown.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return markdown


def _colored(code: str, language: str, _: str) -> str:
    """Empty where no language is named: it stays as it is."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    if not language:
        return ""
    lexer = get_lexer_by_name("pycon" if code.startswith(">>>") else language)
    return str(highlight(code, lexer, HtmlFormatter(nowrap=True)))


def _source(path: Path) -> str:
    """A file of the repository with the numbers of its lines, each an anchor (L1, L2, ...)."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import TextLexer, get_lexer_for_filename
    from pygments.util import ClassNotFound

    code = path.read_text(encoding="utf-8")
    try:
        lexer = get_lexer_for_filename(path.name)
    except ClassNotFound:
        lexer = TextLexer()
    formatter = HtmlFormatter(linenos="inline", lineanchors="L", anchorlinenos=True)
    return str(highlight(code, lexer, formatter)).replace("#L-", "#L").replace('"L-', '"L')


def _code_styles() -> tuple[str, str]:
    """Of code in color, on a light and on a dark ground."""
    from pygments.formatters import HtmlFormatter

    light, dark = (HtmlFormatter(style=name) for name in ("default", "monokai"))
    return tuple(
        "\n".join(
            row
            for prefix in ("pre", ".highlight")
            for row in each.get_style_defs(prefix).splitlines()
            if re.match(rf"{re.escape(prefix)} \.", row)
        )
        for each in (light, dark)
    )  # type: ignore[return-value]


# -- the frame around a page -----------------------------------------------------------------------


def framed(site: Site, target: str, title: str, body: str, kind: str = "page") -> str:
    """A whole page: the way to the text, table of contents, text, neighbors."""
    root = posixpath.relpath(".", posixpath.dirname(target) or ".")
    top = "" if root == "." else f"{root}/"
    name = html.escape(title)
    return f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name if title == "refl" else f"{name} · refl"}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{top}site.css">
</head>
<body>
<a class="skip" href="#text">to the text</a>
<a class="to-contents" href="#contents">Contents</a>
<main id="text" class="{kind}">
{body}</main>
{_neighbors(site, target, top)}
{_contents(site, target, top)}
</body>
</html>
"""


def _contents(site: Site, target: str, top: str) -> str:
    rows = ['<nav class="contents" id="contents" aria-label="contents">']
    for group, pages in site.groups.items():
        if group:
            rows.append(f"<h2>{html.escape(group)}</h2>")
        links = [_entry(page.target, page.title, target, top) for page in pages]
        links += [_entry(WALK, "A walk through a sweep", target, top)] if group == "Lessons" else []
        links += [_entry(API, "API reference", target, top)] * (group == "The project" and site.api)
        rows.append(f"<ul>\n{''.join(links)}</ul>")
    return "\n".join([*rows, "</nav>"])


def _entry(to: str, title: str, target: str, top: str) -> str:
    here = ' aria-current="page"' if to == target else ""
    home = ' class="home"' if to == "index.html" else ""
    return f'<li><a href="{top}{to}"{here}{home}>{html.escape(title)}</a></li>\n'


def _neighbors(site: Site, target: str, top: str) -> str:
    targets = [page.target for page in site.pages]
    if target not in targets:
        return ""
    i, links = targets.index(target), ""
    for j, sign in ((i - 1, "← {}"), (i + 1, "{} →")):
        if 0 <= j < len(targets):
            said = html.escape(sign.format(site.pages[j].title))
            links += f'<a href="{top}{targets[j]}">{said}</a>\n'
        else:
            links += "<span></span>\n"
    return f"<footer>\n{links}</footer>"


# -- writing ---------------------------------------------------------------------------------------


def build(out: Path, project: Path = PROJECT, api: bool = True) -> Site:
    """Everything, into a folder that is made anew where it is a site."""
    if out.exists():
        _clear(out)
    site = Site(project, out, contents(project), api)
    for page in site.pages:
        title = "refl" if page.source == FRONT else page.title
        _write(out, page.target, framed(site, page.target, title, site.body(page)))
    for source in sorted(site.files):
        _file(site, source)
    light, dark = _code_styles()
    style = STYLE.read_text(encoding="utf-8")
    media = f"@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
    _write(out, "site.css", f"{style}{light}\n{media}")
    _walk(out)
    if api:
        _reference(out, dark)
    return site


def _clear(out: Path) -> None:
    """Only what this made, or nothing."""
    if any(out.iterdir()) and not (out / "site.css").is_file():
        sys.exit(f"{out} holds something else: name an empty folder, or none")
    shutil.rmtree(out)


def _write(out: Path, target: str, text: str) -> None:
    path = out / target
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _file(site: Site, source: str) -> None:
    path = site.project / source
    if source.endswith(PICTURES):
        (site.out / source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, site.out / source)
        return
    target = f"{source}.html"
    body = f"<h1><code>{html.escape(source)}</code></h1>\n{_source(path)}"
    _write(site.out, target, framed(site, target, source, body, "source"))


def _walk(out: Path) -> None:
    from refl.cli import main as refl

    with redirect_stdout(sys.stderr):
        code = refl(["walk", TEXT, "--html", str(out / WALK)])
    if code:
        sys.exit(code)


def _reference(out: Path, dark: str) -> None:
    import pdoc

    from refl.verification.quality import api_reference

    templates = out / "templates"
    _write(templates, "custom.css", DARK % dark.replace("pre .", ".pdoc-code ."))
    _write(templates, "module.html.jinja2", MODULE)
    pdoc.render.configure(template_directory=templates, footer_text="refl")
    api_reference.main(str(out / "api"))
    shutil.rmtree(templates)


# -- links -----------------------------------------------------------------------------------------


def dead(out: Path, but: Iterable[str] = ()) -> Iterator[str]:
    """Links of the site's own pages that lead to no file, or to no place in one; `but` are targets
    that may be missing.
    """
    allowed = {out / name for name in but}
    for path in sorted(out.rglob("*.html")):
        if path.is_relative_to(out / "api") or path == out / WALK:
            continue  # pdoc answers for its own, and a script makes the places in the walk
        for link in _links(path):
            address, _, fragment = link.partition("#")
            to = Path(os.path.normpath(path.parent / unquote(address))) if address else path
            if to in allowed:
                continue
            if not to.is_file() or (fragment and fragment not in _places(to)):
                yield f"{path.relative_to(out).as_posix()}: {link}"


def _links(path: Path) -> list[str]:
    found = re.findall(r'<[a-z][^>]*? (?:href|src)="([^"]*)"', path.read_text(encoding="utf-8"))
    return [html.unescape(link) for link in found if not OTHERS.match(link)]


@cache
def _places(path: Path) -> frozenset[str]:
    return frozenset(re.findall(r' (?:id|name)="([^"]*)"', path.read_text(encoding="utf-8")))


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds the site and checks its links. Returns 1 where one is dead."""
    p = argparse.ArgumentParser(description="The documentation as a static site.")
    p.add_argument("folder", nargs="?", type=Path, default=Path("build/site"))
    p.add_argument("--no-api", action="store_false", dest="api", help="leave out the API reference")
    o = p.parse_args(arguments)
    build(o.folder, api=o.api)
    found = list(dead(o.folder))
    well = f"{o.folder / 'index.html'}: every link leads somewhere"
    print("\n".join(f"dead: {link}" for link in found) or well)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
