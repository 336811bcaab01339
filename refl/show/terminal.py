"""An explanation in a terminal: the tokens in color, each with its bar, the conservation ledger in
sum, the candidates, the method.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import Any

from refl.explanation import Explanation, MethodFacts
from refl.rules.composites import Composite
from refl.show.account import (
    COMPACT,
    DECODER,
    DIGITS,
    Row,
    account_of,
    all_scores,
    considered,
    described,
    facts,
    form,
    in_percent,
    is_number,
    joiner,
    leads_on,
    legend,
    names_of_columns,
    of_lengths,
    quantity,
    remarks,
    row_of_decoder,
    rows_of_tokens,
    scores,
    sums_name,
)
from refl.show.colors import ink, level, token_style
from refl.show.lines import Line, Span, grid, paragraph, plain, width_of
from refl.show.numbers import amount, decimals, strongest
from refl.show.pairs import pair_lines
from refl.show.text import cells, one_line, printable, shorten, visible

LONGEST_TOKEN = 24
NINTHS = 9


def text(e: Explanation, width: int = 80) -> str:
    """The view without color."""
    return plain(terminal(e, width))


def terminal(e: Explanation, width: int = 80) -> list[Line]:
    """The whole view of an explanation."""
    parts = [
        head(e, width),
        *_input(e, width),
        *filter(None, [pair_lines(e, width)]),
        [
            [("  " + sums_name(e).lower().removeprefix("the "), "dim")],
            *account_lines(account_of(e), quantity(e), width),
        ],
        _candidates(e),
        method_lines(e.method, width),
    ]
    return [line for part in parts for line in ([], *part)][1:]


def head(e: Explanation, width: int) -> list[Line]:
    """What is explained, and by what."""
    return [
        *paragraph(f"{quantity(e)} = {amount(e.explained, 4)}", width, "bold", indent=""),
        *paragraph(facts(e), width, indent=""),
        *paragraph(about(e), width, "dim", indent=""),
    ]


def about(e: Explanation) -> str:
    """Model, what is unusual in the run, and the method, on one line."""
    said = [
        *(e.about.get(key, "") for key in ("model", "architecture", "dtype")),
        *(f"{what}: {names}" for what, names in e.about.items() if _is_unusual(what)),
        e.method.title,
    ]
    return " · ".join(one_line(one) for one in said if one)


def _is_unusual(what: str) -> bool:
    """Of the run: what a reader of the numbers has to know."""
    special = ("adapter", "attention mask", "edits", "conditions")
    return what in special or what.startswith("ignored ")


def method_lines(c: Composite | MethodFacts, width: int, further: Sequence[str] = ()) -> list[Line]:
    """A method by name, with its summary, what else is said of it, and its source."""
    name: Line = [("  ", ""), (one_line(c.title), "bold"), (f"  {form(c)}", "dim")]
    return [
        name,
        *(line for said in (*described(c), *further) for line in paragraph(one_line(said), width)),
        *(paragraph(one_line(c.source), width, "dim") if c.source else []),
        *(paragraph(f"table {c.hash[:12]}", width, "dim") if isinstance(c, Composite) else []),
    ]


def _input(e: Explanation, width: int) -> Iterator[list[Line]]:
    if e.picture is not None:
        yield _patches(e, width)
        written = row_of_decoder(e)
        if written is None:
            return
        yield [[(DECODER, "bold")]]
        e = written
    for name, row in rows_of_tokens(e):
        yield _running_text(row, width, name)
        yield [*_bars(row, width), *_legend(e, width, "█▒")]
    if e.image is not None:
        yield _patches(e.of_picture, width)


def _legend(e: Explanation, width: int, signs: str) -> list[Line]:
    """What the colors and the two signs say."""
    said = zip(signs, legend(e), (1, -1), strict=True)
    spans: Line = [(f"{sign} {words}", ink(side)) for sign, words, side in said if words]
    apart = [[("  ", ""), span] for span in spans]
    beside: Line = [span for entry in apart for span in entry]
    return [beside] if width_of(beside) <= width else apart


# -- tokens ----------------------------------------------------------------------------------------


def _running_text(e: Explanation, width: int, name: str = "") -> list[Line]:
    """The input as running text, its tokens colored; a line ends after a token that ends one."""
    most, between = strongest(all_scores(e)), joiner(e.tokens)
    lines: list[Line] = [[("  ", "")]]
    for token, r in zip(e.tokens, e.relevance, strict=True):
        style = token_style(level(float(r), most))
        for piece in _pieces(printable(token), width - 4):
            if width_of(lines[-1]) + cells(piece) > width - 2:
                lines.append([("  ", "")])
            lines[-1].append((piece, style))
        lines[-1].append((between, ""))
        if token.endswith("\n"):
            lines.append([("  ", "")])
    arrow = f" → {visible(e.target)}" if leads_on(e, name) else ""
    if width_of(lines[-1]) + cells(arrow) > width:
        lines.append([("  ", "")])
    lines[-1].append((arrow, "bold"))
    title: list[Line] = [[(name, "bold")]] if name else []
    return title + [line for line in lines if len(line) > 1]


def _pieces(text: str, most: int) -> list[str]:
    """A text in pieces of at most so many columns."""
    pieces = [""]
    for c in text:
        if cells(pieces[-1]) + cells(c) > max(most, 8):
            pieces.append("")
        pieces[-1] += c
    return pieces


def _bars(e: Explanation, width: int) -> list[Line]:
    """Every token with its number and a bar to the right (for)
    or to the left (against) of the axis.
    """
    values = [float(r) for r in e.relevance]
    compact = len(values) > COMPACT
    rows: list[list[Span]] = [
        [(str(i), "dim"), (shorten(visible(token), LONGEST_TOKEN), ""), (number, ink(v))]
        for i, (token, number, v) in enumerate(zip(e.tokens, scores(e), values, strict=True))
    ]
    table = grid(rows, "rlr")
    room = 12 if compact else min(max(width - width_of(table[0]) - 6, 8), 48)
    lines = [
        [("  ", ""), *line, ("  ", ""), *bar]
        for line, bar in zip(table, bars_of(values, room, all_scores(e)), strict=True)
    ]
    note = paragraph(of_lengths(e), width, "italic") if of_lengths(e) else []
    return note + (_side_by_side(lines, width) if compact else lines)


def bars_of(values: Sequence[float], room: int, scale: Sequence[float]) -> list[Line]:
    """Bars to one scale, on which all values of `scale` fit in so many columns and an axis."""
    finite, fit = ([v if math.isfinite(v) else 0.0 for v in some] for some in (values, scale))
    most, least = max(0.0, *fit), -min(0.0, *fit)
    unit = room / ((most + least) or 1.0)
    left = round(least * unit)
    return [
        [
            (("▒" * round(-v * unit)).rjust(left), ink(-1)),
            ("│", "dim"),
            (("█" * round(v * unit)).ljust(room - left), ink(1)),
        ]
        for v in finite
    ]


def _side_by_side(lines: list[Line], width: int) -> list[Line]:
    """Equal lines in as many columns as fit, read downwards."""
    each = max(cells("".join(text for text, _ in line)) for line in lines) + 1
    columns = max(width // each, 1)
    height = -(-len(lines) // columns)
    return [[span for line in lines[i::height] for span in line] for i in range(height)]


# -- patches of a picture --------------------------------------------------------------------------


def _patches(e: Explanation, width: int) -> list[Line]:
    """The patches of a picture where they lie, each with its
    relevance in ninths of the strongest patch.
    """
    times = max(-(-2 * e.patches.shape[1] // (width - 2)), 1)
    rows = summed(e.patches, times)
    most = strongest(v for row in rows for v in row)
    each = 3 if 3 * len(rows[0]) <= width - 2 else 2
    several = f"spans of {times}" if len(e.patches) == 1 else f"squares of {times} x {times}"
    squares = "patches" if times < 2 else f"{several} patches"
    scale = f"in ninths of the strongest, {most:.{decimals(most, DIGITS)}f}"
    notes = [
        f"{len(rows)} x {len(rows[0])} {squares} {scale}",
        *filter(None, [of_lengths(e)]),
    ]
    return [
        *([("  ", ""), *(_patch(v, most, each) for v in row)] for row in rows),
        *_legend(e, width, "+-"),
        *(line for note in notes for line in paragraph(note, width, "dim")),
    ]


def _patch(value: float, most: float, width: int) -> Span:
    ninths = round(NINTHS * value / most) if most > 0 and math.isfinite(value) else 0
    return (f"{ninths:+d}" if ninths else ".").rjust(width), token_style(level(value, most))


def summed(r: Any, times: int) -> list[list[float]]:
    """Of a very fine grid, squares of so many patches as one;
    at the right and at the bottom what is left.
    """
    rows, columns = (range(0, n, times) for n in r.shape)
    return [[float(r[i : i + times, j : j + times].sum()) for j in columns] for i in rows]


# -- the account, and the candidates ---------------------------------------------------------------


def account_lines(rows: list[Row], what: str, width: int) -> list[Line]:
    """The account as a table that adds up, a rule above its total."""
    bold = {"explained": "bold"}
    table = grid(
        [
            [
                (printable(r.name), bold.get(r.name, "")),
                (r.shown, bold.get(r.name, "")),
                (r.percent, "dim"),
            ]
            for r in rows
        ],
        "lrr",
    )
    rule: Line = [("  " + "─" * (sum(cells(text) for text, _ in table[0][:2]) - 2), "dim")]
    noted = [
        _noted([("  ", ""), *line], row.note or what, width)
        for line, row in zip(table, rows, strict=True)
    ]
    asked = [line for said in remarks(rows) for line in paragraph(said, width, "dim")]
    return [line for part in [*noted[:-1], [rule], noted[-1], asked] for line in part]


def _noted(line: Line, note: str, width: int) -> list[Line]:
    """A line with a note in what room there is beside it; without, where there is too little."""
    start = sum(cells(text) for text, _ in line) + 2
    notes = wrap(note, width - start) if width - start >= 16 else []
    first: Line = [*line, ("  " + notes[0], "dim")] if notes else line
    return [first, *([(" " * start + more, "dim")] for more in notes[1:])]


def _candidates(e: Explanation) -> list[Line]:
    if is_number(e):
        return []
    names: list[Span] = [(name, "dim") for name in names_of_columns(e)]
    rows: list[list[Span]] = [
        [
            (shorten(visible(token), LONGEST_TOKEN), "bold" if part else ""),
            (str(i), "dim"),
            (f"{z:.4f}", ""),
            (in_percent(p), ""),
            (part, "dim"),
        ]
        for token, i, z, p, part in considered(e)
    ]
    return [[("  ", ""), *line] for line in grid([names, *rows], "lrrrl")]
