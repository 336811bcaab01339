"""An explanation as one HTML page: the tokens in color or the heatmap, the account, the candidates,
every number, the method, the conservation ledger, and what it takes to do it again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from refl.explanation import Explanation
from refl.io.shipped import ABILITIES, SHIPPED, TRAINING, fingerprint, words
from refl.ledger import Ledger
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
    title,
)
from refl.show.account import LEDGER as LEDGER_WORDS
from refl.show.colors import (
    DRAWING,
    LEVELS,
    NEGATIVE_DARK,
    POSITIVE_DARK,
    Color,
    background,
    foreground,
    hexadecimal,
    level,
)
from refl.show.heatmap import QUANTILE, data_uri
from refl.show.heatmap import strongest as strongest_pixel
from refl.show.markup import Markup, document, image, joined, safe_table, tag
from refl.show.numbers import amount, decimals, strongest
from refl.show.pairs import level_class, pair_section
from refl.show.tables import COMPOSITE, LEDGER, composite_rows, ledger_rows
from refl.show.text import shorten, visible


def html(e: Explanation) -> str:
    """One page that needs nothing but itself: no network, no script."""
    return document(f"refl: {title(e)}", body(e), levels_css())


def body(e: Explanation) -> Markup:
    """What stands on the page, and in a notebook."""
    sections = (
        joined((head(e), input_shown(e))),
        pair_section(e),
        tag(
            "div",
            account_section(account_of(e), _unit(e), quantity(e), sums_name(e)),
            _candidates(e),
            class_="two",
        ),
        _numbers(e),
        method_section(e),
        ledger_section(e.recorded) if e.recorded is not None else "",
        _again(e),
        _shipped(e),
    )
    return joined(sections, "\n")


def head(e: Explanation) -> Markup:
    """What is explained, and by what."""
    model = e.about.get("model") or "a model"
    return tag(
        "header",
        tag("h1", f"{quantity(e)} = {amount(e.explained, 4)}"),
        tag("p", f"{facts(e)}. Explained by ", tag("b", e.method.title), f" on {model}."),
        _note(f"The run was edited: {edits}." if (edits := e.about.get("edits")) else ""),
        _note(f"By the attention mask {many}." if (many := e.about.get("attention mask")) else ""),
    )


def _note(text: str) -> Markup:
    return tag("p", text, class_="note") if text else Markup("")


def _norm_note(e: Explanation) -> Markup:
    return _note(of_lengths(e))


def _hidden(summary: str, content: object) -> Markup:
    return tag("details", tag("summary", summary), content)


def input_shown(e: Explanation) -> Markup:
    """The colored text, or the picture, with the scale of its colors."""
    if e.image is not None:
        return joined((_text(e), _picture(e.of_picture)))
    if e.picture is None:
        return _text(e)
    written = row_of_decoder(e)
    return joined(
        (_picture(e), "" if written is None else joined((_note(DECODER), _text(written))))
    )


def _numbers(e: Explanation) -> Markup:
    """The same as numbers, folded away."""
    if e.image is not None:
        return joined((_token_numbers(e), _patch_numbers(e.of_picture)))
    if e.picture is None:
        return _token_numbers(e)
    written = row_of_decoder(e)
    return joined((_patch_numbers(e), "" if written is None else _token_numbers(written)))


# -- tokens ----------------------------------------------------------------------------------------


def _text(e: Explanation) -> Markup:
    rows = joined(_row_of_tokens(name, row) for name, row in rows_of_tokens(e))
    return tag("section", rows, _legend(e), _norm_note(e))


def _row_of_tokens(name: str, e: Explanation) -> Markup:
    few = len(e.tokens) <= COMPACT
    arrow = leads_on(e, name)
    target = tag("span", f"→ {visible(e.target)}", class_="target") if arrow else ""
    kind = " few" if few else " tight" if joiner(e.tokens) == "" else ""
    return joined(
        (_note(name), tag("div", tokens(e, numbers=few), " ", target, class_=f"text{kind}"))
    )


def tokens(e: Explanation, numbers: bool = False) -> Markup:
    """The tokens as running text, each in the color of its level; the numbers are in its tip, and
    below it where asked for.
    """
    most = strongest(all_scores(e))
    spans = []
    for i, (token, number, r) in enumerate(zip(e.tokens, scores(e), e.relevance, strict=True)):
        tip = f"token {i}, id {e.input_ids[i]}: relevance {number}"
        under = tag("small", number) if numbers else ""
        kind = f"t {level_class(level(float(r), most))}"
        span = tag("span", token, under, class_=kind, tabindex="0", title=tip)
        spans.append(joined((span, tag("br"))) if token.endswith("\n") else span)
    return joined(spans, joiner(e.tokens) or tag("wbr"))


def _legend(e: Explanation) -> Markup:
    most = strongest(all_scores(e))
    end = f"{most:.{decimals(most, DIGITS)}f}"
    norm = e.method.score == "norm"
    steps = range(0 if norm else -LEVELS, LEVELS + 1)
    swatches = (tag("i", class_=level_class(step)) for step in steps)
    low, high = ("0", end) if norm else (f"-{end}", f"+{end}")
    return _legend_of(e, low, tag("span", *swatches, class_="ramp"), high)


def _legend_of(e: Explanation, low: str, ramp: Markup, high: str) -> Markup:
    """The scale, and what its ends say."""
    favor, against = legend(e)
    ends = (tag("span", f"{low} {against}"), ramp, tag("span", f"{high} {favor}"))
    return tag("div", *ends, class_="legend")


def _token_numbers(e: Explanation) -> Markup:
    tables = joined(joined((_note(name), _number_table(row))) for name, row in rows_of_tokens(e))
    return tag("section", _hidden("Every token as a number", tables))


def _number_table(e: Explanation) -> Markup:
    most = strongest(all_scores(e))
    rows = [
        (i, tag("code", visible(token)), number, score, _meter(float(r), most))
        for i, (token, number, score, r) in enumerate(
            zip(e.tokens, e.input_ids, scores(e), e.relevance, strict=True)
        )
    ]
    return safe_table(("", "token", "id", "relevance", ""), rows, (0, 2, 3))


def _meter(value: float, most: float) -> Markup:
    """A bar from the middle to the right (for) or to the left (against)."""
    part = value / most if most > 0 and math.isfinite(value) else 0.0
    left, wide = 60 + min(part, 0.0) * 60, abs(part) * 60
    kind = "pos" if part >= 0 else "neg"
    return tag(
        "svg",
        tag("rect", class_=kind, x=f"{left:.1f}", y="1", width=f"{wide:.1f}", height="10"),
        tag("line", x1="60", x2="60", y1="0", y2="12"),
        class_="meter",
        viewBox="0 0 120 12",
        aria_hidden="true",
    )


# -- pictures --------------------------------------------------------------------------------------


def heatmap(e: Explanation) -> Markup:
    """The picture, colored by relevance."""
    height, width = e.relevance.shape
    what = f"the picture, {height} by {width} pixels, colored by relevance for {e.target!r}"
    return image(data_uri(e.relevance, e.picture), what)


def _picture(e: Explanation) -> Markup:
    most = strongest_pixel(e.relevance)
    against, favor = map(hexadecimal, DRAWING)
    style = f"background:linear-gradient(90deg,{against},#ebebeb,{favor});width:15rem;height:.8rem"
    scale = _legend_of(e, f"-{most:.3g}", tag("span", class_="ramp", style=style), f"+{most:.3g}")
    hot = f"stronger than {most:.3g} are {1 - QUANTILE:.1%} of the pixels: they are drawn no darker"
    return tag("section", heatmap(e), scale, _note(hot), _norm_note(e))


def _patch_numbers(e: Explanation) -> Markup:
    most = strongest(float(v) for v in e.patches.flat)
    rows = (tag("tr", *(_patch(float(v), most) for v in row)) for row in e.patches)
    grid = tag("div", tag("table", *rows, class_="patches"), class_="scroll")
    return tag("section", _hidden("Every patch as a number", grid))


def _patch(value: float, most: float) -> Markup:
    kind = f"t {level_class(level(value, most))}"
    return tag("td", f"{value:+.{decimals(most, 3)}f}", class_=kind)


# -- the conservation ledger in sum, and the candidates --------------------------------------------


def _unit(e: Explanation) -> str:
    return e.seed if e.against is None else "logits"


def account_section(rows: Sequence[Row], unit: str, whole: str, name: str) -> Markup:
    """The ledger in sum: bars, numbers, and what a reader would ask."""
    cells = [(r.name, r.shown, r.percent, r.note or whole) for r in rows]
    return tag(
        "section",
        tag("h2", name),
        _account_bars(rows),
        safe_table(("part", unit, "percent", ""), cells, (1, 2), "account"),
        *map(_note, remarks(rows)),
    )


_NAMES, _BARS = 160, 340
"""Widths of the names and of the bars."""


def _account_bars(rows: Sequence[Row]) -> Markup:
    """The account as bars from one zero line, drawn to one scale."""
    amounts = [r.amount if math.isfinite(r.amount) else 0.0 for r in rows]
    low, high = min(0.0, *amounts), max(0.0, *amounts)
    unit = _BARS / ((high - low) or 1.0)
    zero = _NAMES - low * unit
    height = 20 * len(rows)
    bars = (
        _account_bar(i, row, value, zero, unit)
        for i, (row, value) in enumerate(zip(rows, amounts, strict=True))
    )
    return tag(
        "svg",
        *bars,
        tag("line", x1=f"{zero:.1f}", x2=f"{zero:.1f}", y1="0", y2=height),
        viewBox=f"0 0 {_NAMES + _BARS + 10} {height}",
        role="img",
        aria_label="the parts as bars",
    )


def _account_bar(i: int, row: Row, value: float, zero: float, unit: float) -> Markup:
    kind = "whole" if row.name == "explained" else "pos" if value >= 0 else "neg"
    left, wide = zero + min(value, 0.0) * unit, abs(value) * unit
    name = tag("text", shorten(row.name, 22), x=_NAMES - 8, y=20 * i + 14, text_anchor="end")
    bar = tag(
        "rect",
        tag("title", row.shown),
        class_=kind,
        x=f"{left:.2f}",
        y=20 * i + 3,
        width=f"{wide:.2f}",
        height="14",
    )
    return joined((name, bar))


def _candidates(e: Explanation) -> Markup:
    if is_number(e):
        return Markup("")
    rows = [
        (tag("code", visible(t)), i, f"{z:.4f}", in_percent(p), part)
        for t, i, z, p, part in considered(e)
    ]
    name, *columns = names_of_columns(e)
    if e.answer is not None:
        return tag(
            "section", tag("h2", "The answer"), safe_table(("token", *columns), rows, (1, 2, 3))
        )
    head = (name.rpartition(" ")[2], *columns)
    return tag("section", tag("h2", f"The {name}"), safe_table(head, rows, (1, 2, 3)))


# -- the method, the ledger, and how to do it again ------------------------------------------------


def method_section(e: Explanation) -> Markup:
    """What it is, and its table of rules."""
    m = e.method
    return tag(
        "section",
        tag("h2", f"The method: {m.title}"),
        *(tag("p", said) for said in described(m)),
        _note(m.source),
        tag("p", f"In {form(m)}.{f' Its table: {m.hash}' if isinstance(m, Composite) else ''}"),
        _rules(m) if isinstance(m, Composite) else "",
    )


def _rules(c: Composite) -> Markup:
    rows = [
        (operation, role, tag("code", site), rule, options)
        for operation, role, site, rule, options in composite_rows(c)
    ]
    return _hidden(
        "The table of rules, with every option; the first line that fits an operation gives its "
        "rule",
        safe_table(COMPOSITE, rows),
    )


def ledger_section(ledger: Ledger) -> Markup:
    """Every operation's entry, folded away."""
    rows = ledger_rows(ledger)
    summary = f"{len(rows)} operations, from the output down"
    return tag(
        "section",
        tag("h2", f"The {LEDGER_WORDS}, operation by operation"),
        tag("p", "At every operation: received = passed on + absorbed + conservation error."),
        _hidden(summary, safe_table(LEDGER, rows, (3, 4, 5, 6))),
    )


