"""Explanations as a picture for a paper: SVG, PDF, and a snippet for LaTeX. One, or several methods
of one input below each other.

The sign of a token is shown twice: red or blue, and a line below the token (for) or above it
(against), which a gray print keeps. Letters are black or white, whichever stands out more from
their cell (WCAG 2: 4.5 : 1 or more). The strongest color is max |R|, which the scale says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from textwrap import wrap
from typing import Any

import numpy as np

from refl.errors import ReflError, argument
from refl.explanation import Explanation
from refl.show import drawing, heatmap, tex
from refl.show.account import (
    DECODER,
    all_scores,
    joiner,
    legend,
    quantity,
    row_of_decoder,
    rows_of_tokens,
    unit,
)
from refl.show.colors import LEVELS, background, foreground, level
from refl.show.drawing import ADVANCE, BLACK, Box, Drawing, Part, Pixels, Words
from refl.show.numbers import amount, decimals, strongest
from refl.show.text import cells, one_line, printable, shorten

WIDE = 468.0
"""Points: the text of a page."""
MARGIN, SIZE, SMALL = 6.0, 9.0, 7.0
CELL, LEAD, PAD, MARK = 16.0, 19.0, 1.5, 1.1
"""Height of a cell, from line to line, beside the letters, thickness of a mark."""
SCALES = ("own", "shared")
UNITS = {"logit": "logit", "log-probability": "nat", "probability": "softmax-weighted logit"}
APART = {"own": "in the method's own unit", "nat": "nat of cross-entropy"}
MOST_PATCHES = 40
"""On an edge, for a sign to be legible in each."""


@dataclass(frozen=True)
class Comparison:
    """Explanations of one input, each by its method; `scale` says whose max |R| is the strongest
    color: each one's own, or that of all.
    """

    explanations: tuple[Explanation, ...]
    scale: str = "own"

    def svg(self) -> str:
        """As SVG: text is text, and nothing but the file is needed."""
        return drawing.svg(_drawing(self, str))

    def pdf(self) -> bytes:
        """As PDF, fonts embedded; characters that the font lacks as their escapes. Raises ReflError
        where matplotlib (the extra `figures`) is not installed.
        """
        return drawing.pdf(_drawing(self, drawing.embeddable()))

    def tex(self) -> str:
        """For \\input in LaTeX, needs \\usepackage{xcolor}. Raises ReflError for pictures."""
        if self.explanations[0].picture is not None:
            raise ReflError("a picture is not written as TeX: write a PDF and include that")
        return tex.document([tex.Panel(*panel) for panel in _panels_in_words(self)])

    def most(self, e: Explanation) -> float:
        """What is drawn in the strongest color."""
        return max(map(_most, self.explanations if self.scale == "shared" else [e]))


def compare(explanations: Sequence[Explanation], scale: str = "own") -> Comparison:
    """Several methods of one input, side by side. Raises ReflError where they explain different
    things, where a score is no number, and for a shared scale of scores without and with a sign,
    or of several units.
    """
    every = tuple(explanations)
    if not every or not all(isinstance(e, Explanation) for e in every):
        raise ReflError(f"{argument('explanations')}: expected one explanation or more")
    if scale not in SCALES:
        raise ReflError(f"{argument('scale')} is {scale!r}: expected own or shared")
    if any(e.image is not None for e in every):
        raise ReflError(
            "a figure has a text or a picture, and here a picture is compared with texts: draw "
            "e.of_picture or one of e.of_texts, or take --html, which has both"
        )
    for e in every:
        _refuse(e, every[0])
    if scale == "shared" and len({e.method.score for e in every}) > 1:
        raise ReflError(
            f"{argument('scale')} is 'shared', but some scores have a sign and some are lengths: "
            "give each its own"
        )
    if scale == "shared" and len(units := {_said_unit(e) for e in every}) > 1:
        raise ReflError(
            f"{argument('scale')} is 'shared', but the scores are not all in one unit "
            f"({', '.join(sorted(units))}): give each its own"
        )
    return Comparison(every, scale)


def _refuse(e: Explanation, first: Explanation) -> None:
    pairs = {
        "input": (e.input_ids, first.input_ids),
        "decoder's input": (e.decoder_ids, first.decoder_ids),
        "types": (e.types, first.types),
        "output": (e.what, first.what),
        "position": (e.position, first.position),
        "attention mask": (_listed(e.attention_mask), _listed(first.attention_mask)),
        **{name: (e.about.get(name), first.about.get(name)) for name in ("model", "edits")},
    }
    other = [name for name, (one, another) in pairs.items() if one != another]
    if other or not np.array_equal(e.picture, first.picture):
        raise ReflError(
            f"{e.what} is explained beside {first.what}, of another {', '.join(other) or 'picture'}"
            ": expected one input and one output by several methods"
        )
    for r in (e.relevance, e.decoder_relevance):
        if r is not None and not np.isfinite(np.asarray(r)).all():
            raise ReflError(f"the relevance by {e.method.title} is not finite: nothing is drawn")


def _listed(mask: Any) -> Any:
    return None if mask is None else np.asarray(mask).tolist()


def _most(e: Explanation) -> float:
    return float(np.abs(e.patches).max()) if e.picture is not None else strongest(all_scores(e))


# -- what is said ----------------------------------------------------------------------------------


def title(e: Explanation) -> str:
    """What is explained, of which model."""
    model = shorten(one_line(e.about.get("model") or "a model"), 60)
    return shorten(one_line(f"{quantity(e)} = {amount(e.explained, 4)}"), 160) + f" · {model}"


def said_scale(e: Explanation, most: float, scale: str) -> str:
    """max |R| with its unit, and whose it is."""
    whose = "one scale for all" if scale == "shared" else "own scale"
    plain = not most or 1e-6 <= most < 1e9
    said = f"{most:.{decimals(most, 5)}f}" if plain else f"{most:.4e}"
    return f"max |R| = {said} ({_said_unit(e)}), {whose}"


def _said_unit(e: Explanation) -> str:
    if e.method.score == "norm":
        return "a length, no sign"
    if unit(e) in APART:
        return APART[unit(e)]
    if e.seed in ("activation", "coordinate"):
        return f"units of the {e.seed}"
    if e.seed == "probability" and unit(e) == "explained":
        return e.seed
    return UNITS.get(e.seed, e.seed)


def said_signs(e: Explanation) -> list[str]:
    """What color and line say."""
    favor, against = legend(e)
    if not against:
        return [favor]
    below, above = ("line below", "line above") if e.picture is None else ("+", "−")
    return [f"{favor}, {below}", f"{against}, {above}"]


def mark(step: int, e: Explanation) -> str:
    """below for, above against, none where there is no sign to show."""
    if e.method.score == "norm" or not step:
        return "none"
    return "below" if step > 0 else "above"


@dataclass(frozen=True)
class Cell:
    """A token, or a piece of one that is longer than a line."""

    text: str
    step: int
    spaced: bool
    """Whether a blank stands before it."""
    ends_line: bool = False


def row_cells(e: Explanation, most: float, letters: Callable[[str], str], room: int) -> list[Cell]:
    """The tokens of a row with their levels, none longer than the room."""
    between, found = joiner(e.tokens), list[Cell]()
    for token, r in zip(e.tokens, e.relevance, strict=True):
        shown = letters(printable(token))
        inner = shown.strip(" ") or "␣" * max(len(shown), 1)
        pieces = list(_pieces(inner, room))
        spaced = bool(found) and (bool(between) or shown.startswith(" "))
        step = level(float(r), most)
        found += [Cell(piece, step, spaced and not i) for i, piece in enumerate(pieces)]
        if token.endswith("\n"):
            found[-1] = Cell(pieces[-1], step, found[-1].spaced, True)
    return found


def _pieces(text: str, room: int) -> Iterator[str]:
    piece, used = "", 0
    for c in text:
        if used + cells(c) > room:
            yield piece
            piece, used = "", 0
        piece, used = piece + c, used + cells(c)
    yield piece


def _panels_in_words(c: Comparison) -> Iterator[tuple[Any, ...]]:
    for i, e in enumerate(c.explanations):
        most = c.most(e)
        rows = [
            (name, [(p.text, p.spaced, p.ends_line, _look(p.step, row)) for p in found])
            for name, row in rows_of_tokens(e)
            for found in [row_cells(row, most, str, 80)]
        ]
        steps = range(0 if e.method.score == "norm" else -LEVELS, LEVELS + 1, 2)
        ramp = [_look(step, e) for step in steps]
        low = "0" if e.method.score == "norm" else f"-{most:.3g}"
        said = [said_scale(e, most, c.scale), *said_signs(e)]
        top = title(e) if i == 0 else ""
        yield top, e.method.title, rows, printable(e.target), ramp, low, f"{most:.3g}", said


def _look(step: int, e: Explanation) -> tuple[Any, Any, str]:
    back = background(step)
    return back, foreground(back), mark(step, e)


# -- the layout ------------------------------------------------------------------------------------


def _drawing(c: Comparison, letters: Callable[[str], str]) -> Drawing:
    parts: list[Part] = []
    first = c.explanations[0]
    y = _paragraph(parts, letters(title(first)), MARGIN + SIZE, bold=True)
    for e in c.explanations:
        most = c.most(e)
        y = _paragraph(parts, letters(one_line(e.method.title)), y + 4, bold=True)
        if e.picture is not None:
            y = _picture(parts, e, most, y)
            y = _below_picture(parts, e, y, letters)
        else:
            y = _rows(parts, e, most, y, letters)
        y = _scale(parts, e, most, c.scale, y, letters)
    return Drawing(WIDE, y + MARGIN - SMALL, tuple(parts), letters(title(first)))


def _paragraph(
    parts: list[Part], text: str, y: float, bold: bool = False, size: float = SMALL + 1
) -> float:
    """Below each other in lines; where the next baseline is."""
    most = int((WIDE - 2 * MARGIN) / (ADVANCE * size))
    for line in chain.from_iterable(_pieces(line, most) for line in wrap(text, most) or [""]):
        parts.append(Words(MARGIN, y, line, size, bold=bold))
        y += 1.4 * size
    return y


def _rows(
    parts: list[Part], e: Explanation, most: float, y: float, letters: Callable[[str], str]
) -> float:
    for name, row in rows_of_tokens(e):
        if name:
            y = _paragraph(parts, name, y, size=SMALL)
        y = _tokens(parts, row, most, y - SMALL, letters) + SIZE + 4
    line = letters(shorten(f"→ {printable(e.target)}", 60))
    parts.append(Words(MARGIN, y, line, SIZE, bold=True))
    return y + LEAD


def _tokens(
    parts: list[Part], e: Explanation, most: float, y: float, letters: Callable[[str], str]
) -> float:
    """Cells in lines; where the last one ends."""
    room = int((WIDE - 2 * (MARGIN + PAD)) / (ADVANCE * SIZE))
    x, blank = MARGIN, ADVANCE * SIZE
    for cell in row_cells(e, most, letters, room):
        wide = drawing.width(cell.text, SIZE) + 2 * PAD
        x += blank * cell.spaced
        if x + wide > WIDE - MARGIN + 1e-6 and x > MARGIN:
            x, y = MARGIN, y + LEAD
        parts += _cell(cell.text, cell.step, e, x, y, wide)
        x, y = (MARGIN, y + LEAD) if cell.ends_line else (x + wide, y)
    return y + CELL


def _cell(text: str, step: int, e: Explanation, x: float, y: float, wide: float) -> Iterator[Part]:
    """Its color, its mark, its letters."""
    back, ink, sign = _look(step, e)
    edge = 2 * MARK  # a line, and as much white: it stands out from no color but the paper's
    yield Box(x, y + edge, wide, CELL - 2 * edge, back)
    if sign != "none":
        at = y + CELL - MARK if sign == "below" else y
        yield Box(x + 0.4, at, wide - 0.8, MARK, BLACK)
    if text:
        yield Words(x + PAD, y + CELL - 5, text, SIZE, ink)


def _scale(
    parts: list[Part],
    e: Explanation,
    most: float,
    scale: str,
    y: float,
    letters: Callable[[str], str],
) -> float:
    """The colors with their marks from end to end, then what they say."""
    norm = e.method.score == "norm"
    low, high = ("0" if norm else f"-{most:.3g}"), f"{'' if norm else '+'}{most:.3g}"
    parts.append(Words(MARGIN, y, low, SMALL))
    x = MARGIN + drawing.width(low, SMALL) + 4
    for step in range(0 if norm else -LEVELS, LEVELS + 1):
        parts += _cell("", step, e, x, y - CELL + 4, 6)
        x += 6
    parts.append(Words(x + 4, y, high, SMALL))
    for said in (said_scale(e, most, scale), ";  ".join(said_signs(e))):
        y = _paragraph(parts, letters(said), y + 1.6 * SMALL, size=SMALL) - 1.4 * SMALL
    return y + 2.2 * SMALL


def _picture(parts: list[Part], e: Explanation, most: float, y: float) -> float:
    """The picture, the heatmap of its pixels, and its patches with their signs."""
    rows, columns = e.patches.shape
    across = (WIDE - 2 * MARGIN - 16) / 3
    high, wide = e.relevance.shape
    tall: float = across * high / wide
    picture = np.broadcast_to(e.picture, (*e.picture.shape[:2], 3))
    images = ((picture, "the picture"), (heatmap.drawn(e.relevance, e.picture), "pixels"))
    for i, (pixels, what) in enumerate(images):
        pixels = np.ascontiguousarray(pixels, dtype=np.uint8)
        parts.append(Pixels(MARGIN + i * (across + 8), y, across, tall, pixels, what))
    left, w, h = MARGIN + 2 * (across + 8), across / columns, tall / rows
    for (i, j), r in np.ndenumerate(e.patches):
        parts += _patch(e, level(float(r), most), left + j * w, y + i * h, w, h)
    named = ("picture", f"pixels, full at {heatmap.strongest(e.relevance):.3g}", "sums of patches")
    below = y + tall + 1.4 * SMALL
    for i, name in enumerate(named):
        parts.append(Words(MARGIN + i * (across + 8), below, name, SMALL))
    return below + LEAD


def _below_picture(
    parts: list[Part], e: Explanation, y: float, letters: Callable[[str], str]
) -> float:
    """What a decoder has written about the picture, on a scale of its own."""
    row = row_of_decoder(e)
    if row is None:
        return y
    most = _most(row)
    y = _paragraph(parts, f"{DECODER}, full at {most:.3g}", y, size=SMALL)
    return _rows(parts, row, most, y, letters)


def _patch(e: Explanation, step: int, x: float, y: float, w: float, h: float) -> Iterator[Part]:
    back, ink, sign = _look(step, e)
    yield Box(x, y, w, h, back)
    if sign != "none" and max(e.patches.shape) <= MOST_PATCHES:
        size = min(0.8 * min(w, h), SIZE)
        text = "+" if step > 0 else "−"
        at = x + (w - drawing.width(text, size)) / 2
        yield Words(at, y + h / 2 + 0.35 * size, text, size, ink)
