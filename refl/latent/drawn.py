"""What pages about neurons and heads are made of: a histogram of activations, and a reference in
the colors of its relevance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from refl.explanation import Explanation
from refl.latent.references.histograms import Histogram
from refl.show.account import all_scores, joiner, rows_of_tokens, scores
from refl.show.colors import level
from refl.show.markup import Markup, joined, tag
from refl.show.numbers import strongest
from refl.show.page import heatmap, levels_css
from refl.show.pairs import level_class

_STYLE = """\
:where(.refl) .text .at { outline: 2px solid var(--ink); outline-offset: -1px }
:where(.refl) .tight .at { margin: 0 3px; outline-offset: 1px }
:where(.refl) .reference { margin: 0 0 .9rem }
:where(.refl) .reference .text { font-size: 1rem; line-height: 1.6 }
:where(.refl) .reference p { margin: 0; font-size: .85rem }
:where(.refl) .reference img { width: 10rem }
:where(.refl) .gallery { display: flex; flex-wrap: wrap; gap: 0 1.5rem }
:where(.refl) .gallery .reference { width: 10rem }
:where(.refl) .cut { color: var(--soft) }
:where(.refl) h3 { font-size: 1rem; margin: 1rem 0 .4rem }
"""


def style() -> str:
    """What these need beside the style of every page."""
    return levels_css() + _STYLE


# -- a histogram -----------------------------------------------------------------------------------

WIDTH, HIGH, FOOT = 640, 130, 22

COUNTS = "Counts are drawn by their logarithm: every bin that is not empty can be seen."


def histogram(h: Histogram) -> Markup:
    """Bars by the logarithm of their counts, those below 0 in the other color."""
    if not h.count:
        return Markup("")
    low, high = h.edges[0], h.edges[-1]
    unit = WIDTH / (high - low)
    return tag(
        "svg",
        *_bars(h, unit),
        tag("line", x1=0, x2=WIDTH, y1=HIGH, y2=HIGH),
        *_ticks(low, high, unit),
        class_="histogram",
        viewBox=f"-30 0 {WIDTH + 60} {HIGH + FOOT}",
        role="img",
        aria_label="how often each activation occurs",
    )


def _bars(h: Histogram, unit: float) -> Iterator[Markup]:
    edges, most = h.edges, math.log1p(max(h.counts))
    for a, b, count in zip(edges, edges[1:], h.counts, strict=False):
        if count:
            tall = HIGH * math.log1p(count) / most
            yield tag(
                "rect",
                tag("title", f"{number(a)} to {number(b)}: {count:,}"),
                class_="pos" if a >= 0 else "neg",
                x=f"{(a - edges[0]) * unit:.2f}",
                width=f"{max((b - a) * unit - 0.6, 0.6):.2f}",
                y=f"{HIGH - tall:.2f}",
                height=f"{tall:.2f}",
            )


def _ticks(low: float, high: float, unit: float) -> Iterator[Markup]:
    """The ends, and 0 where it lies well between them."""
    inside = [0.0] if low + 0.1 * (high - low) < 0 < high - 0.1 * (high - low) else []
    for at in (low, *inside, high):
        x = f"{(at - low) * unit:.2f}"
        yield tag("line", x1=x, x2=x, y1=HIGH, y2=HIGH + 4)
        yield tag("text", number(at), x=x, y=HIGH + 18, text_anchor="middle")


def number(value: float | None) -> str:
    """Three digits, and no negative zero."""
    return "-" if value is None else f"{value:z.3g}"


# -- a reference -----------------------------------------------------------------------------------

BEFORE, AFTER = 40, 12
"""Tokens of a long text that are shown around a reference."""


def reference(e: Explanation, position: int, name: str, said: str) -> Markup:
    """One input in its colors, the token at the position framed; `name` is the neuron's, or the
    head's: those of a decoder have positions in what it wrote. `said` stands below.
    """
    words = tag("p", said, class_="note")
    if e.picture is not None:
        return tag("div", heatmap(e), words, class_="reference")
    rows = rows_of_tokens(e)
    at = len(rows) - 1 if name.startswith("decoder.") else 0
    texts = (_text(row, position if n == at else None, t) for n, (t, row) in enumerate(rows))
    return tag("div", *texts, words, class_="reference")


def _text(e: Explanation, position: int | None, title: str) -> Markup:
    """Tokens in color; of a long text those around the position, or around the strongest."""
    most, numbers = strongest(all_scores(e)), scores(e)
    start, stop = _window(e.relevance, position)
    spans = [
        tag(
            "span",
            token,
            class_=f"t {level_class(level(float(e.relevance[t]), most))}{' at' * (t == position)}",
            title=f"token {t}: relevance {numbers[t]}",
            tabindex="0",
        )
        for t, token in enumerate(e.tokens[start:stop], start)
    ]
    between = joiner(e.tokens)
    parts = (_cut(e, 0, start), joined(spans, between or tag("wbr")), _cut(e, stop, len(e.tokens)))
    kind = "text" if between else "text tight"
    head = tag("p", title, class_="note") if title else ""
    return joined((head, tag("div", *parts, class_=kind)))


def _window(relevance: Any, position: int | None) -> tuple[int, int]:  # (T,)
    length = len(relevance)
    if length <= BEFORE + AFTER:
        return 0, length
    at = int(np.nanargmax(np.abs(relevance))) if position is None else position
    start = max(0, min(at - BEFORE, length - BEFORE - AFTER))
    return start, start + BEFORE + AFTER


def _cut(e: Explanation, start: int, stop: int) -> Markup:
    """How many tokens are left out, and the sum of their relevance."""
    if start >= stop:
        return Markup("")
    total = math.fsum(float(r) for r in e.relevance[start:stop])
    return tag("span", f" … {stop - start} tokens ({total:+.3g}) … ", class_="cut")
