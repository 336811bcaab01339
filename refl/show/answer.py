"""Every token of an answer explained: lines for a terminal, one HTML page, a notebook.

A row for each token of the answer, a column for each token before it, in color to one scale; where
relevance is a part of what is explained, sums behind each row that add up as printed, and below the
columns their sums, which are the relevance of the whole answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from refl.answer_matrix import AnswerMatrix
from refl.show import answer_figure, markup
from refl.show.account import (
    ERROR,
    in_percent,
    joiner,
    of_lengths,
)
from refl.show.answer_view import WHOLE, Cell, View
from refl.show.colors import LEVELS, ink, token_style
from refl.show.lines import Line, Span, grid, paragraph, plain, width_of
from refl.show.markup import Markup, document, joined, safe_table, tag
from refl.show.numbers import amount, error
from refl.show.page import levels_css, method_section
from refl.show.pairs import level_class
from refl.show.terminal import about, method_lines
from refl.show.text import cells, one_line, shorten, visible

FEW = 16
"""Columns of tokens, more of which are shown on a page as squares without numbers."""
PANELS = 3
"""In a terminal: where numbers of tokens would take more of them, ninths stand in their place."""
LONGEST_TOKEN, LONGEST_HEAD = 16, 12
NINTHS = 9
STYLE = Path(__file__).with_name("answer.css")


class ShownAnswer(AnswerMatrix):
    """An answer, token by token; print it for a table."""

    def __str__(self) -> str:
        return text(self)

    def html(self) -> str:
        """One self-contained page."""
        return html(self)

    def svg(self) -> str:
        """A picture for a paper (refl/show/answer_figure.py)."""
        return answer_figure.svg(self)

    def pdf(self) -> bytes:
        """The same as PDF. Raises ReflError where matplotlib (the extra `figures`) is missing."""
        return answer_figure.pdf(self)

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        return markup.fragment(body(self), _style())


# -- in a terminal ---------------------------------------------------------------------------------


def text(m: AnswerMatrix, width: int = 100) -> str:
    """The view without color."""
    return plain(terminal(m, width))


def terminal(m: AnswerMatrix, width: int = 100) -> list[Line]:
    """The whole view: what is explained, the matrix in panels of columns, the method."""
    view = View(m)
    tokens = _token_columns(view, ninths=False)
    ninths = len(_panels(view, tokens, width)) > PANELS
    if ninths:
        tokens = _token_columns(view, ninths=True)
    sums = _sums(view)
    panels = _panels(view, [*tokens, *sums], width)
    if len(panels) > 1:  # sums stand apart
        panels = [*_panels(view, tokens, width), *_panels(view, sums, width)]
    parts = [
        _head(view, width),
        *panels,
        _notes(view, width, ninths),
        method_lines(m.method, width),
    ]
    return [line for part in parts for line in ([], *part)][1:]


def _head(view: View, width: int) -> list[Line]:
    facts = paragraph(f"{view.facts}", width, indent="") if view.facts else []
    return [
        *paragraph(view.title, width, "bold", indent=""),
        *facts,
        *paragraph(about(view.m[0]), width, "dim", indent=""),
    ]


def _notes(view: View, width: int, ninths: bool) -> list[Line]:
    low, high = view.extremes
    signs: list[tuple[str, int]] = [(high, 1)] if low == "0" else [(low, -1), (high, 1)]
    legend: list[Line] = [[("  ", ""), (said, ink(side))] for said, side in signs]
    said = view.reading + (
        f". Numbers are ninths of the strongest, {view.most:.{view.places}f}" if ninths else ""
    )
    lengths = paragraph(of_lengths(view.m[0]), width, "italic") if of_lengths(view.m[0]) else []
    return [*legend, *paragraph(f"{said}.", width, "dim"), *lengths]


@dataclass(frozen=True)
class _Column:
    """A column as it is printed: its group, its head in lines, a cell for each row."""

    group: str
    head: list[str]
    cells: list[Span]

    @property
    def width(self) -> int:
        return max(cells(one) for one in (*self.head, *(text for text, _ in self.cells)))


def _panels(view: View, columns: Sequence[_Column], width: int) -> list[list[Line]]:
    """Columns from left to right in as many tables as they need, each behind the row's tokens."""
    labels = _labels(view)
    room = width - max(map(width_of, labels)) - 2
    panels: list[list[_Column]] = [[]]
    for column in columns:
        if panels[-1] and _width([*panels[-1], column]) > room:
            panels.append([])
        panels[-1].append(column)
    return [_panel(labels, some) for some in panels]


