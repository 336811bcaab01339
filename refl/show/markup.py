"""What HTML pages are made of: elements, tables, and the page around them, which needs nothing but
itself: no network, no script.

Text becomes markup in one place, `safe`. `tag` and `joined` pass through it whatever is not markup
already, every attribute too: what a file says cannot reach a page in any other way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from refl.show.text import printable

STYLE = Path(__file__).with_name("page.css")

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)


class Markup(str):
    """HTML, as it is to stand."""

    __slots__ = ()


def safe(text: object) -> Markup:
    """Printable, and nothing in it is markup."""
    return text if isinstance(text, Markup) else Markup(escape(printable(text)))


def joined(inside: Iterable[object], between: str = "") -> Markup:
    """One after the other; what is not markup is made safe."""
    return Markup(between.join(map(safe, inside)))


_VOID = ("br", "wbr", "img", "meta")


def tag(name: str, *inside: object, **attributes: object) -> Markup:
    """An element. `class_` is the attribute class, `aria_label` aria-label; one that is None is
    left out.
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{safe(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    end = "" if name in _VOID else f"{joined(inside)}</{name}>"
    return Markup(f"<{name}{said}>{end}")


def document(title: str, body: str, style: str = "") -> str:
    """A whole page; `body` is HTML already, `style` is CSS on top of every page's."""
    return bare_document(title, f"<main>\n{body}\n</main>", f"\n{css()}{style}", POLICY, "refl")


def bare_document(title: str, body: str, style: str, policy: str, kind: str) -> str:
    """The same with all of its body, its style and its policy its own; `kind` is its class."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{safe(title)}</title>\n"
        f"<style>{style}</style>\n"
        f'</head>\n<body class="{kind}">\n{body}\n</body>\n</html>\n'
    )


def fragment(body: str, style: str = "") -> str:
    """The same body for a notebook: the style reaches nothing outside."""
    return f'<style>\n{css()}{style}</style>\n<div class="refl">\n{body}\n</div>\n'


def css() -> str:
    """Of every page."""
    return STYLE.read_text(encoding="utf-8")


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = (), kind: str = ""
) -> Markup:
    """Cells are HTML already; `numeric` are the columns of numbers."""
    return safe_table(head, (map(Markup, row) for row in rows), numeric, kind)


def safe_table(
    head: Sequence[str],
    rows: Iterable[Iterable[object]],
    numeric: Sequence[int] = (),
    kind: str = "",
) -> Markup:
    """The same of cells that are made safe."""
    classes = ["num" if i in numeric else "" for i in range(len(head))]
    top = (tag("th", name, class_=c, scope="col") for c, name in zip(classes, head, strict=True))
    body = (
        tag("tr", *(tag("td", cell, class_=c) for c, cell in zip(classes, row, strict=True))) + "\n"
        for row in rows
    )
    inner = (tag("thead", tag("tr", *top)), tag("tbody", *map(Markup, body)))
    return tag("div", tag("table", *inner, class_=kind), class_="scroll")


def image(source: str, what: str) -> Markup:
    """A picture, its pixels as they are."""
    style = "max-width:100%;image-rendering:pixelated"
    return tag("img", src=source, alt=what, style=style)
