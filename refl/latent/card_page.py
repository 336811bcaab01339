"""A card (refl.latent.card) as one HTML page that needs nothing but itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from refl.explanation import Explanation
from refl.latent.card import Card, Colored, Scores
from refl.latent.drawn import COUNTS, histogram, number, reference, style
from refl.latent.effects import LEVEL, Effect
from refl.latent.projection import Entry, Projection
from refl.latent.switching.pool import Mean
from refl.ledger import UnknownSite
from refl.show.account import quantity
from refl.show.colors import level
from refl.show.markup import Markup, document, joined, safe_table, tag
from refl.show.numbers import decimals, strongest
from refl.show.page import input_shown
from refl.show.pairs import level_class, strongest_pairs
from refl.show.text import shorten, visible

STYLE = """\
:where(.refl) .equal { grid-template-columns: repeat(2, minmax(0, 1fr)) }
@media (max-width: 60rem) { :where(.refl) .equal { grid-template-columns: minmax(0, 1fr) } }
:where(.refl) .matrix td, :where(.refl) .matrix th { padding: 0; border: 0; font-weight: 400 }
:where(.refl) .matrix td {
  width: 1rem; min-width: 1rem; height: 1rem; border-radius: 0;
  box-shadow: inset 0 0 0 .5px var(--line)
}
:where(.refl) .few td { width: 1.5rem; min-width: 1.5rem; height: 1.5rem }
:where(.refl) .matrix { margin-bottom: 1rem }
:where(.refl) .matrix td.none { box-shadow: none }
:where(.refl) .matrix th { font-size: .72rem; color: var(--ink); line-height: 1rem }
:where(.refl) .matrix th code { white-space: pre }
:where(.refl) .matrix th[scope=row] { text-align: right; padding-right: .35rem }
:where(.refl) .matrix th[scope=col] {
  writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; padding-top: .35rem;
  vertical-align: bottom
}
:where(.refl) svg.effect { max-width: 26rem }
"""
GRAYS = "\n".join(
    f":where(.refl) .matrix .g{n} {{ background: rgba(105, 112, 124, {n / 12:.3f}) }}"
    for n in range(1, 13)
)
"""Twelve steps of a probability, on a light page and on a dark one."""


def html(c: Card) -> str:
    """The whole page."""
    sections = (
        _head(c),
        _histogram(c),
        _references(c),
        _projections(c),
        _effects(c),
        _scores(c),
        _example(c),
        _again(c),
    )
    title = f"refl: {c.part.name} of {c.facts['model']}"
    return document(title, joined(sections, "\n"), style() + STYLE + GRAYS)


def _note(text: object) -> Markup:
    return tag("p", text, class_="note") if text else Markup("")


def _section(title: str, *inside: object) -> Markup:
    return tag("section", tag("h2", title), *inside)


def _absent(c: Card, field: str, title: str) -> Markup:
    """A section that has nothing to show, and why."""
    return (
        _section(title, _note(f"Left out: {c.missing[field]}."))
        if field in c.missing
        else Markup("")
    )


def _head(c: Card) -> Markup:
    of = "the MLP" if c.part.kind == "neuron" else "the attention"
    if ".E" in c.part.name:
        of = f"an expert ({c.part.name.rpartition('.')[0]})"
    where = f"{c.part.kind} {c.part.number} of {of} in block {c.part.block} of {c.facts['model']}"
    return tag(
        "header",
        tag("h1", f"{c.part.name}: {where}"),
        tag("p", "Entry " if c.part.kind == "neuron" else "Row ", tag("b", c.part.number),
            " of ", tag("code", c.part.site), ". Relevance by ", tag("b", c.facts["method"]), "."),
    )  # fmt: skip


# -- activations -----------------------------------------------------------------------------------


def _histogram(c: Card) -> Markup:
    if c.histogram is None:
        return _absent(c, "histogram", "Activation")
    h = c.histogram
    if not h.count or h.mean is None:
        return _section("Activation", _note("No token of the corpus came to it."))
    what = "its activation" if c.part.kind == "neuron" else "the length of its row of the context"
    words = (
        f"{what.capitalize()} at {h.count:,} positions: {number(h.smallest)} to "
        f"{number(h.largest)}, mean {number(h.mean)}; {h.above / h.count:.1%} are above 0."
    )
    return _section("Activation", _note(words), histogram(h), _note(COUNTS))


# -- references ------------------------------------------------------------------------------------

BY = {
    "activation": "Where it is most active (ActMax)",
    "relevance": "Where it is most relevant (RelMax)",
}


def _references(c: Card) -> Markup:
    if c.references is None:
        return _absent(c, "references", "References")
    if c.part.kind == "neuron":
        words = (
            "Each is colored by the relevance of its tokens for the neuron's own activation at "
            "that place, which may be below 0."
        )
    else:
        words = (
            "Each is colored by the relevance of its tokens for what is explained of the line, "
            "that part of it which comes through the head at the marked position."
        )
    words += " Red is for it, blue against."
    marked = "" if _pictures(c) else "The token at which it was found is framed."
    columns = (
        tag(
            "div",
            tag("h3", BY[by]),
            tag("div", *(_reference(c, by, one) for one in some), class_=_kind(some)),
        )
        for by, some in c.references.items()
    )
    return _section(
        "References", _note(f"{words} {marked}"), tag("div", *columns, class_="two equal")
    )


def _kind(some: Sequence[Colored]) -> str:
    return "gallery" if some and some[0].explanation.picture is not None else ""


def _pictures(c: Card) -> bool:
    return any(_kind(some) for some in (c.references or {}).values())


def _reference(c: Card, by: str, one: Colored) -> Markup:
    r = one.reference
    active = by == "relevance" and c.part.kind == "neuron"
    beside = f" (activation {one.explanation.explained:+.4g})" if active else ""
    said = f"{by} {r.value:+.4g}{beside} at {one.place} of line {r.line}"
    return reference(one.explanation, r.position, c.part.name, said)


# -- what it writes --------------------------------------------------------------------------------


def _projections(c: Card) -> Markup:
    title = "What it writes, as logits"
    if c.projections is None:
        return _absent(c, "projections", title)
    p = c.projections[0]
    words = "Its row of the down projection"
    if p.position is not None:
        token = f" ({visible(p.token)})" if p.token is not None else ""
        words = f"What it gives in the example at position {p.position}{token}"
    words += ", by the direct way to the outputs, as if no later block were there."
    columns = (tag("div", _projection(one)) for one in c.projections)
    return _section(title, _note(words), tag("div", *columns, class_="two equal"))


def _projection(p: Projection) -> Markup:
    places = decimals(strongest(e.logit for e in (*p.top, *p.bottom)), 3)
    rows = [(*_cells(a, places), *_cells(b, places)) for a, b in zip(p.top, p.bottom, strict=True)]
    table = safe_table(("most for", "", "most against", ""), rows, (1, 3))
    words = "; ".join(p.notes)
    title = "With the final norm" if p.norm else "Without the final norm"
    return joined((tag("h3", title), table, _note(f"{words[:1].upper()}{words[1:]}.")))


def _cells(e: Entry, places: int) -> tuple[Markup, str]:
    return tag("code", shorten(visible(e.token), 24)), f"{e.logit:+.{places}f}"


# -- what switching it off does --------------------------------------------------------------------


def _effects(c: Card) -> Markup:
    title = "Switched off"
    if c.effects is None:
        return _absent(c, "effects", title)
    words = (
        "The change of what is explained when it is set to 0 at every position: as relevance "
        "predicts it (the relevance taken away), as it is measured, and as measured for another "
        f"{c.part.kind} of the same block drawn at random."
    )
    columns = (tag("div", tag("h3", f"In {over}"), _effect(e)) for over, e in c.effects)
    return _section(title, _note(words), tag("div", *columns, class_="two equal"))


def _effect(e: Effect) -> Markup:
    places = decimals(strongest(m.mean for m in e.means.values()), 3)
    rows = [(name, _signed(m.mean, places), _between(m, places)) for name, m in e.means.items()]
    several = "mean" if len(e.inputs) > 1 else ""
    head = ("change", several, f"{LEVEL:.0%} interval")
    return joined((_whiskers(e), safe_table(head, rows, (1, 2)), _note(_effect_said(e))))


def _effect_said(e: Effect) -> str:
    kinds = dict.fromkeys(e.what)
    what = next(iter(kinds)) if len(kinds) == 1 else f"what each line explains, such as {e.what[0]}"
    said = f"Explained: {what}, {e.before.mean():.4g} before."
    if draws := e.random.shape[1]:
        said += (
            f" Random: {draws} draws, of which {e.as_large:.0%} change it as much or more. "
            f"Intervals: bootstrap over {e.over}."
        )
    return said


def _signed(value: float, places: int) -> str:
    return f"{value:+.{places}f}" if math.isfinite(value) else "-"


def _between(m: Mean, places: int) -> str:
    known = math.isfinite(m.low) and math.isfinite(m.high)
    return f"{m.low:+.{places}f} to {m.high:+.{places}f}" if known else "-"


def _whiskers(e: Effect) -> Markup:
    """Predicted, measured and random from one zero line, each with its interval."""
    rows = [(n, e.means[n]) for n in ("predicted", "measured", "random")]
    ends = [v for _, m in rows for v in (m.mean, m.low, m.high) if math.isfinite(v)]
    low, high = min(0.0, *ends), max(0.0, *ends)
    unit = 280 / ((high - low) or 1.0)
    zero = 95 - low * unit
    drawn = [_whisker(n, name, m, zero, unit) for n, (name, m) in enumerate(rows)]
    line = tag("line", x1=f"{zero:.1f}", x2=f"{zero:.1f}", y1=0, y2=66)
    svg = {"viewBox": "0 0 390 66", "role": "img", "aria_label": "the changes as bars"}
    return tag("svg", *drawn, line, class_="effect", **svg)


def _whisker(n: int, name: str, m: Mean, zero: float, unit: float) -> Markup:
    y = 22 * n
    parts = [tag("text", name, x=85, y=y + 15, text_anchor="end")]
    if math.isfinite(m.mean):
        left, wide = zero + min(m.mean, 0.0) * unit, abs(m.mean) * unit
        kind = "whole" if name == "random" else "pos" if m.mean >= 0 else "neg"
        bar = {"x": f"{left:.1f}", "width": f"{wide:.1f}", "y": y + 4, "height": 14}
        parts.append(tag("rect", tag("title", f"{m.mean:+.4g}"), class_=kind, **bar))
    if math.isfinite(m.low) and math.isfinite(m.high):
        a, b = (f"{zero + end * unit:.1f}" for end in (m.low, m.high))
        style = "stroke:var(--ink);stroke-width:1.5"
        parts.append(tag("line", x1=a, x2=b, y1=y + 11, y2=y + 11, style=style))
    return joined(parts)


# -- queries and keys ------------------------------------------------------------------------------

MANY = 28
"""Queries, or keys, that a matrix shows at most."""
FEW = 16
"""So many have larger cells."""
LISTED = 8


def _scores(c: Card) -> Markup:
    s = c.scores
    if s is None or c.example is None:
        return Markup("")
    words = (
        "The relevance at each product of a query (row) and a key (column) of this head, in the "
        f"example, for the {quantity(c.example)}. It adds up to {s.total:+.4g}: the part of "
        f"{c.example.explained:.4g} that came through where the head looks; the part that came "
        "through its values is not in it."
    )
    if c.example.picture is not None:
        words += " Patches are named by their row and column."
    rows, columns, cut = _chosen(s)
    relevance = tag("div", tag("h3", "Relevance"), _matrix(s, rows, columns))
    probabilities = tag("div", tag("h3", "Attention probability"), _probabilities(s, rows, columns))
    both = tag("div", relevance, probabilities, class_="two equal")
    return _section("Which token asked which", _note(words), both, _note(cut), _strongest(s))


def _chosen(s: Scores) -> tuple[list[int], list[int], str]:
    """All of a short input; of a longer one the queries and keys with most relevance, in their
    order, and none without.
    """
    sizes = np.abs(np.nan_to_num(np.asarray(s.relevance, dtype=np.float64)))
    rows, columns = (_most(sizes.sum(axis=axis)) for axis in (1, 0))
    if len(rows) == len(s.queries) and len(columns) == len(s.keys):
        return rows, columns, ""
    shown = float(np.asarray(s.relevance, dtype=np.float64)[np.ix_(rows, columns)].sum())
    return rows, columns, (
        f"Shown are the {len(rows)} of {len(s.queries)} queries and the {len(columns)} of "
        f"{len(s.keys)} keys with most relevance, which hold {shown:+.4g} of it."
    )  # fmt: skip


def _most(sizes: Any) -> list[int]:
    if len(sizes) <= MANY:
        return list(range(len(sizes)))
    return sorted(int(i) for i in np.argsort(-sizes, kind="stable")[:MANY] if sizes[i])


def _matrix(s: Scores, rows: Sequence[int], columns: Sequence[int]) -> Markup:
    most = strongest(float(v) for v in np.asarray(s.relevance).ravel())

    def cell(i: int, j: int) -> Markup:
        value = float(s.relevance[i, j])
        kind = level_class(level(value, most))
        return _cell(s, i, j, "" if kind == "z" else kind, f"{value:+.3g}")

    return _table(s, rows, columns, cell)


def _probabilities(s: Scores, rows: Sequence[int], columns: Sequence[int]) -> Markup:
    def cell(i: int, j: int) -> Markup:
        p = float(s.probabilities[i, j])
        step = math.ceil(12 * p - 0.5)
        return _cell(s, i, j, f"g{step}" if step else "", f"{p:.3f}")

    return _table(s, rows, columns, cell)


def _cell(s: Scores, i: int, j: int, kind: str, said: str) -> Markup:
    """Empty where the query may not look at the key."""
    if not s.probabilities[i, j] and not s.relevance[i, j]:
        return tag("td", class_="none")
    title = f"{visible(s.queries[i])} ({i}) to {visible(s.keys[j])} ({j}): {said}"
    return tag("td", class_=kind or None, title=title)


def _table(s: Scores, rows: Sequence[int], columns: Sequence[int], cell: Any) -> Markup:
    head = tag("tr", tag("th"), *(_name(s.keys[j], "col") for j in columns))
    body = (
        tag("tr", _name(s.queries[i], "row"), *(cell(i, j) for j in columns)) + "\n" for i in rows
    )
    kind = "matrix few" if max(len(rows), len(columns)) <= FEW else "matrix"
    return tag("div", tag("table", head, *map(Markup, body), class_=kind), class_="scroll")


def _name(token: str, scope: str) -> Markup:
    return tag("th", tag("code", shorten(visible(token), 12)), scope=scope)


def _strongest(s: Scores) -> Markup:
    """The strongest pairs as numbers."""
    r = np.asarray(s.relevance, dtype=np.float64)
    places = decimals(strongest(r.ravel().tolist()), 3)
    rows = [
        (
            joined((f"{p.to} ", tag("code", visible(s.queries[p.to])))),
            joined((f"{p.of} ", tag("code", visible(s.keys[p.of])))),
            f"{p.value:+.{places}f}",
            f"{float(s.probabilities[p.to, p.of]):.3f}",
        )
        for p in strongest_pairs(r, LISTED)
        if p.value
    ]
    return safe_table(("query", "key", "relevance", "probability"), rows, (2, 3))


# -- the example, and how to do it again -----------------------------------------------------------


def _example(c: Card) -> Markup:
    if c.example is None:
        return _absent(c, "example", "The example")
    e = c.example
    words = f"{quantity(e)} = {e.explained:.4g} ({c.facts['example']}); {_own(c, e)}."
    return _section("The example", _note(words), input_shown(e))


def _own(c: Card, e: Explanation) -> str:
    try:
        r = np.asarray(e[c.part.site], dtype=np.float64)[c.part.index]
    except UnknownSite:
        return f"no token of it chooses the expert of {c.part.name}"
    return f"the relevance of {c.part.name} in it is {math.fsum(r.ravel()):+.4g}"


def _again(c: Card) -> Markup:
    rows = (tag("dt", key) + tag("dd", value) for key, value in c.facts.items())
    return _section("To do it again", tag("dl", *map(Markup, rows)))