def _width(columns: Sequence[_Column]) -> int:
    """With a blank before each, and one more where a group begins."""
    starts = sum(a.group != b.group for a, b in pairwise(columns))
    return sum(column.width + 1 for column in columns) + starts


def _labels(view: View) -> list[Line]:
    names = [shorten(visible(token), LONGEST_TOKEN) for token in view.m.answer_tokens]
    rows: list[list[Span]] = [[(str(n), "dim"), (name, "bold")] for n, name in enumerate(names)]
    rows += [[("", ""), (WHOLE, "dim")]] * bool(view.total)
    return [[("  ", ""), *line] for line in grid(rows, "rl")]


def _token_columns(view: View, ninths: bool) -> list[_Column]:
    return [
        _token_column(view, name, j, ninths)
        for name, part in view.parts.items()
        for j in range(part.start, part.stop)
    ]


def _sums(view: View) -> list[_Column]:
    rows = [*view.sums, *([view.total_sums] if view.total else [])]
    return [
        _Column(view.beside, [name], [(row[k], "") for row in rows])
        for k, name in enumerate(view.names_of_sums)
    ]


def _token_column(view: View, group: str, j: int, ninths: bool) -> _Column:
    made = _ninths if ninths else _number
    spans = [made(row[j], view.most) for row in view.rows]
    if view.total:
        spans.append(made(view.total[j], view.most_of_total))
    wide = max(cells(text) for text, _ in spans)
    name = visible(view.m.columns[j])
    head = _downwards(name) if ninths else [shorten(name, max(wide, 6))]
    return _Column(group, head, [(text.rjust(2 if ninths else 0), style) for text, style in spans])


def _number(cell: Cell, most: float) -> Span:
    return cell.shown, token_style(cell.step)


def _ninths(cell: Cell, most: float) -> Span:
    if cell.value is None:
        return "", ""
    ninths = round(NINTHS * cell.value / most) if most > 0 and math.isfinite(cell.value) else 0
    return f"{ninths:+d}" if ninths else ".", token_style(cell.step)


def _downwards(name: str) -> list[str]:
    """A letter in each line, the last at the bottom."""
    letters = list(shorten(name, LONGEST_HEAD))
    return ["", *letters]


def _panel(labels: list[Line], columns: list[_Column]) -> list[Line]:
    """The names of the groups, the heads, a line for each row."""
    left, high = max(map(width_of, labels)) + 1, max(len(column.head) for column in columns)
    heads = [[""] * (high - len(column.head)) + column.head for column in columns]
    lines: list[Line] = [_names(columns, left)]
    for k in range(high):
        lines.append([(" " * left, ""), *_beside(columns, [(head[k], "dim") for head in heads])])
    for n, label in enumerate(labels):
        if not any(column.cells[n][0].strip() for column in columns):
            continue  # all of these tokens come later
        room = " " * (left - width_of(label))
        lines.append(
            [*_trimmed(label), (room, ""), *_beside(columns, [c.cells[n] for c in columns])]
        )
    return [line for line in lines if plain([line]).strip()]


def _trimmed(label: Line) -> Line:
    *first, (text, style) = label
    return [*first, (text.rstrip(), style)]


def _beside(columns: list[_Column], spans: Sequence[Span]) -> Line:
    line: Line = []
    for k, (column, (text, style)) in enumerate(zip(columns, spans, strict=True)):
        apart = k > 0 and columns[k - 1].group != column.group
        line += [(" " * (1 + apart + column.width - cells(text)), ""), (text, style)]
    return line


