"""Tables: the conservation ledger, a method's rules, the kept sites."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from refl.explanation import Explanation
from refl.ledger import Entry, Ledger
from refl.rules.composites import Composite
from refl.show.account import ERROR, account
from refl.show.lines import Line, Span, folded, grid, plain
from refl.show.numbers import amount, decimals, each, error, strongest, total
from refl.show.terminal import account_lines
from refl.show.text import printable

LEDGER = ("site", "operation", "rule", "received", "passed on", "absorbed", ERROR, "by cause")
COMPOSITE = ("operation", "role", "site", "rule", "options")
KEPT = ("kept site", "shape", "sum of relevance", "least", "most")


def _header(names: Sequence[str], style: str = "bold") -> list[Span]:
    return [(name, style) for name in names]


# -- the conservation ledger -----------------------------------------------------------------------


def ledger_table(ledger: Ledger) -> str:
    """The account, then every site from the output down: received, passed on, absorbed,
    conservation error.
    """
    note = examples_note(ledger)
    rows = [[(cell, "") for cell in row] for row in ledger_rows(ledger)]
    return plain(
        [
            *([[(note, "")], []] if note else []),
            *account_lines(account(ledger), "", 100),
            [],
            *grid([_header(LEDGER, "dim"), *rows], "lllrrrrl"),
        ]
    )


def examples_note(ledger: Ledger) -> str:
    """Of a batch's ledger that it is summed."""
    examples = ledger.examples
    if examples < 2:
        return ""
    return (
        f"{examples} examples, sums over all of them; ledger.example(b) is the conservation ledger "
        "of one"
    )


def ledger_rows(ledger: Ledger) -> list[list[str]]:
    """A row for each operation, its cells as LEDGER names them."""
    places = decimals(strongest([v for entry in ledger for v in each(entry.received)]), 7)
    return [_entry(entry, places) for entry in ledger]


def _entry(entry: Entry, places: int) -> list[str]:
    causes = {cause: total(a) for cause, a in entry.absorbed.items()}
    numbers = (
        total(entry.received),
        math.fsum(total(p) for p in entry.passed.values()),
        math.fsum(causes.values()),
    )
    return [
        printable(entry.site),
        entry.operation,
        entry.rule,
        *(amount(v, places) for v in numbers),
        error(total(entry.conservation_error)),
        _by_cause(causes, places),
    ]


def _by_cause(causes: dict[str, float], places: int) -> str:
    return ", ".join(f"{cause} {amount(a, places)}" for cause, a in causes.items() if a != 0)


# -- methods ---------------------------------------------------------------------------------------


def composite_table(composite: Composite, width: int | None) -> list[Line]:
    """Every line of a composite's table, with every option."""
    rows: list[list[Span]] = [
        list(zip(row, ("cyan", "", "", "", "dim"), strict=True))
        for row in composite_rows(composite)
    ]
    return folded([_header(COMPOSITE), *rows], "lllll", width, 4)


def composite_rows(composite: Composite) -> list[list[str]]:
    """A row for each line of the table, its cells as COMPOSITE names them."""
    return [
        [*(printable(line[name]) for name in COMPOSITE[:-1]), _options(line["options"])]
        for line in composite.as_dict()["rules"]
    ]


def options_table(options: dict[str, Any], width: int | None) -> list[Line]:
    """Every option of a method that is no table, with its value."""
    if not options:
        return []
    rows: list[list[Span]] = [
        [(name, "cyan"), (printable(value), "")] for name, value in options.items()
    ]
    return folded([_header(("option", "value")), *rows], "ll", width, 1)


def _options(options: dict[str, Any]) -> str:
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}  # as in TOML
    return ", ".join(f"{key}={printable(value)}" for key, value in plain.items())


# -- the kept sites --------------------------------------------------------------------------------


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
    rows: list[list[Span]] = [
        [
            (printable(site), ""),
            (_shape(k["shape"]), "dim"),
            *((f"{k[name]:.6g}", "") for name in ("sum", "least", "most")),
        ]
        for site, k in kept(e).items()
    ]
    return folded([_header(KEPT), *rows], "llrrr", width, 2)


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
