"""An explanation as one HTML page: the tokens in color or the heatmap, the account, the candidates,
every number, the method, the conservation ledger, and what it takes to do it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from refl.explanation import Explanation
from refl.rules.composites import Composite
from refl.show.account import (
    COMPACT,
    DIGITS,
    ENCODER,
    NORM,
    Row,
    account_of,
    all_scores,
    considered,
    described,
    facts,
    form,
    joiner,
    outputs,
    quantity,
    rows_of_tokens,
    scores,
)
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
from refl.show.markup import document, image, safe, table
from refl.show.numbers import amount, decimals, strongest
from refl.show.tables import COMPOSITE, LEDGER, composite_rows, ledger_rows
from refl.show.text import visible


def html(e: Explanation) -> str:
    """One page that needs nothing but itself: no network, no script."""
    sections = [
        _head(e) + (_text(e) if e.picture is None else _picture(e)),
        f'<div class="two">{_account(e)}{_candidates(e)}</div>',
        _token_numbers(e) if e.picture is None else _patch_numbers(e),
        _method(e),
        _ledger(e),
        _again(e),
    ]
    return document(f"refl: {quantity(e)}", "\n".join(sections), _levels_css())


def _head(e: Explanation) -> str:
    return (
        f"<header><h1>{safe(quantity(e))} = {amount(e.explained, 4)}</h1>"
        f"<p>{safe(facts(e))}. Explained by <b>{safe(e.method.title)}</b> on "
        f"{safe(e.about.get('model') or 'a model')}.</p></header>\n"
    )


def _note(text: str) -> str:
    return f'<p class="note">{safe(text)}</p>' if text else ""


def _norm_note(e: Explanation) -> str:
    return _note(NORM if e.method.score == "norm" else "")


def _hidden(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>{body}</details>"


# -- tokens ----------------------------------------------------------------------------------------


def _text(e: Explanation) -> str:
    rows = "".join(_row_of_tokens(name, row) for name, row in rows_of_tokens(e))
    return f"<section>{rows}{_legend(e)}{_norm_note(e)}</section>"


def _row_of_tokens(name: str, e: Explanation) -> str:
    few = len(e.tokens) <= COMPACT
    target = f' <span class="target">→ {safe(visible(e.target))}</span>' if name != ENCODER else ""
    kind = " few" if few else " tight" if joiner(e.tokens) == "" else ""
    shown = tokens(e, _by_class, numbers=few)
    return f'{_note(name)}<div class="text{kind}">{shown}{target}</div>'


def tokens(e: Explanation, attributes: Callable[[int], str], numbers: bool = False) -> str:
    """The tokens as running text, each in the color of its level; the numbers are in its tip, and
    below it where asked for.
    """
    most = strongest(all_scores(e))
    spans = []
    for i, (token, number, r) in enumerate(zip(e.tokens, scores(e), e.relevance, strict=True)):
        tip = f"token {i}, id {e.input_ids[i]}: relevance {number}"
        under = f"<small>{number}</small>" if numbers else ""
        end = "<br>" if token.endswith("\n") else ""
        how = attributes(level(float(r), most))
        spans.append(f'<span {how} title="{tip}">{safe(token)}{under}</span>{end}')
    return (joiner(e.tokens) or "<wbr>").join(spans)


def _by_class(step: int) -> str:
    return f'class="t {_level_class(step)}" tabindex="0"'


def _legend(e: Explanation) -> str:
    most = strongest(all_scores(e))
    end = f"{most:.{decimals(most, DIGITS)}f}"
    norm = e.method.score == "norm"
    steps = range(0 if norm else -LEVELS, LEVELS + 1)
    swatches = "".join(f'<i class="{_level_class(step)}"></i>' for step in steps)
    low, high = ("0", end) if norm else (f"-{end} against", f"+{end} for")
    return _legend_of(low, f'<span class="ramp">{swatches}</span>', high)


def _legend_of(low: str, ramp: str, high: str) -> str:
    return f'<div class="legend"><span>{low}</span>{ramp}<span>{high}</span></div>'


def _token_numbers(e: Explanation) -> str:
    tables = "".join(_note(name) + _number_table(row) for name, row in rows_of_tokens(e))
    return f"<section>{_hidden('Every token as a number', tables)}</section>"


def _number_table(e: Explanation) -> str:
    most = strongest(all_scores(e))
    rows = [
        (str(i), f"<code>{safe(visible(token))}</code>", str(number), score, _meter(float(r), most))
        for i, (token, number, score, r) in enumerate(
            zip(e.tokens, e.input_ids, scores(e), e.relevance, strict=True)
        )
    ]
    return table(("", "token", "id", "relevance", ""), rows, (0, 2, 3))


def _meter(value: float, most: float) -> str:
    """A bar from the middle to the right (for) or to the left (against)."""
    part = value / most if most > 0 and math.isfinite(value) else 0.0
    left, wide = 60 + min(part, 0.0) * 60, abs(part) * 60
    kind = "pos" if part >= 0 else "neg"
    return (
        '<svg class="meter" viewBox="0 0 120 12" aria-hidden="true">'
        f'<rect class="{kind}" x="{left:.1f}" y="1" width="{wide:.1f}" height="10"/>'
        '<line x1="60" x2="60" y1="0" y2="12"/></svg>'
    )


# -- pictures --------------------------------------------------------------------------------------


def heatmap(e: Explanation) -> str:
    """The picture, colored by relevance."""
    height, width = e.relevance.shape
    what = f"the picture, {height} by {width} pixels, colored by relevance for {e.target!r}"
    return image(data_uri(e.relevance, e.picture), what)


def _picture(e: Explanation) -> str:
    most = strongest_pixel(e.relevance)
    against, favor = map(hexadecimal, DRAWING)
    style = f"background:linear-gradient(90deg,{against},#ebebeb,{favor});width:15rem;height:.8rem"
    legend = _legend_of(
        f"-{most:.3g} against",
        f'<span class="ramp" style="{style}"></span>',
        f"+{most:.3g} for",
    )
    hot = f"stronger than {most:.3g} are {1 - QUANTILE:.1%} of the pixels: they are drawn no darker"
    return f"<section>{heatmap(e)}{legend}{_note(hot)}{_norm_note(e)}</section>"


def _patch_numbers(e: Explanation) -> str:
    most = strongest(float(v) for v in e.patches.flat)
    rows = "".join(f"<tr>{''.join(_patch(float(v), most) for v in row)}</tr>" for row in e.patches)
    grid = f'<div class="scroll"><table class="patches">{rows}</table></div>'
    return f"<section>{_hidden('Every patch as a number', grid)}</section>"


def _patch(value: float, most: float) -> str:
    kind = _level_class(level(value, most))
    return f'<td class="t {kind}">{value:+.{decimals(most, 3)}f}</td>'


# -- the account, and the candidates ---------------------------------------------------------------


def _account(e: Explanation) -> str:
    rows = account_of(e)
    cells = [(safe(r.name), r.shown, r.percent, safe(r.note or quantity(e))) for r in rows]
    head = ("part", e.seed if e.against is None else "logits", "percent", "")
    return (
        f"<section><h2>The account</h2>{_account_bars(rows)}"
        f"{table(head, cells, (1, 2), 'account')}</section>"
    )


_NAMES, _BARS = 160, 340
"""Widths of the names and of the bars."""


def _account_bars(rows: Sequence[Row]) -> str:
    """The account as bars from one zero line, drawn to one scale."""
    amounts = [r.amount if math.isfinite(r.amount) else 0.0 for r in rows]
    low, high = min(0.0, *amounts), max(0.0, *amounts)
    unit = _BARS / ((high - low) or 1.0)
    zero = _NAMES - low * unit
    bars = "".join(
        _account_bar(i, row, value, zero, unit)
        for i, (row, value) in enumerate(zip(rows, amounts, strict=True))
    )
    height = 20 * len(rows)
    return (
        f'<svg viewBox="0 0 {_NAMES + _BARS + 10} {height}" role="img" '
        f'aria-label="the parts of the account as bars">{bars}'
        f'<line x1="{zero:.1f}" x2="{zero:.1f}" y1="0" y2="{height}"/></svg>'
    )


def _account_bar(i: int, row: Row, value: float, zero: float, unit: float) -> str:
    kind = "whole" if row.name == "explained" else "pos" if value >= 0 else "neg"
    left, wide = zero + min(value, 0.0) * unit, abs(value) * unit
    return (
        f'<text x="{_NAMES - 8}" y="{20 * i + 14}" text-anchor="end">{safe(row.name)}</text>'
        f'<rect class="{kind}" x="{left:.2f}" y="{20 * i + 3}" width="{wide:.2f}" height="14">'
        f"<title>{row.shown}</title></rect>"
    )


def _candidates(e: Explanation) -> str:
    if e.seed == "activation":
        return ""
    rows = [
        (f"<code>{safe(visible(t))}</code>", str(i), f"{z:.4f}", f"{p:.2%}", part)
        for t, i, z, p, part in considered(e)
    ]
    name = outputs(e)
    head = (name.rpartition(" ")[2], "id", "logit", "probability", "")
    return f"<section><h2>The {name}</h2>{table(head, rows, (1, 2, 3))}</section>"


# -- the method, the ledger, and how to do it again ------------------------------------------------


def _method(e: Explanation) -> str:
    m = e.method
    summary = "".join(f"<p>{safe(said)}</p>" for said in described(m))
    table = f" Its table: {m.hash}" if isinstance(m, Composite) else ""
    return (
        f"<section><h2>The method: {safe(m.title)}</h2>{summary}{_note(m.source)}"
        f"<p>In {safe(form(m))}.{table}</p>"
        f"{_rules(m) if isinstance(m, Composite) else ''}</section>"
    )


def _rules(c: Composite) -> str:
    rows = [
        (safe(operation), safe(role), f"<code>{safe(site)}</code>", safe(rule), safe(options))
        for operation, role, site, rule, options in composite_rows(c)
    ]
    return _hidden(
        "The table of rules, with every option; the first line that fits an operation gives its "
        "rule",
        table(COMPOSITE, rows),
    )


def _ledger(e: Explanation) -> str:
    if e.recorded is None:
        return ""
    rows = [[safe(cell) for cell in row] for row in ledger_rows(e.ledger)]
    summary = f"{len(rows)} operations, from the output down"
    return (
        "<section><h2>The conservation ledger</h2><p>At every operation: "
        "received = passed on + absorbed + conservation error.</p>"
        f"{_hidden(summary, table(LEDGER, rows, (3, 4, 5, 6)))}</section>"
    )


def _again(e: Explanation) -> str:
    said = e.provenance | {
        "method": e.method.title,
        "seed": e.seed,
        "target": f"{e.target!r} (id {e.target_id})",
    }
    said |= {"against": repr(e.against)} if e.against is not None else {}
    said |= {"token ids": " ".join(map(str, e.input_ids))} if e.picture is None else {}
    said |= {"decoder ids": " ".join(map(str, e.decoder_ids))} if e.decoder_ids is not None else {}
    rows = "".join(f"<dt>{safe(key)}</dt><dd>{safe(value)}</dd>" for key, value in said.items())
    return f"<section><h2>To do it again</h2><dl>{rows}</dl></section>"


# -- colors ----------------------------------------------------------------------------------------


def _level_class(step: int) -> str:
    return f"p{step}" if step > 0 else f"n{-step}" if step < 0 else "z"


def _levels_css() -> str:
    """A class for each level, light and dark, with the text color that stands out from it."""
    steps = [s for s in range(-LEVELS, LEVELS + 1) if s]
    light = "\n".join(_level_css(s, background(s)) for s in steps)
    dark = "\n".join(_level_css(s, background(s, POSITIVE_DARK, NEGATIVE_DARK)) for s in steps)
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"


def _level_css(step: int, back: Color) -> str:
    colors = f"background: {hexadecimal(back)}; color: {hexadecimal(foreground(back))}"
    return f".{_level_class(step)} {{ {colors} }}"