def _names(columns: list[_Column], left: int) -> Line:
    """Of groups, each above its first column, as far as there is room."""
    line: Line = [(" " * left, "")]
    runs: list[list[_Column]] = []
    for column in columns:
        if runs and runs[-1][0].group == column.group:
            runs[-1].append(column)
        else:
            runs.append([column])
    for k, run in enumerate(runs):
        wide = sum(column.width + 1 for column in run) - 1
        name = shorten(run[0].group, wide)
        line += [(" " * (1 + (k > 0)), ""), (name + " " * (wide - cells(name)), "underline")]
    return line


# -- on a page -------------------------------------------------------------------------------------


def html(m: AnswerMatrix) -> str:
    """One page that needs nothing but itself: no network, no script."""
    title = f"refl: {shorten(one_line(m.answer), 80)} · {m.method.title}"
    return document(title, body(m), _style())


def _style() -> str:
    return levels_css() + STYLE.read_text(encoding="utf-8")


def body(m: AnswerMatrix) -> Markup:
    """What stands on the page, and in a notebook."""
    view = View(m)
    sections = (
        _header(view),
        _whole(view),
        _matrix_section(view),
        _accounts(view),
        method_section(m[0]),
        _again(m),
    )
    return joined(sections, "\n")


def _header(view: View) -> Markup:
    model = view.m.about.get("model") or "a model"
    edits = view.m.about.get("edits")
    said = f"{view.facts}. " if view.facts else ""
    return tag(
        "header",
        tag("h1", view.title),
        tag("p", f"{said}Explained by ", tag("b", view.m.method.title), f" on {model}."),
        tag("p", f"The run was edited: {edits}.", class_="note") if edits else "",
    )


def _whole(view: View) -> Markup:
    """The text in the colors of the columns' sums."""
    if not view.total:
        return Markup("")
    rows = (
        joined((tag("p", name, class_="note"), _running(view, part)))
        for name, part in view.parts.items()
    )
    said = "The sums of the columns below: what each token adds to the answer as a whole."
    return tag(
        "section",
        tag("h2", "The whole answer"),
        tag("p", said, class_="note"),
        *rows,
        _ramp(*_extremes_of(view.most_of_total, view.places)),
    )


def _running(view: View, part: slice) -> Markup:
    tokens = view.m.columns[part]
    spans = (
        tag(
            "span",
            token,
            class_=f"t {level_class(cell.step)}",
            tabindex="0",
            title=f"{visible(token)}: {cell.shown}",
        )
        for token, cell in zip(tokens, view.total[part], strict=True)
    )
    kind = "text" if joiner(tokens) else "text tight"
    return tag("div", joined(spans, joiner(tokens) or tag("wbr")), class_=kind)


def _extremes_of(most: float, places: int) -> tuple[str, str]:
    return f"-{most:.{places}f} against the answer", f"+{most:.{places}f} for it"


def _ramp(low: str, high: str) -> Markup:
    steps = range(0 if low == "0" else -LEVELS, LEVELS + 1)
    ramp = tag("span", *(tag("i", class_=level_class(step)) for step in steps), class_="ramp")
    return tag("div", tag("span", low), ramp, tag("span", high), class_="legend")


def _matrix_section(view: View) -> Markup:
    few = view.m.parts["answer"].stop <= FEW
    how = "" if few else " A cell says its number where the pointer or the keyboard is on it."
    head = tag("h2", "Token by token")
    table = tag("table", _columns(view), _table_head(view), _table_body(view), class_="matrix")
    region = tag(
        "div",
        table,
        class_=f"scroll answer {'few' if few else 'many'}",
        role="region",
        tabindex="0",
        aria_label="relevance of every token for every token of the answer",
    )
    return tag(
        "section",
        head,
        tag("p", f"{view.reading}.{how}", class_="note"),
        tag("p", of_lengths(view.m[0]), class_="note") if of_lengths(view.m[0]) else "",
        tag("a", "Skip the matrix", href="#below", class_="skip"),
        region,
        tag("div", _ramp(*view.extremes), id="below"),
    )


def _columns(view: View) -> Markup:
    """The groups, for whoever reads the table aloud."""
    sizes = [1, *(part.stop - part.start for part in view.parts.values()), len(view.names_of_sums)]
    return joined(tag("colgroup", span=size) for size in sizes)


