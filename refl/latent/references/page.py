"""References as they are shown: in a terminal, and on one HTML page that needs nothing but itself.

Each input is colored by what the neuron's own activation is made of; for a head by that part of
what is explained which comes through it at that position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from refl.explanation import Explanation
from refl.latent.drawn import COUNTS, histogram, reference, style
from refl.latent.references import PartReferences, Reference
from refl.latent.references.histograms import Histogram
from refl.show.account import all_scores, joiner, rows_of_tokens
from refl.show.colors import level, token_style
from refl.show.lines import Line, paragraph, width_of
from refl.show.markup import Markup, document, joined, tag
from refl.show.numbers import percent, strongest
from refl.show.text import cells, printable, visible

TITLES = {
    "activation": "ActMax: where it is most active",
    "relevance": "RelMax: where it is most relevant for what is explained",
    "lowest_activation": "where its activation is lowest",
    "lowest_relevance": "where its relevance is lowest",
}
ROWS = 16
"""Bins of a histogram in a terminal, at most: fine ones are drawn two and two."""
BAR = 32


@dataclass(frozen=True)
class Shown:
    """One neuron or head: what was found, and an Explanation for each reference by ranking."""

    found: PartReferences
    heatmaps: Mapping[str, Sequence[Explanation]]


def numbers(h: Histogram) -> str:
    """A histogram in one sentence."""
    if not h.count or h.mean is None:
        return "no token comes to it"
    return (
        f"{h.count} activations, mean {h.mean:z.4g}, from {h.smallest:.4g} to {h.largest:.4g}, "
        f"{percent(h.above, h.count)} above 0"
    )


def colored(name: str) -> str:
    """What the colors of its references say."""
    kind = name.rpartition(".")[2][:1]
    if kind == "H":
        return (
            "colors: relevance on the tokens of what is explained of the line, as far as it comes "
            "through the head at that position"
        )
    return "colors: what the neuron's own activation at that position is made of"


def place(name: str, one: Reference, e: Explanation) -> str:
    """Where a reference is: the line, and its token."""
    said = f"line {one.line}, position {one.position}"
    names = e.decoder_tokens if name.startswith("decoder.") and e.decoder_tokens else e.tokens
    token = f" {visible(names[one.position])}" if one.position < len(names) else ""
    return f"{said}{token}: {one.value:z.4g}"


# -- a terminal ------------------------------------------------------------------------------------


def lines(shown: Shown, width: int = 80) -> list[Line]:
    """One neuron or head."""
    found = shown.found
    view: list[Line] = [
        [(found.name, "bold"), (f"  {numbers(found.histogram)}", "")],
        *_bars(found.histogram),
    ]
    for ranking, explanations in shown.heatmaps.items():
        view += [[], [("  ", ""), (TITLES[ranking], "bold")]]
        for one, e in zip(found.by(ranking), explanations, strict=True):
            view += [[("  ", ""), (place(found.name, one, e), "dim")], *_text(e, width)]
    return [*view, *paragraph(colored(found.name), width, "dim")]


def _bars(h: Histogram) -> list[Line]:
    """A bar for each bin, to one scale."""
    first, counts, bin_ = _coarser(h)
    most = max(counts, default=0)
    if not most:
        return []
    edges = [f"{(first + i) * bin_:.4g}" for i in range(len(counts))]
    wide, long = max(map(len, edges)), len(str(most))
    return [
        [
            (f"  {edge:>{wide}} ", "dim"),
            (f"{count:>{long}} ", ""),
            ("█" * -(-BAR * count // most), ""),
        ]
        for edge, count in zip(edges, counts, strict=True)
    ]


def _coarser(h: Histogram) -> tuple[int, list[int], float]:
    """First bin, counts and width of at most ROWS bins, each of whole bins of the histogram."""
    first, counts, bin_ = h.first, list(h.counts), h.width
    while len(counts) > ROWS:
        counts = [0] * (first % 2) + counts
        counts = [sum(counts[i : i + 2]) for i in range(0, len(counts), 2)]
        first, bin_ = first // 2, bin_ * 2
    return first, counts, bin_


def _text(e: Explanation, width: int) -> list[Line]:
    if e.picture is not None:
        return [[("    a picture: --html draws it", "dim")]]
    return [line for name, row in rows_of_tokens(e) for line in _tokens(name, row, width)]


def _tokens(name: str, e: Explanation, width: int) -> list[Line]:
    """Running text, each token in the color of its relevance."""
    most, between = strongest(all_scores(e)), joiner(e.tokens)
    start = f"    {name}: " if name else "    "
    found: list[Line] = [[(start, "dim")]]
    for token, r in zip(e.tokens, e.relevance, strict=True):
        text = printable(token)
        if len(found[-1]) > 1 and width_of(found[-1]) + cells(text) > width - 2:
            found.append([("    ", "")])
        found[-1] += [(text, token_style(level(float(r), most))), (between, "")]
    return found


# -- a page ----------------------------------------------------------------------------------------


def html(every: Sequence[Shown], about: str) -> str:
    """The whole page: of several neurons and heads, one after the other."""
    names = ", ".join(shown.found.name for shown in every)
    head = tag("header", tag("h1", f"References of {names}"), tag("p", about))
    return document(
        f"refl: references of {names}", joined([head, *map(section, every)], "\n"), style()
    )


def section(shown: Shown) -> Markup:
    """One neuron or head on a page."""
    found = shown.found
    return tag(
        "section",
        tag("h2", found.name),
        tag("p", numbers(found.histogram), class_="note"),
        histogram(found.histogram),
        tag("p", COUNTS, class_="note"),
        *(
            joined([
                tag("h3", TITLES[ranking]),
                *(reference(e, one.position, found.name, place(found.name, one, e))
                  for one, e in zip(found.by(ranking), explanations, strict=True)),
            ])
            for ranking, explanations in shown.heatmaps.items()
        ),
        tag("p", colored(found.name), class_="note"),
    )  # fmt: skip
