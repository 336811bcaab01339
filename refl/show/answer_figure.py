"""Every token of an answer explained, as a picture for a paper: the matrix in panels of columns, as
wide as a page, each cell with its number, so that a gray print keeps the signs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap

from refl.answer_matrix import AnswerMatrix
from refl.show import drawing
from refl.show.answer_view import WHOLE, Cell, View
from refl.show.colors import LEVELS, background, foreground
from refl.show.drawing import ADVANCE, BLACK, Box, Drawing, Part, Words
from refl.show.terminal import about
from refl.show.text import printable, shorten, visible

WIDE, MARGIN, SIZE, HIGH, PAD = 468.0, 6.0, 7.0, 12.0, 2.0
"""Points: the text of a page, its margin, letters, a row, and what is beside the letters."""
LONGEST = 14

Letters = Callable[[str], str]


def svg(m: AnswerMatrix) -> str:
    """As SVG: text is text, and nothing but the file is needed."""
    return drawing.svg(figure(m, str))


def pdf(m: AnswerMatrix) -> bytes:
    """As PDF, fonts embedded. Raises ReflError where matplotlib (the extra `figures`) is not
    installed.
    """
    return drawing.pdf(figure(m, drawing.embeddable()))


@dataclass(frozen=True)
class _Column:
    """A column: its group, its head, and its cells; those of sums have no color."""

    group: str
    head: str
    cells: Sequence[Cell]

    @property
    def width(self) -> float:
        widest = max(drawing.width(text, SIZE) for text in (self.head, *self._shown))
        return widest + 2 * PAD

    @property
    def _shown(self) -> Iterator[str]:
        return (cell.shown for cell in self.cells)


def figure(m: AnswerMatrix, letters: Letters) -> Drawing:
    """The drawing; `letters` makes of a text what its font can show."""
    view, parts = View(m), list[Part]()
    title = letters(view.title)
    y = _paragraph(parts, title, MARGIN + SIZE, bold=True)
    y = _paragraph(parts, letters(printable(about(m[0]))), y)
    labels = _labels(view, letters)
    left = MARGIN + max(drawing.width(label, SIZE) for label in labels) + 2 * PAD
    for panel in _panels(view, letters, WIDE - MARGIN - left):
        y = _panel(parts, panel, labels, left, y + 4)
    y = _scale(parts, view, letters, y + 1.6 * SIZE)
    return Drawing(WIDE, y, tuple(parts), title)


def _paragraph(parts: list[Part], text: str, y: float, bold: bool = False) -> float:
    """In lines; where the next baseline is."""
    for line in wrap(text, int((WIDE - 2 * MARGIN) / (ADVANCE * SIZE))):
        parts.append(Words(MARGIN, y, line, SIZE, bold=bold))
        y += 1.4 * SIZE
    return y


def _labels(view: View, letters: Letters) -> list[str]:
    names = [shorten(letters(visible(token)), LONGEST) for token in view.m.answer_tokens]
    return [*names, *([WHOLE] if view.total else [])]


def _panels(view: View, letters: Letters, room: float) -> list[list[_Column]]:
    panels: list[list[_Column]] = [[]]
    for column in [*_of_tokens(view, letters), *_of_sums(view)]:
        if panels[-1] and sum(c.width for c in (*panels[-1], column)) > room:
            panels.append([])
        panels[-1].append(column)
    return panels


def _of_tokens(view: View, letters: Letters) -> Iterator[_Column]:
    rows = [*view.rows, *([view.total] if view.total else [])]
    for name, part in view.parts.items():
        for j in range(part.start, part.stop):
            head = shorten(letters(visible(view.m.columns[j])), LONGEST)
            yield _Column(name, head, [row[j] for row in rows])


def _of_sums(view: View) -> Iterator[_Column]:
    rows = [*view.sums, *([view.total_sums] if view.total else [])]
    for k, name in enumerate(view.names_of_sums):
        yield _Column(view.beside, name, [Cell(None, row[k], 0) for row in rows])


def _panel(
    parts: list[Part], panel: list[_Column], labels: list[str], left: float, y: float
) -> float:
    """Names of groups, heads, a row for each label; where the next baseline is."""
    x, first = left, y + 2.7 * SIZE
    for n, label in enumerate(labels):
        parts.append(Words(MARGIN, first + (n + 1) * HIGH - 3.5, label, SIZE, bold=True))
    for k, column in enumerate(panel):
        if k == 0 or panel[k - 1].group != column.group:
            room = sum(c.width for c in panel[k:] if c.group == column.group)
            name = shorten(column.group, max(int(room / (ADVANCE * SIZE)), 1))
            parts.append(Words(x + PAD, y + SIZE, name, SIZE))
        _at_its_end(parts, column.head, x, column.width, y + 2.3 * SIZE)
        for n, cell in enumerate(column.cells):
            parts += _cell(cell, x, first + n * HIGH, column.width)
        x += column.width
    return first + len(labels) * HIGH + SIZE


def _at_its_end(parts: list[Part], text: str, x: float, wide: float, y: float) -> None:
    parts.append(Words(x + wide - PAD - drawing.width(text, SIZE), y, text, SIZE))


def _cell(cell: Cell, x: float, y: float, wide: float) -> Iterator[Part]:
    if not cell.shown:
        return
    back = background(cell.step)
    ink = foreground(back) if cell.step else BLACK
    if cell.step:
        yield Box(x, y, wide, HIGH, back)
    at = x + wide - PAD - drawing.width(cell.shown, SIZE)
    yield Words(at, y + HIGH - 3.5, cell.shown, SIZE, ink)


def _scale(parts: list[Part], view: View, letters: Letters, y: float) -> float:
    """The colors from end to end, and how the matrix is read; where the picture is at an end."""
    low, high = view.extremes
    parts.append(Words(MARGIN, y, low, SIZE))
    x = MARGIN + drawing.width(low, SIZE) + 4
    for step in range(0 if low == "0" else -LEVELS, LEVELS + 1):
        parts.append(Box(x, y - SIZE + 1, 5, SIZE, background(step)))
        x += 5
    parts.append(Words(x + 4, y, high, SIZE))
    return _paragraph(parts, letters(f"{view.reading}."), y + 1.6 * SIZE) + MARGIN - SIZE
