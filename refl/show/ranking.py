"""Neurons, heads and blocks by their relevance, and the ways relevance takes through each block, as
tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from refl.paths import AttentionPath, BlockPaths, Paths, Sink, Sinks
from refl.ranking import Ranked, Ranking
from refl.show import markup
from refl.show.colors import ink, level, token_style
from refl.show.lines import Line, Span, grid, paragraph, plain, width_of
from refl.show.markup import tag
from refl.show.numbers import amount, decimals, percent, strongest
from refl.show.terminal import bars_of
from refl.show.text import printable, shorten, visible

WIDTH = 100
LONGEST_TOKEN, LONGEST_NAME = 20, 44
LETTERS = {"queries": "q", "keys": "k", "values": "v", "mlp": "m", "residual": "r", "absorbed": "a"}
"""Of the bar that says how relevance divides."""
DIVIDED = 20
"""Columns of it."""

LEGEND = (
    "received + returned = queries + keys + values + mlp + residual + absorbed; returned: what "
    "passed the MLP or attention and is counted again in what stands before them in the block"
)


class ShownRanking(Ranking):
    """A ranking; print it for a table."""

    def __str__(self) -> str:
        return plain(ranking_lines(self, WIDTH))

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        return markup.fragment(tag("pre", str(self)))


class ShownPaths(Paths):
    """Paths; print them for a table."""

    def __str__(self) -> str:
        return plain(paths_lines(self, None, WIDTH))

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        return markup.fragment(tag("pre", str(self)))


class ShownSinks(Sinks):
    """Attention sinks; print them for a table."""

    def __str__(self) -> str:
        return plain(sinks_lines(self))

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        return markup.fragment(tag("pre", str(self)))


# -- a ranking -------------------------------------------------------------------------------------


def ranking_lines(ranking: Ranking, width: int) -> list[Line]:
    """A line for each, the largest first, with its bar."""
    head = paragraph(_title(ranking), width, "dim", indent="")
    if not ranking:
        return [*head, [("  none", "")]]
    values = [row.relevance for row in ranking]
    most, places = strongest(values), decimals(strongest(values), 4)
    names = _columns(ranking)
    cells = [_cells(ranking, i, row, most, places) for i, row in enumerate(ranking)]
    table = grid([[(name, "dim") for name in names], *cells], _align(ranking))
    room = min(max(width - max(map(width_of, table)) - 6, 8), 32)
    bars: list[Line] = [[], *bars_of(values, room, values)]
    pairs = zip(table, bars, strict=True)
    return [*head, *([("  ", ""), *_tight(line), *bar] for line, bar in pairs)]


def _tight(line: Line) -> Line:
    """The line with no background behind the blanks that align its cells."""
    found: Line = []
    for text, style in line:
        core = text.strip(" ")
        if " on " not in style or core == text:
            found.append((text, style))
            continue
        before, _, after = text.partition(core) if core else (text, "", "")
        found += [(before, ""), (core, style), (after, "")]
    return found


def _title(ranking: Ranking) -> str:
    over = ranking.over
    where = {"positions": "summed over positions", "each": "each by itself"}
    of = f" at {printable(ranking.pattern)}" if ranking.pattern is not None else ""
    sign = "" if ranking.sign == "both" else f"{ranking.sign} "
    said = where.get(str(over), f"at token {over}")
    what = f"{sign}{_kind(ranking)}s{of}"
    if over == "each":  # as many as there are neurons, times tokens
        what = f"{sign}pairs of {_kind(ranking)} and token{of}"
    return f"{len(ranking)} of {ranking.of} {what} by the size of their relevance, {said}"


def _kind(ranking: Ranking) -> str:
    """What is ranked: of any sites their features, heads, or each as a whole."""
    others = {"neuron": "feature", "head": "head", "block": "site"}
    return ranking.by if ranking.pattern is None else others[ranking.by]


def _columns(ranking: Ranking) -> list[str]:
    at = "strongest at" if ranking.over == "positions" else "at"
    activation = ["activation"] if ranking.by == "neuron" else []
    return ["", _kind(ranking), "relevance", "of it all", *activation, at, ""]


def _align(ranking: Ranking) -> str:
    return "rlrrrll" if ranking.by == "neuron" else "rlrrll"


def _cells(ranking: Ranking, i: int, row: Ranked, most: float, places: int) -> list[Span]:
    z = row.activation
    activation: list[Span] = [("" if z is None else f"{z:.4g}", "")]
    return [
        (str(i + 1), "dim"),
        (shorten(printable(row.name), LONGEST_NAME), token_style(level(row.relevance, most))),
        (amount(row.relevance, places), ink(row.relevance)),
        (percent(row.relevance, ranking.explained), "dim"),
        *(activation if ranking.by == "neuron" else []),
        (_where(row), ""),
        ("", ""),
    ]


def _where(row: Ranked) -> str:
    """Number and text of a token, of a picture the number of the patch."""
    if row.strongest is None:
        return ""
    token = "" if row.token is None else f" {shorten(visible(row.token), LONGEST_TOKEN)}"
    return f"{row.strongest}{token}"


# -- the ways through each block -------------------------------------------------------------------


def paths_lines(paths: Paths, sinks: Sinks | None, width: int) -> list[Line]:
    """A line for each block, from the output down; where it has several layers of attention, a line
    for each of them below.
    """
    rows = list(reversed(paths))
    beside = list(reversed(sinks)) if sinks is not None else [None] * len(rows)
    numbers = [v for row in rows for v in (row.received, *row.parts.values())]
    places = min(decimals(strongest(numbers), 4), 6)
    header = ["block", "received", *LETTERS, "returned", *_SINKS * (sinks is not None)]
    table: list[list[Span]] = [[(name, "dim") for name in header]]
    divided: list[Line] = [[]]
    for row, sink in zip(rows, beside, strict=True):
        table.append(_block(row, sink, places))
        divided.append(_divided(row))
        for a in row.attentions if len(row.attentions) > 1 else ():
            table.append(_attention(a, places, len(header)))
            divided.append([])
    lines = [_tight(line) for line in grid(table, "l" + "r" * (len(header) - 1))]
    wide = width_of(lines[0]) + DIVIDED + 4 <= width
    shown = ([*line, ("  ", ""), *bar] for line, bar in zip(lines, divided, strict=True))
    return [
        *([("  ", ""), *line] for line in (shown if wide else lines)),
        *paragraph(LEGEND, width, "dim"),
    ]


_SINKS = ("first token", "attention")
"""Columns: how much of |R| lies on the first token, and how much attention it receives."""


def _block(row: BlockPaths, sink: Sink | None, places: int) -> list[Span]:
    parts = row.parts
    most = strongest(parts.values())
    return [
        (printable(row.block), "bold"),
        (_fixed(row.received, places), "bold"),
        *((_fixed(v, places), token_style(level(v, most))) for v in parts.values()),
        (_fixed(row.returned, places), "dim"),
        *([] if sink is None else _sink_cells(sink)),
    ]


def _sink_cells(sink: Sink) -> list[Span]:
    attention = "" if sink.attention is None else percent(sink.attention, 1)
    return [(percent(sink.of_sizes, 1), ""), (attention, "")]


def _attention(a: AttentionPath, places: int, columns: int) -> list[Span]:
    cells = [
        f"  {printable(a.name)}",
        "",
        *(_fixed(v, places) for v in (a.queries, a.keys, a.values)),
    ]
    return [(cell, "dim") for cell in [*cells, *[""] * (columns - len(cells))]]


def _divided(row: BlockPaths) -> Line:
    """The parts by their sizes, a letter for each: red for what is above 0."""
    fractions = row.fractions
    if any(map(math.isnan, fractions.values())):
        return []
    ends = _cumulated([0.0, *(fractions[name] for name in LETTERS)])
    widths = [round(DIVIDED * b) - round(DIVIDED * a) for a, b in pairwise(ends)]
    return [
        (letter * n, ink(row.parts[name]))
        for (name, letter), n in zip(LETTERS.items(), widths, strict=True)
        if n
    ]


def _fixed(value: float, places: int) -> str:
    """So many decimals, however small it is beside the largest."""
    return f"{value:z.{places}f}"


def _cumulated(values: Sequence[float]) -> list[float]:
    return [math.fsum(values[: i + 1]) for i in range(len(values))]


# -- the first token -------------------------------------------------------------------------------


def sinks_lines(sinks: Sinks) -> list[Line]:
    """A line for each block, from the output down."""
    rows: list[list[Span]] = [
        [(name, "dim") for name in ("block", "first token", "relevance", "of sum R", "of sum |R|")]
        + [("attention", "dim")]
    ]
    places = decimals(strongest(sink.relevance for sink in sinks), 4)
    rows += [_sink_row(sink, places) for sink in reversed(sinks)]
    return [[("  ", ""), *line] for line in grid(rows, "llrrrr")]


def _sink_row(sink: Sink, places: int) -> list[Span]:
    token = "" if sink.token is None else shorten(visible(sink.token), LONGEST_TOKEN)
    return [
        (printable(sink.block), "bold"),
        (token, ""),
        (amount(sink.relevance, places), ink(sink.relevance)),
        (percent(sink.fraction, 1), ""),
        *_sink_cells(sink),
    ]
