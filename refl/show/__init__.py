"""How an explanation is shown: lines for a terminal, colored or plain, and one HTML page.

A view is a list of lines and a line a list of spans (text, style). Plain text is the texts alone;
where there is color, rich writes the styles. Tokens come from a checkpoint, names and sources from
anyone's file: everything passes `printable` on its way to a terminal, and `html.escape` after that
on its way to a page.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from html import escape
from textwrap import wrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refl.explanation import Explanation
    from refl.ledger import Entry, Ledger
    from refl.rules.composites import Composite

Span = tuple[str, str]
"""Text that is printable already, and a style of rich's."""
Line = list[Span]

CAUSES = {
    "softmax_offset": "the constant part of softmax's Taylor expansion",
    "norm_offset": "the part of a norm that its rule hands to no input",
    "activation_offset": "what an activation's slope at x does not account for",
    "product_offset": "a product counted once for each factor",
    "stabilizer": "the eps in the denominators",
    "bias": "biases of linear maps",
    "norm_bias": "biases of norms",
    "position": "position embeddings",
    "token_type": "token type embeddings",
    "class_token": "the learned token that stands for the class",
    "distillation_token": "the learned token that stands for the teacher's class",
    "mask": "positions hidden by the mask",
    "constant": "what arrived at something treated as a constant",
}
"""What absorbed relevance, in words."""

NORM = (
    "Scores are lengths of the propagated gradient: they have no sign and do not add up; the "
    "account below is that of x times gradient."
)
LONGEST_TOKEN = 24
COMPACT = 40
"""More tokens than this are shown in columns, and without numbers under the colored text."""


READ, WRITTEN = "read by the encoder", "written by the decoder"
"""Names of the two rows of tokens, where there are two."""


def sides(e: Explanation) -> list[tuple[str, Explanation]]:
    """The rows of tokens there are, each as an explanation whose tokens they are, and a name where
    there are two.
    """
    if e.decoder_tokens is None or e.decoder_ids is None:
        return [("", e)]
    ours = {
        "tokens": e.decoder_tokens,
        "input_ids": e.decoder_ids,
        "relevance": e.decoder_relevance,
    }
    theirs = {
        "decoder_tokens": e.tokens,
        "decoder_ids": e.input_ids,
        "decoder_relevance": e.relevance,
    }
    return [(READ, e), (WRITTEN, replace(e, **ours, **theirs))]


def _both(e: Explanation) -> list[float]:
    """The relevance of every token: rows that stand beside each other are drawn to one scale."""
    return [float(r) for row in (e.relevance, e.decoder_relevance) if row is not None for r in row]


# -- text that is safe to show ---------------------------------------------------------------------


def printable(text: object) -> str:
    """The text with every control, format or unassigned character as its escape: a token must not
    steer a terminal.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text)
    )


def one_line(text: object) -> str:
    """The same on one line, line ends and runs of blanks as one space."""
    return printable(" ".join(str(text).split()))


def cells(text: str) -> int:
    """Columns the text takes in a terminal."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def shorten(text: str, most: int) -> str:
    """The text in at most so many columns; what is left out is marked."""
    if cells(text) <= most:
        return text
    while cells(text) > most - 1:
        text = text[:-1]
    return text + "…"


def _token(text: str) -> str:
    """A token in a table: blanks at its ends are made visible."""
    shown = printable(text)
    inner = shown.strip(" ")
    left = len(shown) - len(shown.lstrip(" "))
    return (
        "␣" * left + inner + "␣" * (len(shown) - left - len(inner)) if inner else "␣" * len(shown)
    )


# -- numbers ---------------------------------------------------------------------------------------


def _strongest(values: Iterable[float]) -> float:
    return max((abs(v) for v in values if math.isfinite(v)), default=0.0)


def _places(largest: float, digits: int) -> int:
    """Decimals for so many significant digits of the largest number."""
    if not 0 < largest < math.inf:
        return digits - 1
    return min(max(digits - 1 - math.floor(math.log10(largest)), 0), 30)


DIGITS = 5
"""Of the strongest token's score."""


def _scores(e: Explanation) -> list[str]:
    values = [float(r) for r in e.relevance]
    places = _places(_strongest(_both(e)), DIGITS)
    sign = "" if e.composite.score == "norm" else "+"
    return [f"{v:{sign}.{places}f}" for v in values]


def adding_up(parts: Sequence[float], total: float, places: int) -> list[str]:
    """The parts and then the total, so rounded that the parts as printed add up to the total as
    printed.

    Where plain rounding misses, the parts nearest to the other side go there: each number is still
    right to a unit of its last place. The last part, the conservation error, is left as it is.
    """
    if not all(map(math.isfinite, (*parts, total))):
        return [f"{v:.{places}f}" for v in (*parts, total)]
    exact = [Decimal(v).scaleb(places) for v in (*parts, total)]
    whole = [int(v.to_integral_value()) for v in exact]
    missing = whole[-1] - sum(whole[:-1])
    step = 1 if missing > 0 else -1
    candidates = sorted(range(max(len(parts) - 1, 1)), key=lambda i: step * (whole[i] - exact[i]))
    for i in candidates[: abs(missing)]:
        whole[i] += step
    return [f"{Decimal(v).scaleb(-places):.{places}f}" for v in whole]


def amount(value: float, places: int) -> str:
    """So many decimals; a number that would show none of its digits there in powers of ten."""
    return f"{value:.1e}" if 0 < abs(value) < 10.0 ** (1 - places) else f"{value:z.{places}f}"


