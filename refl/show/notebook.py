"""An explanation in a notebook: inline styles only, on whatever background it has."""

from __future__ import annotations

from refl.explanation import Explanation
from refl.show.account import NORM, Row, account_of, facts, joiner, quantity, rows_of_tokens
from refl.show.colors import FAINT, foreground, hexadecimal, ink, terminal_background
from refl.show.markup import safe
from refl.show.numbers import amount
from refl.show.page import heatmap, tokens

_BOX = "font-family:system-ui,sans-serif;line-height:1.9;max-width:60em"
_NUMERIC = "text-align:right;font-variant-numeric:tabular-nums"


def fragment(e: Explanation) -> str:
    """The colored text, or the picture, and the account."""
    head = f"<strong>{safe(quantity(e))} = {amount(e.explained, 4)}</strong>"
    more = f'<span style="opacity:.7">{safe(facts(e))}; {safe(e.method.title)}</span>'
    shown = (
        heatmap(e)
        if e.picture is not None
        else "".join(_tokens(name, row) for name, row in rows_of_tokens(e))
    )
    note = f"<div><em>{safe(NORM)}</em></div>" if e.method.score == "norm" else ""
    rows = "".join(_row(row) for row in account_of(e))
    return (
        f'<div style="{_BOX}"><div>{head} {more}</div>{shown}{note}'
        f'<table style="color:inherit">{rows}</table></div>'
    )


def _row(row: Row) -> str:
    return (
        f'<tr><td style="text-align:left">{safe(row.name)}</td>'
        f'<td style="{_NUMERIC}">{row.shown}</td>'
        f'<td style="{_NUMERIC};opacity:.7">{row.percent}</td>'
        f'<td style="text-align:left;opacity:.7">{safe(row.note)}</td></tr>'
    )


def _tokens(name: str, e: Explanation) -> str:
    style = _inline if joiner(e.tokens) else _inline_tight
    title = f'<div style="opacity:.7">{name}</div>' if name else ""
    return f'{title}<div style="overflow-wrap:anywhere">{tokens(e, style)}</div>'


def _inline(step: int, padding: str = ".2em") -> str:
    """The colors of a terminal, for the same reason: a notebook's background is not known here."""
    style = f"padding:.1em {padding};white-space:pre-wrap"
    if abs(step) > FAINT:
        back = terminal_background(step)
        style += f";border-radius:{padding};background:{hexadecimal(back)}"
        style += f";color:{hexadecimal(foreground(back))}"
    elif step:
        style += f";color:{ink(step)}"
    return f'style="{style}"'


def _inline_tight(step: int) -> str:
    """Pieces of words stand side by side."""
    return _inline(step, "0")