def _table_head(view: View) -> Markup:
    groups = [(name, part.stop - part.start) for name, part in view.parts.items()]
    groups.append((view.beside, len(view.names_of_sums)))
    upper = (
        tag("th", name, scope="colgroup", colspan=size, class_="start" if k else "")
        for k, (name, size) in enumerate(groups)
    )
    corner = tag("th", "answer", scope="col", rowspan="2", class_="corner")
    lower = [
        tag(
            "th",
            tag("span", tag("code", visible(token)), class_="name"),
            scope="col",
            title=visible(token),
            class_=_class(view, j),
        )
        for j, token in enumerate(view.m.columns)
    ]
    sums = (
        tag("th", name, scope="col", class_="num" + " start" * (not k))
        for k, name in enumerate(view.names_of_sums)
    )
    return tag("thead", tag("tr", corner, *upper), tag("tr", *lower, *sums))


def _class(view: View, j: int) -> str:
    """Of a cell: whether a group begins with it, but for the first."""
    return "start" if j and any(part.start == j for part in view.parts.values()) else ""


def _table_body(view: View) -> Markup:
    names = [visible(token) for token in view.m.answer_tokens]
    rows = [
        _table_row(view, name, row, sums)
        for name, row, sums in zip(names, view.rows, view.sums, strict=True)
    ]
    foot = ""
    if view.total:
        foot = tag("tfoot", _table_row(view, "", view.total, view.total_sums))
    return joined((tag("tbody", joined(rows, "\n")), foot))


def _table_row(view: View, name: str, row: list[Cell], sums: list[str]) -> Markup:
    label = tag("code", name) if name else WHOLE
    tokens = (
        _table_cell(cell, f"{visible(token)} → {name or WHOLE}", _class(view, j))
        for j, (cell, token) in enumerate(zip(row, view.m.columns, strict=True))
    )
    numbers = (
        tag("td", number, class_="num" + " start" * (not k)) for k, number in enumerate(sums)
    )
    return tag("tr", tag("th", label, scope="row", title=name or WHOLE), *tokens, *numbers)


def _table_cell(cell: Cell, where: str, kind: str) -> Markup:
    if cell.value is None:
        return tag("td", class_=f"none {kind}".strip())
    number = tag("span", cell.shown, data_where=where)
    kind = f"cell {level_class(cell.step)} {kind}".strip()
    return tag("td", number, class_=kind, tabindex="0")


def _accounts(view: View) -> Markup:
    """Every row's own account: what the model gives the token, what is absorbed by which cause."""
    m = view.m
    ledgers = [e.recorded for e in m if e.recorded is not None]
    causes = list(dict.fromkeys(cause for ledger in ledgers for cause in ledger.absorbed))
    head = ["", "token", "id", "logit", "probability", "explained", *causes]
    head += [ERROR] * bool(ledgers)
    rows = []
    for n, e in enumerate(m):
        absorbed = {} if e.recorded is None else e.recorded.absorbed
        of_causes = (amount(absorbed.get(cause, 0.0), view.places) for cause in causes)
        row = [str(n), tag("code", visible(e.target)), str(e.target_id), f"{e.logit:.4f}"]
        row += [in_percent(e.probability), f"{e.explained:.{view.places}f}", *of_causes]
        row += [error(e.recorded.conservation_error)] if e.recorded is not None else []
        rows.append(row)
    table = safe_table(head, rows, (0, *range(2, len(head))))
    return tag("section", tag("details", tag("summary", "Every row's account"), table))


def _again(m: AnswerMatrix) -> Markup:
    first = m[0]
    said = first.provenance | {"method": m.method.title, "seed": m.seed}
    said["token ids"] = " ".join(map(str, first.input_ids))
    if first.decoder_ids is not None:
        said["decoder ids"] = " ".join(map(str, first.decoder_ids))
    said["answer's ids"] = " ".join(map(str, m.answer_ids))
    rows = (tag("dt", key) + tag("dd", value) for key, value in said.items())
    return tag("section", tag("h2", "To do it again"), tag("dl", *map(Markup, rows)))
