"""What HTML pages are made of: safe text, tables, and the page around them, which needs nothing but
itself: no network, no script.
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


def safe(text: object) -> str:
    """Printable, and nothing in it is markup."""
    return escape(printable(text))


def document(title: str, body: str, style: str = "") -> str:
    """A whole page; `body` is HTML already, `style` is CSS on top of every page's."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{safe(title)}</title>\n"
        f"<style>\n{STYLE.read_text(encoding='utf-8')}{style}</style>\n"
        f"</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = (), kind: str = ""
) -> str:
    """Cells are HTML already; `numeric` are the columns of numbers."""
    classes = ["num" if i in numeric else "" for i in range(len(head))]
    top = "".join(
        f'<th class="{c}" scope="col">{name}</th>' for c, name in zip(classes, head, strict=True)
    )
    body = "".join(_row(row, classes) for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _row(row: Sequence[str], classes: Sequence[str]) -> str:
    cells = "".join(f'<td class="{c}">{cell}</td>' for c, cell in zip(classes, row, strict=True))
    return f"<tr>{cells}</tr>\n"


def image(source: str, what: str) -> str:
    """A picture, its pixels as they are."""
    style = "max-width:100%;image-rendering:pixelated"
    return f'<img src="{source}" alt="{safe(what)}" style="{style}">'