def _percent(part: float, whole: float, scale: float) -> str:
    share = 100 * part / whole if abs(whole) > 1e-3 * scale else math.nan
    return f"{share:z.1f}%" if math.isfinite(share) else ""


# -- the account -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of the account: a part of what is explained, or, last, the whole."""

    name: str
    amount: float
    shown: str
    share: str
    note: str


def account(ledger: Ledger) -> list[Row]:
    """On tokens, absorbed by each cause, conservation error, and what they add up to. Sums over the
    examples of a batch.
    """
    where = ledger.destination
    parts = (
        {where: _sum(ledger.tokens)}
        | {cause: _sum(a) for cause, a in ledger.absorbed.items()}
        | {"conservation_error": _sum(ledger.conservation_error)}
    )
    explained = _sum(ledger.explained)
    scale = _strongest([*parts.values(), explained])
    shown = adding_up(list(parts.values()), explained, _places(scale, 7))
    notes = CAUSES | {
        where: f"what reached the {where}",
        "conservation_error": f"{parts['conservation_error']:.1e}, rounding "
        f"(unit {ledger.roundoff:.0e})",
    }
    rows = [
        Row(name, amount, text, _percent(amount, explained, scale), notes.get(name, "absorbed"))
        for (name, amount), text in zip(parts.items(), shown, strict=False)
    ]
    return [
        *rows,
        Row("explained", explained, shown[-1], _percent(explained, explained, scale), ""),
    ]


def _sum(sums: Any) -> float:
    return float(sum(float(v) for v in sums))


# -- lines -----------------------------------------------------------------------------------------


def plain(lines: Iterable[Line]) -> str:
    """The lines without their styles."""
    return "\n".join("".join(text for text, _ in line).rstrip() for line in lines)


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
    blank, gap = " " * (width - cells(text)), "" if last else "  "
    return (blank + text + gap, style) if align == "r" else (text + blank + gap, style)


def folded(rows: Sequence[Sequence[Span]], align: str, width: int | None, first: int) -> list[Line]:
    """A grid; where it is wider than `width`, two lines a row, of `first` columns and of the rest.
    Nothing is cut.
    """
    whole = grid(rows, align)
    if width is None or not whole or max(cells(plain([line])) for line in whole) <= width:
        return whole
    upper, lower = (
        grid([row[:first] for row in rows], align[:first]),
        grid([row[first:] for row in rows], align[first:]),
    )
    return [line for a, b in zip(upper, lower, strict=True) for line in (a, [("    ", ""), *b])]


def paragraph(text: str, width: int, style: str = "", indent: str = "  ") -> list[Line]:
    """Text that is printable, broken into lines."""
    lines = wrap(text, max(width - len(indent), 20), break_on_hyphens=False)
    return [[(indent, ""), (line, style)] for line in lines]


# -- colors ----------------------------------------------------------------------------------------

Color = tuple[int, int, int]

POSITIVE: list[Color] = [(255, 255, 255), (253, 219, 199), (239, 138, 98), (178, 24, 43)]
NEGATIVE: list[Color] = [(255, 255, 255), (209, 229, 240), (103, 169, 207), (33, 102, 172)]
"""ColorBrewer's RdBu, which the color-blind can tell apart, from nothing to the strongest."""
POSITIVE_DARK: list[Color] = [(24, 26, 31), (84, 34, 34), (176, 62, 56), (255, 150, 130)]
NEGATIVE_DARK: list[Color] = [(24, 26, 31), (24, 52, 86), (48, 108, 176), (140, 195, 255)]
LEVELS = 12


def level(value: float, strongest: float) -> int:
    """-LEVELS ... LEVELS: the value as a step of the palette."""
    return round(LEVELS * value / strongest) if strongest > 0 and math.isfinite(value) else 0


def background(
    step: int, positive: list[Color] = POSITIVE, negative: list[Color] = NEGATIVE
) -> Color:
    """The color of a level."""
    ramp = positive if step > 0 else negative
    at = abs(step) / LEVELS * (len(ramp) - 1)
    i = min(int(at), len(ramp) - 2)
    red, green, blue = (
        round(x + (y - x) * (at - i)) for x, y in zip(ramp[i], ramp[i + 1], strict=True)
    )
    return red, green, blue


def foreground(back: Color) -> Color:
    """Black or white, whichever stands out more from the background."""
    return max(((0, 0, 0), (255, 255, 255)), key=lambda c: contrast(c, back))


