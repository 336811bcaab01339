"""Pairs of a second-order method: what each token (a column) adds to the relevance of each (a row).
In a terminal a small table, or the strongest pairs where there is no room; on a page a table in
color.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refl.explanation import Explanation
from refl.show.colors import ink, level
from refl.show.lines import Line, Span, grid, paragraph, width_of
from refl.show.markup import Markup, joined, tag
from refl.show.numbers import decimals, strongest
from refl.show.text import shorten, visible

FEW = 12
"""Tokens of a table in a terminal."""
MANY = 40
"""Tokens of a table on a page."""
LISTED = 12
"""Pairs that are listed where there are more tokens."""
DIGITS = 3
LONGEST_TOKEN = 16

TITLE = "pairs: what each token (column) adds to the relevance of each (row)"


class Pair(NamedTuple):
    """Token `of` adds `value` to the relevance of token `to`."""

    to: int
    of: int
    value: float


def strongest_pairs(pairs: Any, count: int) -> list[Pair]:  # (T, T)
    """The largest in size; of equals those that are first in the text."""
    sizes = np.where(np.isfinite(pairs), np.abs(pairs), -1.0).ravel()
    order = np.argsort(-sizes, kind="stable")[:count]
    where = (divmod(int(n), pairs.shape[1]) for n in order)
    return [Pair(i, j, float(pairs[i, j])) for i, j in where]


def _numbers(pairs: Any) -> list[list[str]]:  # (T, T)
    places = decimals(strongest(pairs.ravel().tolist()), DIGITS)
    return [[f"{v:+z.{places}f}" for v in row] for row in pairs.tolist()]


# -- in a terminal ---------------------------------------------------------------------------------


def pair_lines(e: Explanation, width: int) -> list[Line]:
    """Nothing for an explanation without pairs."""
    if e.pairs is None:
        return []
    table = _table(e) if len(e.tokens) <= FEW else []
    if table and max(map(width_of, table)) <= width:
        return [*paragraph(TITLE, width, "dim"), *table]
    title = f"{TITLE}, the strongest of {e.pairs.size}"
    return [*paragraph(title, width, "dim"), *_list(e)]


def _table(e: Explanation) -> list[Line]:
    head: list[Span] = [("", ""), ("", ""), *((str(j), "dim") for j in range(len(e.tokens)))]
    rows = [head]
    for i, (token, numbers) in enumerate(zip(e.tokens, _numbers(e.pairs), strict=True)):
        cells = zip(numbers, e.pairs[i].tolist(), strict=True)
        name = shorten(visible(token), LONGEST_TOKEN)
        rows.append([(str(i), "dim"), (name, ""), *((text, ink(v)) for text, v in cells)])
    return [[("  ", ""), *line] for line in grid(rows, "rl" + "r" * len(e.tokens))]


def _list(e: Explanation) -> list[Line]:
    numbers, names = _numbers(e.pairs), [shorten(visible(t), LONGEST_TOKEN) for t in e.tokens]
    rows: list[list[Span]] = [
        [(str(p.of), "dim"), (names[p.of], ""), ("to", "dim"), (str(p.to), "dim"),
         (names[p.to], ""), (numbers[p.to][p.of], ink(p.value))]
        for p in strongest_pairs(e.pairs, LISTED)
    ]  # fmt: skip
    return [[("  ", ""), *line] for line in grid(rows, "rllrlr")]


# -- on a page -------------------------------------------------------------------------------------


def pair_section(e: Explanation) -> Markup:
    """A table in color; the strongest pairs alone of a long input."""
    if e.pairs is None:
        return Markup("")
    first, _, rest = TITLE.partition(": ")
    inside = (_heat(e), "") if len(e.tokens) <= MANY else (_strongest(e), ", the strongest")
    words = f"{rest.capitalize()}{inside[1]}."
    return tag("section", tag("h2", first.capitalize()), tag("p", words, class_="note"), inside[0])


def _heat(e: Explanation) -> Markup:
    most, names = strongest(e.pairs.ravel().tolist()), [visible(t) for t in e.tokens]
    head = tag("tr", tag("th"), *(tag("th", tag("code", n), scope="col") for n in names))
    rows = (
        tag("tr", tag("th", tag("code", name), scope="row"), *cells)
        for name, cells in zip(names, _cells(e, most, names), strict=True)
    )
    return tag("div", tag("table", head, *rows, class_="patches"), class_="scroll")


def _cells(e: Explanation, most: float, names: list[str]) -> list[list[Markup]]:
    return [
        [
            tag("td", text, class_=f"t {level_class(level(v, most))}", title=f"{of} to {to}")
            for text, v, of in zip(numbers, row, names, strict=True)
        ]
        for numbers, row, to in zip(_numbers(e.pairs), e.pairs.tolist(), names, strict=True)
    ]


def _strongest(e: Explanation) -> Markup:
    numbers = _numbers(e.pairs)
    rows = (
        tag(
            "tr",
            tag("td", f"{p.of} ", tag("code", visible(e.tokens[p.of]))),
            tag("td", f"to {p.to} ", tag("code", visible(e.tokens[p.to]))),
            tag("td", numbers[p.to][p.of], class_="num"),
        )
        for p in strongest_pairs(e.pairs, 2 * LISTED)
    )
    return tag("div", tag("table", joined(rows)), class_="scroll")


def level_class(step: int) -> str:
    """Of the style sheet of a page: positive, negative, zero."""
    return f"p{step}" if step > 0 else f"n{-step}" if step < 0 else "z"
