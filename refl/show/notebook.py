"""Explanations and ledgers in a notebook: the body of the page, with a style that reaches nothing
else in the notebook.
"""

from __future__ import annotations

from collections.abc import Sequence

from refl.explanation import Explanation
from refl.ledger import Ledger
from refl.show import markup
from refl.show.account import LEDGER, account
from refl.show.markup import Markup, joined, tag
from refl.show.page import (
    account_section,
    body,
    head,
    input_shown,
    ledger_section,
    levels_css,
)
from refl.show.tables import examples_note

MOST = 50
"""Explanations of a batch that are shown."""


def fragment(e: Explanation) -> str:
    """An explanation, as on its page."""
    return markup.fragment(body(e), levels_css())


def ledger_fragment(ledger: Ledger) -> str:
    """A conservation ledger: the sums, and every operation."""
    note = examples_note(ledger)
    sections = (
        tag("p", note, class_="note") if note else "",
        account_section(account(ledger), "relevance", "", f"The {LEDGER}"),
        ledger_section(ledger),
    )
    return markup.fragment(joined(sections, "\n"))


def batch_fragment(batch: Sequence[Explanation]) -> str:
    """The inputs of a batch below each other, each with what is explained."""
    shown = [_one(number, e) for number, e in enumerate(batch[:MOST])]
    more = len(batch) - MOST
    note = f"{more} more: batch[{MOST}] is the next" if more > 0 else ""
    return markup.fragment(
        joined([*shown, tag("p", note, class_="note") if note else ""], "\n"), levels_css()
    )


def _one(number: int, e: Explanation) -> Markup:
    return tag("div", tag("p", f"[{number}]", class_="note"), head(e), input_shown(e))