def contrast(a: Color, b: Color) -> float:
    """The contrast ratio of WCAG 2, 1 to 21."""
    light, dark = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(color: Color) -> float:
    r, g, b = (c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def hexa(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


POSITIVE_TERMINAL: list[Color] = [(244, 165, 130), (214, 96, 77), (178, 24, 43)]
NEGATIVE_TERMINAL: list[Color] = [(146, 197, 222), (67, 147, 195), (33, 102, 172)]
FAINT = 2
"""Levels up to this are colored letters where the background is not known: a pale one would shine
on a dark terminal.
"""


def _chip_style(step: int) -> str:
    """Letters in a color for the weak, a background for the strong; reads the same on a light and
    on a dark terminal.
    """
    if abs(step) <= FAINT:
        return _ink(step)
    back = background(step, POSITIVE_TERMINAL, NEGATIVE_TERMINAL)
    return f"{hexa(foreground(back))} on {hexa(back)}"


def _ink(value: float) -> str:
    """Red and blue that read on black and on white."""
    return "#d1495b" if value > 0 else "#3b7dd8" if value < 0 else ""


# -- an explanation in a terminal ------------------------------------------------------------------


def terminal(e: Explanation, width: int = 80) -> list[Line]:
    """The whole view of an explanation."""
    parts = [
        terminal_head(e, width),
        *([_patches(e, width)] if e.picture is not None else ()),
        *(
            part
            for name, side in sides(e)
            if e.picture is None
            for part in (_flow(side, width, name), _bars(side, width))
        ),
        _account(e.ledger, quantity(e), width),
        _candidates(e),
        method_lines(e.composite, width),
    ]
    return [line for part in parts for line in ([], *part)][1:]


def text(e: Explanation, width: int = 80) -> str:
    """The view without color."""
    return plain(terminal(e, width))


def terminal_head(e: Explanation, width: int) -> list[Line]:
    """What is explained, and by what."""
    about = [
        *(e.about.get(key, "") for key in ("model", "architecture", "dtype")),
        e.composite.name,
    ]
    return [
        *paragraph(f"{quantity(e)} = {amount(e.explained, 4)}", width, "bold", indent=""),
        *paragraph(facts(e), width, indent=""),
        *paragraph(" · ".join(one_line(a) for a in about if a), width, "dim", indent=""),
    ]


def quantity(e: Explanation) -> str:
    """What the account adds up to, in words."""
    if e.seed == "log-probability":
        return printable(f"log-probability of {e.target!r}, linearized")
    return printable(
        f"softmax-weighted relevance of {e.target!r}" if e.seed == "probability" else e.what
    )


def facts(e: Explanation) -> str:
    """What the model gives the target."""
    if e.seed == "activation":
        return printable(f"{e.target} is {e.logit:.4f}")
    return printable(f"{e.target!r} has logit {e.logit:.4f} and probability {e.probability:.2%}")


def joiner(tokens: Sequence[str]) -> str:
    """What stands between tokens: nothing where they bring their own blanks, else one."""
    return "" if any(t[:1].isspace() or t[-1:].isspace() for t in tokens) else " "


def _flow(e: Explanation, width: int, name: str = "") -> list[Line]:
    """The input as running text, its tokens colored; a line ends after a token that ends one."""
    strongest, between = _strongest(_both(e)), joiner(e.tokens)
    lines: list[Line] = [[("  ", "")]]
    for token, r in zip(e.tokens, e.relevance, strict=True):
        style = _chip_style(level(float(r), strongest))
        for piece in _pieces(printable(token), width - 4):
            if cells(plain([lines[-1]])) + cells(piece) > width - 2:
                lines.append([("  ", "")])
            lines[-1].append((piece, style))
        lines[-1].append((between, ""))
        if token.endswith("\n"):
            lines.append([("  ", "")])
    arrow = "" if name == READ else f" → {_token(e.target)}"
    if cells(plain([lines[-1]])) + cells(arrow) > width:
        lines.append([("  ", "")])
    title: list[Line] = [[(name, "bold")]] if name else []
    return title + [line for line in [*lines[:-1], [*lines[-1], (arrow, "bold")]] if len(line) > 1]


def _pieces(text: str, most: int) -> list[str]:
    """A text in pieces of at most so many columns."""
    pieces = [""]
    for c in text:
        if cells(pieces[-1]) + cells(c) > max(most, 8):
            pieces.append("")
        pieces[-1] += c
    return pieces


NINTHS = 9


def _patches(e: Explanation, width: int) -> list[Line]:
    """The patches of a picture where they lie, each with its relevance in ninths of the strongest
    patch.
    """
    times = max(
        -(-2 * e.patches.shape[1] // (width - 2)), 1
    )  # of a very fine grid, squares of patches
    rows = _summed(e.patches, times)
    strongest = _strongest(v for row in rows for v in row)
    each = 3 if 3 * len(rows[0]) <= width - 2 else 2
    lines: list[Line] = [[("  ", ""), *(_patch(v, strongest, each) for v in row)] for row in rows]
    unit = f"{strongest:.{_places(strongest, DIGITS)}f}"
    what = f"{len(rows)} x {len(rows[0])} " + (
        "patches" if times < 2 else f"squares of {times} x {times} patches"
    )
    note = [
        f"{what} in ninths of the strongest, {unit}",
        *([NORM] if e.composite.score == "norm" else []),
    ]
    return [*lines, *(line for one in note for line in paragraph(one, width, "dim"))]


def _patch(value: float, strongest: float, width: int) -> Span:
    ninths = round(NINTHS * value / strongest) if strongest > 0 and math.isfinite(value) else 0
    return (f"{ninths:+d}" if ninths else ".").rjust(width), _chip_style(level(value, strongest))


def _summed(r: Any, times: int) -> list[list[float]]:
    """Squares of so many patches as one; at the right and at the bottom what is left."""
    rows, columns = (range(0, n, times) for n in r.shape)
    return [[float(r[i : i + times, j : j + times].sum()) for j in columns] for i in rows]


def _bars(e: Explanation, width: int) -> list[Line]:
    """Every token with its number and a bar to the right (for) or to the left (against) of the
    axis.
    """
    values = [float(r) for r in e.relevance]
    numbers, compact = _scores(e), len(values) > COMPACT
    rows: list[list[Span]] = [
        [(str(i), "dim"), (shorten(_token(token), LONGEST_TOKEN), ""), (number, _ink(v))]
        for i, (token, number, v) in enumerate(zip(e.tokens, numbers, values, strict=True))
    ]
    table = grid(rows, "rlr")
    room = 12 if compact else min(max(width - cells(plain([table[0]])) - 6, 8), 48)
    lines = [
        [("  ", ""), *line, ("  ", ""), *bar]
        for line, bar in zip(table, _drawn(values, room, _both(e)), strict=True)
    ]
    note = paragraph(NORM, width, "italic") if e.composite.score == "norm" else []
    return note + (_side_by_side(lines, width) if compact else lines)


def _drawn(values: Sequence[float], room: int, scale: Sequence[float]) -> list[Line]:
    """Bars to one scale, on which all values of `scale` fit in so many columns and an axis."""
    finite, fit = ([v if math.isfinite(v) else 0.0 for v in some] for some in (values, scale))
    most, least = max(0.0, *fit), -min(0.0, *fit)
    unit = room / ((most + least) or 1.0)
    left = round(least * unit)
    return [
        [
            (("▒" * round(-v * unit)).rjust(left), _ink(-1)),
            ("│", "dim"),
            (("█" * round(v * unit)).ljust(room - left), _ink(1)),
        ]
        for v in finite
    ]


def _side_by_side(lines: list[Line], width: int) -> list[Line]:
    """Equal lines in as many columns as fit, read downwards."""
    each = max(cells("".join(text for text, _ in line)) for line in lines) + 1
    columns = max(width // each, 1)
    height = -(-len(lines) // columns)
    return [[span for line in lines[i::height] for span in line] for i in range(height)]


def _account(ledger: Ledger, what: str, width: int) -> list[Line]:
    """The account as a table that adds up, a rule above its total."""
    rows = account(ledger)
    style = {"explained": "bold"}
    books = grid(
        [
            [
                (printable(r.name), style.get(r.name, "")),
                (r.shown, style.get(r.name, "")),
                (r.share, "dim"),
            ]
            for r in rows
        ],
        "lrr",
    )
    rule: Line = [("  " + "─" * (sum(cells(text) for text, _ in books[0][:2]) - 2), "dim")]
    noted = [
        _noted([("  ", ""), *line], row.note or what, width)
        for line, row in zip(books, rows, strict=True)
    ]
    return [line for part in [*noted[:-1], [rule], noted[-1]] for line in part]


def _noted(line: Line, note: str, width: int) -> list[Line]:
    """A line with a note in what room there is beside it; without, where there is too little."""
    start = cells(plain([line])) + 2
    notes = wrap(note, width - start) if width - start >= 16 else []
    first: Line = [*line, ("  " + notes[0], "dim")] if notes else line
    return [first, *([(" " * start + more, "dim")] for more in notes[1:])]


def _candidates(e: Explanation) -> list[Line]:
    if e.seed == "activation":
        return []
    head: list[list[Span]] = [
        [(name, "dim") for name in (_outputs(e), "id", "logit", "probability", "")]
    ]
    rows = [
        [
            (shorten(_token(token), LONGEST_TOKEN), "bold" if mark else ""),
            (str(i), "dim"),
            (f"{z:.4f}", ""),
            (f"{p:.2%}", ""),
            (mark, "dim"),
        ]
        for token, i, z, p, mark in _considered(e)
    ]
    return [[("  ", ""), *line] for line in grid(head + rows, "lrrrl")]


def _outputs(e: Explanation) -> str:
    """What the candidates are."""
    return {"class": "class", "image-class": "class", "masked-token": "masked token"}.get(
        e.about.get("task", ""), "next token"
    )


def _considered(e: Explanation) -> list[tuple[str, int, float, float, str]]:
    """The candidates, and the target where it is none of them, each with what it is here."""
    found = [
        (
            c.token,
            c.id,
            c.logit,
            c.probability,
            "explained" if c.id == e.target_id else _role(c.token, e),
        )
        for c in e.candidates
    ]
    if all(c.id != e.target_id for c in e.candidates):
        found.append((e.target, e.target_id, e.logit, e.probability, "explained"))
    return found


def _role(token: str, e: Explanation) -> str:
    return "against" if token == e.against else ""


def method_lines(c: Composite, width: int) -> list[Line]:
    """A method by name, with its summary and its source."""
    form = "gradient x input form" if c.formulation == "gradient_x_input" else "relevance form"
    head: Line = [("  ", ""), (one_line(c.name), "bold"), (f"  {form}", "dim")]
    return [
        head,
        *(paragraph(one_line(c.summary), width) if c.summary else []),
        *(paragraph(one_line(c.source), width, "dim") if c.source else []),
    ]


# -- ledgers and tables of operations --------------------------------------------------------------

LEDGER_HEAD = (
    "site",
    "operation",
    "rule",
    "received",
    "passed on",
    "absorbed",
    "conservation_error",
    "by cause",
)


def ledger_table(ledger: Ledger) -> str:
    """The account, then every site from the output down: received, passed on, absorbed,
    conservation error.
    """
    several = len(ledger.explained) > 1
    note = (
        f"{len(ledger.explained)} examples, sums over all of them; ledger.example(b) has "
        "the conservation ledger of one"
        if several
        else ""
    )
    head: list[Line] = [[(note, "")], []] if several else []
    return plain([*head, *_account(ledger, "", 100), [], *grid(_ledger_rows(ledger), "lllrrrrl")])


def _ledger_rows(ledger: Ledger) -> list[list[Span]]:
    places = _places(_strongest([float(v) for e in ledger for v in e.received] or [0.0]), 7)
    head: list[Span] = [(name, "dim") for name in LEDGER_HEAD]
    return [
        head,
        *([(site_text, "") for site_text in entry_cells(entry, places)] for entry in ledger),
    ]


def entry_cells(entry: Entry, places: int) -> list[str]:
    """Site, operation, rule, received, passed on, absorbed, conservation error, and what absorbed
    it.
    """
    causes = {cause: _sum(a) for cause, a in entry.absorbed.items()}
    causes = {cause: a for cause, a in causes.items() if a != 0}
    numbers = (
        _sum(entry.received),
        math.fsum(_sum(p) for p in entry.passed.values()),
        math.fsum(causes.values()),
    )
    return [
        printable(entry.site), entry.operation, entry.rule,
        *(amount(v, places) for v in numbers), _gap(_sum(entry.conservation_error)),
        ", ".join(f"{cause} {amount(a, places)}" for cause, a in causes.items()),
    ]  # fmt: skip


def operations(rows: Sequence[dict[str, Any]], width: int | None) -> list[Line]:
    """The table of `refl trace`: one dictionary an operation, in forward order."""
    places = _places(
        _strongest([row["received"] for row in rows if row["received"] is not None]), 6
    )
    head: list[Span] = [
        (n, "bold")
        for n in (
            "site",
            "operation",
            "shape",
            "rule",
            "received",
            "passed on",
            "conservation_error",
            "absorbed",
        )
    ]
    return folded([head, *(_operation(row, places) for row in rows)], "llllrrrl", width, 4)


def _operation(row: dict[str, Any], places: int) -> list[Span]:
    shape = "×".join(map(str, row["shape"])) or "1"
    known: list[Span] = [(printable(row["site"]), ""), (row["operation"], "cyan"), (shape, "dim")]
    if row["received"] is None:
        return [*known, ("no relevance", "dim"), ("", ""), ("", ""), ("", ""), ("", "")]
    causes = ", ".join(
        f"{cause} {amount(a, places)}" for cause, a in row["absorbed"].items() if a != 0
    )
    received, given = (
        amount(row["received"], places),
        amount(math.fsum(row["passed"].values()), places),
    )
    return [
        *known,
        (row["rule"], ""),
        (received, ""),
        (given, ""),
        (_gap(row["conservation_error"]), "dim"),
        (causes, ""),
    ]


def _gap(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def composite_table(composite: Composite, width: int | None) -> list[Line]:
    """Every line of a composite's table, with every option."""
    head: list[Span] = [(name, "bold") for name in ("operation", "site", "rule", "options")]
    rows = [
        [
            (printable(line["operation"]), "cyan"),
            (printable(line["site"]), ""),
            (line["rule"], ""),
            (_options(line["options"]), "dim"),
        ]
        for line in composite.as_dict()["rules"]
    ]
    return folded([head, *rows], "llll", width, 3)


def _options(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={printable(value)}" for key, value in options.items())


def kept(e: Explanation) -> dict[str, dict[str, Any]]:
    """Site -> shape, sum and extremes of the relevance there, for the sites that were kept."""
    return {
        site: {
            "shape": list(r.shape),
            "sum": float(r.sum()),
            "least": float(r.min()),
            "most": float(r.max()),
        }
        for site in e
        if (r := e[site]).size
    }


def kept_table(e: Explanation, width: int | None) -> list[Line]:
    """The same as a table."""
    head: list[Span] = [
        (name, "bold") for name in ("kept site", "shape", "sum of relevance", "least", "most")
    ]
    rows: list[list[Span]] = [
        [
            (printable(site), ""),
            ("×".join(map(str, k["shape"])), "dim"),
            *((f"{k[name]:.6g}", "") for name in ("sum", "least", "most")),
        ]
        for site, k in kept(e).items()
    ]
    return folded([head, *rows], "llrrr", width, 2)


# -- HTML ------------------------------------------------------------------------------------------

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)


def html(e: Explanation) -> str:
    """One page that needs nothing but itself: no network, no script."""
    title = f"refl: {quantity(e)}"
    sections = [
        _html_text(e) if e.picture is None else _html_heatmap(e),
        '<div class="two">' + _html_account(e) + _html_candidates(e) + "</div>",
        _html_numbers(e) if e.picture is None else _html_patches(e),
        _html_method(e),
        _html_ledger(e),
        _html_about(e),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta '
        'name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_CSS}{_levels_css()}</style>\n</head>\n<body>\n<main>\n"
        + _html_head(e)
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def fragment(e: Explanation) -> str:
    """The colored text and the account for a notebook: inline styles only, on whatever background
    it has.
    """
    box = "font-family:system-ui,sans-serif;line-height:1.9;max-width:60em"
    rows = "".join(
        f'<tr><td style="text-align:left">{_safe(r.name)}</td><td style="{_NUMERIC}">{r.shown}</td>'
        f'<td style="{_NUMERIC};opacity:.7">{r.share}</td><td '
        f'style="text-align:left;opacity:.7">{_safe(r.note)}</td></tr>'
        for r in account(e.ledger)
    )
    rows_of_tokens = (
        _html_image(e)
        if e.picture is not None
        else "".join(_inline_row(name, side) for name, side in sides(e))
    )
    note = f"<div><em>{_safe(NORM)}</em></div>" if e.composite.score == "norm" else ""
    return (
        f'<div style="{box}"><div><strong>{escape(quantity(e))} = '
        f'{amount(e.explained, 4)}</strong> <span style="opacity:.7">'
        f"{escape(facts(e))}; {_safe(e.composite.name)}</span></div>"
        f'{rows_of_tokens}{note}<table style="color:inherit">{rows}</table></div>'
    )


def _inline_row(name: str, e: Explanation) -> str:
    chip = _inline if joiner(e.tokens) else _inline_tight
    title = f'<div style="opacity:.7">{name}</div>' if name else ""
    return f'{title}<div style="overflow-wrap:anywhere">{_html_tokens(e, chip)}</div>'


_NUMERIC = "text-align:right;font-variant-numeric:tabular-nums"


def _safe(text: object) -> str:
    """Printable, and nothing in it is markup."""
    return escape(printable(text))


def _inline(step: int, padding: str = ".2em") -> str:
    """The colors of a terminal, for the same reason: a notebook's background is not known here."""
    style = f"padding:.1em {padding};white-space:pre-wrap"
    if abs(step) > FAINT:
        back = background(step, POSITIVE_TERMINAL, NEGATIVE_TERMINAL)
        style += f";border-radius:{padding};background:{hexa(back)};color:{hexa(foreground(back))}"
    elif step:
        style += f";color:{_ink(step)}"
    return f'style="{style}"'


def _inline_tight(step: int) -> str:
    """Pieces of words stand side by side."""
    return _inline(step, "0")


def _by_class(step: int) -> str:
    return f'class="t {_level_class(step)}" tabindex="0"'


def _level_class(step: int) -> str:
    return f"p{step}" if step > 0 else f"n{-step}" if step < 0 else "z"


def _html_tokens(e: Explanation, attributes: Any, numbers: bool = False) -> str:
    strongest, between = _strongest(_both(e)), joiner(e.tokens)
    spans = []
    for i, (token, number, r) in enumerate(zip(e.tokens, _scores(e), e.relevance, strict=True)):
        tip = f"token {i}, id {e.input_ids[i]}: relevance {number}"
        under = f"<small>{number}</small>" if numbers else ""
        ended = "<br>" if token.endswith("\n") else ""
        spans.append(
            f"<span {attributes(level(float(r), strongest))} "
            f'title="{tip}">{_safe(token)}{under}</span>{ended}'
        )
    return (between or "<wbr>").join(spans)


def _html_head(e: Explanation) -> str:
    return (
        f"<header><h1>{escape(quantity(e))} = "
        f"{amount(e.explained, 4)}</h1><p>{escape(facts(e))}. Explained by "
        f"<b>{_safe(e.composite.name)}</b> on "
        f"{_safe(e.about.get('model') or 'a model')}.</p></header>\n"
    )


def _html_text(e: Explanation) -> str:
    note = f'<p class="note">{_safe(NORM)}</p>' if e.composite.score == "norm" else ""
    return f"<section>{''.join(_html_row(name, side) for name, side in sides(e))}{_html_legend(e)}{note}</section>"


COLORS = (NEGATIVE[-1], POSITIVE[-1])
"""Of a drawing: against, and for."""


def png(e: Explanation) -> bytes:
    """The heatmap over the picture, as a PNG file."""
    from refl.show import heatmap

    return heatmap.png(e.relevance, e.picture, COLORS)


def _html_image(e: Explanation) -> str:
    from refl.show import heatmap

    height, width = e.relevance.shape
    source = heatmap.data_uri(e.relevance, e.picture, COLORS)
    said = f"the picture, {height} by {width} pixels, colored by relevance for {e.target!r}"
    return (
        f'<img src="{source}" alt="{_safe(said)}" style="max-width:100%;image-rendering:pixelated">'
    )


def _html_heatmap(e: Explanation) -> str:
    from refl.show import heatmap

    most = heatmap.strongest(e.relevance)
    note = f'<p class="note">{_safe(NORM)}</p>' if e.composite.score == "norm" else ""
    hot = (
        f"stronger than {most:.3g} are {1 - heatmap.QUANTILE:.1%} of the pixels: they are "
        "drawn no darker"
    )
    ramp = f"background:linear-gradient(90deg,{hexa(COLORS[0])},#ebebeb,{hexa(COLORS[1])})"
    legend = (
        f'<span>-{most:.3g} against</span><span class="ramp" '
        f'style="{ramp};width:15rem;height:.8rem"></span><span>+{most:.3g} for</span>'
    )
    return (
        f'<section>{_html_image(e)}<div class="legend">{legend}</div><p '
        f'class="note">{hot}</p>{note}</section>'
    )


def _html_patches(e: Explanation) -> str:
    r = e.patches
    strongest = _strongest(float(v) for v in r.flat)
    places = _places(strongest, 3)
    rows = "".join(
        "<tr>"
        + "".join(
            f'<td class="t {_level_class(level(float(v), strongest))}">{float(v):+.{places}f}</td>'
            for v in row
        )
        + "</tr>"
        for row in r
    )
    table = f'<div class="scroll"><table class="patches">{rows}</table></div>'
    return (
        f"<section><details><summary>Every patch as a number</summary>{table}</details></section>"
    )


def _html_row(name: str, e: Explanation) -> str:
    few = len(e.tokens) <= COMPACT
    tokens = _html_tokens(e, _by_class, numbers=few)
    target = "" if name == READ else f' <span class="target">→ {_safe(_token(e.target))}</span>'
    kind = " few" if few else " tight" if joiner(e.tokens) == "" else ""
    title = f'<p class="note">{name}</p>' if name else ""
    return f'{title}<div class="text{kind}">{tokens}{target}</div>'


def _html_legend(e: Explanation) -> str:
    strongest = _strongest(_both(e))
    places = _places(strongest, DIGITS)
    norm = e.composite.score == "norm"
    steps = range(0 if norm else -LEVELS, LEVELS + 1)
    swatches = "".join(f'<i class="{_level_class(s)}"></i>' for s in steps)
    low, high = (
        ("0", f"{strongest:.{places}f}")
        if norm
        else (f"-{strongest:.{places}f} against", f"+{strongest:.{places}f} for")
    )
    return (
        f'<div class="legend"><span>{low}</span><span '
        f'class="ramp">{swatches}</span><span>{high}</span></div>'
    )


def _table(
    head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = (), css: str = ""
) -> str:
    """Cells are HTML already."""
    kind = ["num" if i in numeric else "" for i in range(len(head))]
    top = "".join(f'<th class="{k}" scope="col">{h}</th>' for k, h in zip(kind, head, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{k}">{c}</td>' for k, c in zip(kind, row, strict=True))
        + "</tr>\n"
        for row in rows
    )
    return (
        '<div class="scroll"><table '
        f'class="{css}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _html_account(e: Explanation) -> str:
    rows = account(e.ledger)
    cells_ = [(_safe(r.name), r.shown, r.share, _safe(r.note) or escape(quantity(e))) for r in rows]
    table = _table(
        ("part", e.seed if e.against is None else "logits", "share", ""), cells_, (1, 2), "account"
    )
    return f"<section><h2>The account</h2>{_html_picture(rows)}{table}</section>"


def _html_picture(rows: Sequence[Row]) -> str:
    """The account as bars from one zero line, drawn to one scale."""
    amounts = [r.amount if math.isfinite(r.amount) else 0.0 for r in rows]
    low, high = min(0.0, *amounts), max(0.0, *amounts)
    unit = 340 / ((high - low) or 1.0)
    zero = 130 - low * unit
    bars = "".join(
        _html_bar(i, row, amount, zero, unit)
        for i, (row, amount) in enumerate(zip(rows, amounts, strict=True))
    )
    height = 20 * len(rows)
    axis = f'<line x1="{zero:.1f}" x2="{zero:.1f}" y1="0" y2="{height}"/>'
    return (
        f'<svg viewBox="0 0 480 {height}" role="img" aria-label="the parts of the account as '
        f'bars">{bars}{axis}</svg>'
    )


def _html_bar(i: int, row: Row, amount: float, zero: float, unit: float) -> str:
    kind = "whole" if row.name == "explained" else "pos" if amount >= 0 else "neg"
    left, wide = zero + min(amount, 0.0) * unit, abs(amount) * unit
    return (
        f'<text x="122" y="{20 * i + 14}" text-anchor="end">{_safe(row.name)}</text>'
        f'<rect class="{kind}" x="{left:.2f}" y="{20 * i + 3}" width="{wide:.2f}" '
        f'height="14"><title>{row.shown}</title></rect>'
    )


def _html_candidates(e: Explanation) -> str:
    if e.seed == "activation":
        return ""
    rows = [
        (f"<code>{_safe(_token(t))}</code>", str(i), f"{z:.4f}", f"{p:.2%}", mark)
        for t, i, z, p, mark in _considered(e)
    ]
    name = _outputs(e)
    return (
        "<section><h2>The "
        f"{name}</h2>{_table((name.rpartition(' ')[2], 'id', 'logit', 'probability', ''), rows, (1, 2, 3))}</section>"
    )


def _html_numbers(e: Explanation) -> str:
    tables = "".join(
        (f'<p class="note">{name}</p>' if name else "") + _html_number_rows(side)
        for name, side in sides(e)
    )
    return (
        f"<section><details><summary>Every token as a number</summary>{tables}</details></section>"
    )


def _html_number_rows(e: Explanation) -> str:
    strongest = _strongest(_both(e))
    rows = [
        (
            str(i),
            f"<code>{_safe(_token(token))}</code>",
            str(number),
            score,
            _html_meter(float(r), strongest),
        )
        for i, (token, number, score, r) in enumerate(
            zip(e.tokens, e.input_ids, _scores(e), e.relevance, strict=True)
        )
    ]
    return _table(("", "token", "id", "relevance", ""), rows, (0, 2, 3))


def _html_meter(value: float, strongest: float) -> str:
    share = value / strongest if strongest > 0 and math.isfinite(value) else 0.0
    left, wide = 60 + min(share, 0.0) * 60, abs(share) * 60
    kind = "pos" if share >= 0 else "neg"
    return (
        '<svg class="meter" viewBox="0 0 120 12" aria-hidden="true">'
        f'<rect class="{kind}" x="{left:.1f}" y="1" width="{wide:.1f}" height="10"/>'
        '<line x1="60" x2="60" y1="0" y2="12"/></svg>'
    )


def _html_method(e: Explanation) -> str:
    c = e.composite
    rows = [
        (
            _safe(line["operation"]),
            f"<code>{_safe(line['site'])}</code>",
            _safe(line["rule"]),
            _safe(_options(line["options"])),
        )
        for line in c.as_dict()["rules"]
    ]
    return (
        f"<section><h2>The method: {_safe(c.name)}</h2><p>{_safe(c.summary)}</p><p "
        f"class='note'>{_safe(c.source)}</p>"
        f"<p>Formulation: {_safe(c.formulation)}. The first line that fits an operation "
        "gives its rule.</p>"
        "<details><summary>The table of rules, with every option</summary>"
        f"{_table(('operation', 'site', 'rule', 'options'), rows)}</details></section>"
    )


def _html_ledger(e: Explanation) -> str:
    places = _places(
        _strongest([float(v) for entry in e.ledger for v in entry.received] or [0.0]), 7
    )
    rows = [tuple(_safe(cell) for cell in entry_cells(entry, places)) for entry in e.ledger]
    table = _table(LEDGER_HEAD, rows, (3, 4, 5, 6))
    return (
        "<section><h2>The conservation ledger</h2><p>At every operation: received = passed "
        "on + absorbed + conservation error.</p>"
        f"<details><summary>{len(rows)} operations, from the output "
        f"down</summary>{table}</details></section>"
    )


def _html_about(e: Explanation) -> str:
    facts = e.provenance | {
        "method": e.composite.name,
        "seed": e.seed,
        "target": f"{e.target!r} (id {e.target_id})",
    }
    facts |= {"against": repr(e.against)} if e.against is not None else {}
    facts |= {"token ids": " ".join(map(str, e.input_ids))} if e.picture is None else {}
    facts |= {"decoder ids": " ".join(map(str, e.decoder_ids))} if e.decoder_ids is not None else {}
    rows = "".join(f"<dt>{_safe(key)}</dt><dd>{_safe(value)}</dd>" for key, value in facts.items())
    return f"<section><h2>To do it again</h2><dl>{rows}</dl></section>"


def _levels_css() -> str:
    """A class for each level, light and dark, with the text color that stands out from it."""
    steps = [s for s in range(-LEVELS, LEVELS + 1) if s]
    light = "\n".join(_level_css(s, background(s)) for s in steps)
    dark = "\n".join(_level_css(s, background(s, POSITIVE_DARK, NEGATIVE_DARK)) for s in steps)
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"


def _level_css(step: int, back: Color) -> str:
    return f".{_level_class(step)} {{ background: {hexa(back)}; color: {hexa(foreground(back))} }}"


_CSS = """\
:root { --page: #ffffff; --ink: #1a1c20; --soft: #5a606b; --line: #d9dce1; --pos: #b2182b; --neg: #2166ac; --whole: #5a606b }
@media (prefers-color-scheme: dark) {
  :root { --page: #181a1f; --ink: #e8e9ec; --soft: #a2a8b4; --line: #3a3e47; --pos: #ff8a75; --neg: #7fb8f5; --whole: #a2a8b4 }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; margin: 0 0 .6rem }
header p { margin: .2rem 0 0; color: var(--soft); overflow-wrap: anywhere }
section { margin-top: 2rem; min-width: 0 }
.two { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 0 2.5rem }
@media (max-width: 60rem) { .two { grid-template-columns: minmax(0, 1fr) } }
.text { font-size: 1.15rem; line-height: 1.9; overflow-wrap: anywhere }
.text.few { line-height: 1.3 }
.t { white-space: pre-wrap; border-radius: .2em; padding: .1em .22em; box-decoration-break: clone; -webkit-box-decoration-break: clone }
.tight .t { padding-inline: 0; border-radius: 0 }
.few .t { display: inline-block; text-align: center; padding: .2em .45em; margin: 0 0 .35em }
.t small { display: block; font-size: .68rem; font-variant-numeric: tabular-nums }
.t:hover, .t:focus { outline: 2px solid var(--ink); outline-offset: 1px }
.z small { color: var(--soft) }
.target { display: inline-block; font-weight: 600; margin-left: .3em }
.legend { display: flex; flex-wrap: wrap; gap: .2rem .6rem; align-items: center; margin-top: 1rem; color: var(--soft); font-size: .85rem }
.ramp { display: inline-flex; border: 1px solid var(--line) }
.ramp i { width: .6rem; height: .8rem }
.note { color: var(--soft); overflow-wrap: anywhere }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem }
th { text-align: left; font-weight: 600; color: var(--soft); white-space: nowrap }
th, td { padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.patches td { padding: .3rem .4rem; border: 0; border-radius: 0; text-align: right; font-variant-numeric: tabular-nums }
.account td:last-child { color: var(--soft) }
.account tr:last-child td { border-top: 2px solid var(--ink); border-bottom: 0; font-weight: 600 }
code { font: .95em ui-monospace, monospace; white-space: pre-wrap }
summary { cursor: pointer; padding: .3rem 0 }
svg { display: block; width: 100%; max-width: 34rem; margin-bottom: .8rem }
svg.meter { width: 7.5rem; height: .75rem; margin: .3rem 0 0 }
svg text { font: 13px system-ui, sans-serif; fill: var(--ink) }
svg line { stroke: var(--soft) }
svg .pos { fill: var(--pos) }
svg .neg { fill: var(--neg) }
svg .whole { fill: var(--whole) }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .2rem 1rem; margin: 0; font-size: .9rem }
dt { color: var(--soft) }
dd { margin: 0; overflow-wrap: anywhere; font-family: ui-monospace, monospace }
@media print { details > * { display: block } }
"""
