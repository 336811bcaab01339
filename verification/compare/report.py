"""How a comparison is shown: lines for a terminal, and one HTML page with a picture of the error by
site.

Sites, tokens and names of files come from anyone's files: everything passes `printable`, and
`html.escape` after that on a page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from refl.show.lines import Line, Span, folded, paragraph
from refl.show.markup import document, safe, table
from refl.show.text import printable
from refl.verification.compare.comparison import (
    Comparison,
    headline,
    how_it_was_done,
    reasons,
    small,
)
from refl.verification.compare.rounding import SiteError

HEAD = ("site", "operation", "deviation", "relative", "allowed", "cosine", "sum in A", "sum in B")
"""Deviation: the largest at any element. Relative: in units of the largest of A; so is what
rounding allows.
"""
FEW = 6
"""Rows of a table that shows what matters."""


# -- on a terminal ---------------------------------------------------------------------------------


def lines(
    c: Comparison, width: int = 100, every: bool = False, table_width: int | None = None
) -> list[Line]:
    """The whole view; `every` site, or those that matter."""
    head = paragraph(printable(headline(c)), width, "bold", indent="")
    sides = paragraph(printable(f"A: {c.a}   B: {c.b}"), width, "dim", indent="")
    why = [line for text in reasons(c) for line in paragraph(printable(text), width)]
    tail = [
        line for text in how_it_was_done(c) for line in paragraph(printable(text), width, "dim")
    ]
    return [
        *head,
        *sides,
        *([[], *why] if why else []),
        [],
        *_grid(c, shown(c, every), table_width),
        [],
        *tail,
    ]


def shown(c: Comparison, every: bool) -> list[SiteError]:
    """The rows of the table: every site; or, where some part, the last that agrees, the first that
    part and the worst; else the worst.
    """
    errors = [*(e for e in c.forward if e.parts and (every or e is c.first_forward)), *c.errors]
    if every:
        return errors
    worst = sorted(c.errors, key=lambda e: -e.relative)[:3]
    start = max(c.above - 1, 0)
    telling = c.errors[start : start + FEW] if c.first else []
    chosen = {id(e) for e in (*telling, *worst, *errors[: len(errors) - len(c.errors)])}
    return [e for e in errors if id(e) in chosen]


def _grid(c: Comparison, errors: Sequence[SiteError], width: int | None) -> list[Line]:
    head: list[Span] = [(name, "bold") for name in HEAD]
    return folded(
        [head, *([(text, _style(e, i)) for i, text in enumerate(cells(c, e))] for e in errors)],
        "llrrrrrr",
        width,
        2,
    )


def _style(e: SiteError, column: int) -> str:
    return "#d1495b" if e.parts and column in (0, 2, 3) else "cyan" if column == 1 else ""


def cells(c: Comparison, e: SiteError) -> list[str]:
    """A row of the table."""
    name = e.site if e.quantity == "relevance" else f"{e.site} ({e.quantity})"
    operation = c.operations.get(e.site, "").partition(",")[0]
    return [
        printable(name),
        printable(operation),
        small(e.absolute),
        small(e.relative),
        small(e.level),
        _cosine(e.cosine),
        *(f"{s:.6g}" for s in e.sums),
    ]


def _cosine(value: float) -> str:
    if not math.isfinite(value):
        return ""
    away = 1 - value
    return f"{value:.6f}" if away > 1e-6 else f"1 - {away:.0e}" if away > 1e-15 else "1"


# -- a page ----------------------------------------------------------------------------------------


def html(c: Comparison) -> str:
    """One page that needs nothing but itself: no network, no script."""
    title = f"refl compare: {c.a} and {c.b}"
    body = (
        f"<header><h1>{_result(c)}</h1><p>A: <b>{safe(c.a)}</b>, "
        f"the reference. B: <b>{safe(c.b)}</b>.</p></header>\n"
        f"{_html_words(c)}{_html_picture(c)}{_html_sites(c)}{_html_tail(c)}"
    )
    return document(title, body, CSS)


def _result(c: Comparison) -> str:
    if c.equal:
        return "Equal"
    return "They part" if c.parts else "Cannot tell"


def _html_words(c: Comparison) -> str:
    items = "".join(f"<li>{safe(text)}</li>" for text in reasons(c))
    return (
        f'<section><p class="headline">{safe(headline(c))}</p>'
        f"{f'<ul>{items}</ul>' if items else ''}</section>"
    )


def _html_sites(c: Comparison) -> str:
    few, every = (_html_table(c, shown(c, whole)) for whole in (False, True))
    columns = (
        "Deviation: the largest of any element. Relative: the same in units of A's largest "
        "there. Allowed: what rounding explains of it."
    )
    return (
        f'<section><h2>Where it matters</h2><p class="note">{columns}</p>{few}<details>'
        f"<summary>All {len(c.errors)} sites, from the output down</summary>{every}"
        "</details></section>"
    )


def _html_table(c: Comparison, errors: Sequence[SiteError]) -> str:
    rows = [
        [_marked(text, e) if i == 0 else escape(text) for i, text in enumerate(cells(c, e))]
        for e in errors
    ]
    return table(HEAD, rows, (2, 3, 4, 5, 6, 7))


def _marked(text: str, e: SiteError) -> str:
    return f'<code class="{"parts" if e.parts else "agrees"}">{escape(text)}</code>'


def _html_tail(c: Comparison) -> str:
    return (
        "<section><h2>How it was done</h2>"
        + "".join(f'<p class="note">{safe(text)}</p>' for text in how_it_was_done(c))
        + "</section>"
    )


# -- the picture -----------------------------------------------------------------------------------

WIDE, HIGH, LEFT, TOP, BOTTOM = 1000, 350, 70, 16, 56
LEAST = 1e-18
"""What is drawn for no deviation at all."""


def _html_picture(c: Comparison) -> str:
    """Error by site: a stem for each, the level of rounding as a line; log scale."""
    errors = c.errors
    low, high = _decades(errors)
    legend = (
        '<p class="note">Each stem is a site, from the output (left) down to the input '
        "(right): its largest deviation in units of the largest relevance there. The line is "
        "what rounding allows. <span class='key parts'>parts</span> "
        "<span class='key agrees'>agrees</span></p>"
    )
    drawn = _axis(low, high) + _stems(errors, low, high) + _level(errors, low, high) + _first(c)
    label = "deviation at every site on a logarithmic scale, with the level of rounding"
    return (
        f'<section><h2>Error by site</h2>{legend}<div class="scroll"><svg class="errors" '
        f'viewBox="0 0 {WIDE} {HIGH}" role="img" '
        f'aria-label="{label}">{drawn}</svg></div></section>'
    )


def _decades(errors: Sequence[SiteError]) -> tuple[int, int]:
    """The ends of the axis, as powers of ten."""
    values = [v for e in errors for v in (e.relative, e.level) if LEAST < v < math.inf]
    low, high = min(values, default=1e-16), max(values, default=1.0)
    return math.floor(math.log10(low)) - 1, max(
        math.ceil(math.log10(high)), math.floor(math.log10(low)) + 2
    )


def _y(value: float, low: int, high: int) -> float:
    at = math.log10(min(max(value, LEAST), 1e18))
    return TOP + (HIGH - TOP - BOTTOM) * (high - min(max(at, low), high)) / (high - low)


def _x(i: int, count: int) -> float:
    return LEFT + (WIDE - LEFT - 10) * (i + 0.5) / count


def _axis(low: int, high: int) -> str:
    step = max((high - low) // 7, 1)
    marks = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDE - 10}" '
        f'y1="{(y := _y(10.0**n, low, high)):.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">1e{n}</text>'
        for n in range(low, high + 1, step)
    )
    ends = (
        f'<text x="{LEFT}" y="{HIGH - 8}">output</text>',
        f'<text x="{WIDE - 10}" y="{HIGH - 8}" text-anchor="end">input</text>',
    )
    return marks + "".join(ends)


def _stems(errors: Sequence[SiteError], low: int, high: int) -> str:
    floor = HIGH - BOTTOM
    return "".join(
        f'<g class="{"parts" if e.parts else "agrees"}"><title>{safe(e.site)}: '
        f"{small(e.relative)}, rounding allows {small(e.level)}</title>"
        f'<line x1="{(x := _x(i, len(errors))):.1f}" x2="{x:.1f}" y1="{floor}" '
        f'y2="{(y := _y(e.relative, low, high)):.1f}"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6"/></g>'
        for i, e in enumerate(errors)
    )


def _level(errors: Sequence[SiteError], low: int, high: int) -> str:
    points = " ".join(
        f"{_x(i, len(errors)):.1f},{_y(e.level, low, high):.1f}"
        for i, e in enumerate(errors)
        if e.level > 0
    )
    return f'<polyline class="level" points="{points}"/>'


def _first(c: Comparison) -> str:
    """The name of the first site that parts, under its stem."""
    if c.first is None:
        return ""
    x, floor = _x(c.above, len(c.errors)), HIGH - BOTTOM
    anchor = "end" if x > WIDE / 2 else "start"
    return (
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{floor}" y2="{floor + 8}"/>'
        f'<text class="first" x="{x:.1f}" y="{floor + 21}" '
        f'text-anchor="{anchor}">{safe(c.first.site)}</text>'
    )


CSS = """\
.headline { font-size: 1.1rem; overflow-wrap: anywhere; margin: 0 }
li { overflow-wrap: anywhere; margin: .2rem 0 }
svg.errors { max-width: none; min-width: 44rem }
svg.errors .grid { stroke: var(--line) }
svg.errors .agrees line { stroke: var(--neg); opacity: .35 }
svg.errors .parts line { stroke: var(--pos); opacity: .5 }
svg.errors .agrees circle { fill: var(--neg) }
svg.errors .parts circle { fill: var(--pos) }
svg.errors .level { fill: none; stroke: var(--ink); stroke-width: 1.4; stroke-dasharray: 5 3 }
svg.errors .first { font-weight: 600 }
svg.errors .mark { stroke: var(--ink); stroke-width: 1.5 }
table { font-size: .85rem }
th, td { padding-right: .7rem }
td { white-space: nowrap }
code.parts, .key.parts { color: var(--pos) }
.key.agrees { color: var(--neg) }
.key::before { content: "\\25CF  " }
"""
