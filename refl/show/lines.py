"""Lines for a terminal.

A view is a list of lines and a line a list of spans (text, style). Plain text is the texts alone;
where there is color, rich writes the styles. On their way out all lines pass `printed`: whatever a
file says, no character of it steers a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import wrap

from refl.show.text import cells, printable

Span = tuple[str, str]
"""Text, and a style of rich's."""
Line = list[Span]


def printed(lines: Iterable[Line]) -> list[Line]:
    """The lines with every text printable."""
    return [[(printable(text), style) for text, style in line] for line in lines]


def plain(lines: Iterable[Line]) -> str:
    """The lines without their styles, printable."""
    return "\n".join("".join(text for text, _ in line).rstrip() for line in printed(lines))


def width_of(line: Line) -> int:
    """Columns the line takes, blanks at its end not counted."""
    return cells(plain([line]))


def paragraph(text: str, width: int, style: str = "", indent: str = "  ") -> list[Line]:
    """Text that is printable, broken into lines."""
    lines = wrap(text, max(width - len(indent), 20), break_on_hyphens=False)
    return [[(indent, ""), (line, style)] for line in lines]


def grid(rows: Sequence[Sequence[Span]], align: str) -> list[Line]:
    """Cells in aligned columns; `align` has an l or an r for each."""
    widths = [max(cells(row[i][0]) for row in rows) for i in range(len(align))] if rows else []
    return [
        [
            _cell(*cell, w, a, last=i == len(align) - 1)
            for i, (cell, w, a) in enumerate(zip(row, widths, align, strict=True))
        ]
        for row in rows
    ]


def _cell(text: str, style: str, width: int, align: str, last: bool) -> Span:
    if last and align == "l":
        return text, style
    padding, space = " " * (width - cells(text)), "" if last else "  "
    return (padding + text + space, style) if align == "r" else (text + padding + space, style)


def folded(rows: Sequence[Sequence[Span]], align: str, width: int | None, first: int) -> list[Line]:
    """A grid; where it is wider than `width`, two lines a row, of `first` columns and of the rest.
    Nothing is cut.
    """
    whole = grid(rows, align)
    if width is None or not whole or max(width_of(line) for line in whole) <= width:
        return whole
    upper = grid([row[:first] for row in rows], align[:first])
    lower = grid([row[first:] for row in rows], align[first:])
    return [line for a, b in zip(upper, lower, strict=True) for line in (a, [("    ", ""), *b])]