def _again(e: Explanation) -> Markup:
    said = e.provenance | {
        "method": e.method.title,
        "seed": e.seed,
        "target": f"{e.target!r} ({_ids(e)})" if e.span is None else e.what,
    }
    said |= {"against": repr(e.against)} if e.against is not None else {}
    said |= {"token ids": " ".join(map(str, e.input_ids))} if e.picture is None else {}
    said |= {"decoder ids": " ".join(map(str, e.decoder_ids))} if e.decoder_ids is not None else {}
    rows = (tag("dt", key) + tag("dd", value) for key, value in said.items())
    return tag("section", tag("h2", "To do it again"), tag("dl", *map(Markup, rows)))


def _ids(e: Explanation) -> str:
    """Of the target: one, or those of an answer."""
    if e.answer is None:
        return f"id {e.target_id}"
    return f"ids {' '.join(str(token.id) for token in e.answer)}"


def _shipped(e: Explanation) -> Markup:
    """Of the model that ships with refl what it knows: most words are none of its."""
    if e.about.get("model") != SHIPPED.name or e.fingerprint() != fingerprint():
        return Markup("")
    known = words()
    return tag(
        "section",
        tag("h2", "The model that ships with refl"),
        tag("p", ABILITIES),
        tag("p", TRAINING),
        _hidden(f"All {len(known)} words that it knows", tag("p", " ".join(known))),
    )


# -- colors ----------------------------------------------------------------------------------------


def levels_css() -> str:
    """A class for each level, light and dark, with the text color that stands out from it."""
    steps = [s for s in range(-LEVELS, LEVELS + 1) if s]
    light = "\n".join(_level_css(s, background(s)) for s in steps)
    dark = "\n".join(_level_css(s, background(s, POSITIVE_DARK, NEGATIVE_DARK)) for s in steps)
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"


def _level_css(step: int, back: Color) -> str:
    colors = f"background: {hexadecimal(back)}; color: {hexadecimal(foreground(back))}"
    return f":where(.refl) .{level_class(step)} {{ {colors} }}"
