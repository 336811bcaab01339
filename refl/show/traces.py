"""A sweep as it went, from the logit back: operation by operation, block by block, or by attention
head, in 80 columns.

What a block receives comes from outside of it, and what it passes on goes outside:

    received = passed on + absorbed + conservation error      at each operation, and at each block
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from refl.explanation import Explanation
from refl.show.lines import Line, Span, grid
from refl.show.numbers import amount, decimals, strongest
from refl.show.text import cells, printable

WIDTH = 80
OPERATIONS = ("site", "operation and rule", "received", "passed on", "absorbed")
BLOCKS = ("block", "received", "passed on", "absorbed", "by cause")
NAME, RULE, NUMBER = 26, 21, 9
"""Columns for a name within its block, for an operation and its rule, and for a number."""

Row = dict[str, Any]
"""An operation: site, operation, rule, received, passed, absorbed, conservation_error, shape."""

_BLOCK = re.compile(r"(.*?\.\d+)(?:\.|$)")


def block_of(site: str) -> str:
    """The block that a site lies in: its path up to the first number; "" outside of all."""
    found = _BLOCK.match(site)
    return found[1] if found else ""


# -- by operation ----------------------------------------------------------------------------------


def operations_table(rows: Sequence[Row]) -> list[Line]:
    """A line for each operation, under the name of its block and the block's totals."""
    places = _places(rows)
    lines = _aligned([[(name, "bold") for name in OPERATIONS]])
    for block, inside in groupby(rows, key=lambda row: block_of(row["site"])):
        own = list(inside)
        lines += [[]] if len(lines) > 1 else []
        lines += _aligned([_block_head(block, own, places)]) if block else []
        lines += [line for row in own for line in _operation(row, block, places)]
    return lines


def _block_head(block: str, rows: list[Row], places: int) -> list[Span]:
    received, passed, absorbed = totals(rows)
    numbers = (_number(v, places) for v in (received, passed, math.fsum(absorbed.values())))
    return [(_within(block, NAME), "bold"), ("the block", "dim"), *((n, "bold") for n in numbers)]


def _operation(row: Row, block: str, places: int) -> list[Line]:
    """Its line; under its name, where that is too long to stand beside the numbers."""
    name = row["site"].removeprefix(block).removeprefix(".") or "(output)"
    shown = _within(("  " if block else "") + name, WIDTH)
    if cells(shown) <= NAME:
        return _aligned([_numbers(row, shown, places)])
    return [[(shown, "")], *_aligned([_numbers(row, "", places)])]


def _numbers(row: Row, shown: str, places: int) -> list[Span]:
    if row["received"] is None:
        what = _within(row["operation"], RULE)
        return [(shown, ""), (what, "cyan"), ("none", "dim"), ("", ""), ("", "")]
    absorbed = math.fsum(row["absorbed"].values())
    return [
        (shown, ""),
        (_within(f"{row['operation']} {row['rule']}", RULE), "cyan"),
        (_number(row["received"], places), ""),
        (_number(math.fsum(row["passed"].values()), places), ""),
        (_number(absorbed, places) if absorbed else "", ""),
    ]


def _aligned(rows: Iterable[Sequence[Span]]) -> list[Line]:
    """The columns of the table, whose widths are the same in every block."""
    widths = (NAME, RULE, NUMBER, NUMBER, NUMBER)
    return [
        [
            (_pad(text, width, left=i < 2) + (" " if i < 4 else ""), style)
            for i, ((text, style), width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]


def _pad(text: str, width: int, left: bool) -> str:
    blank = " " * max(width - cells(text), 0)
    return text + blank if left else blank + text


# -- by block --------------------------------------------------------------------------------------


def blocks(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The operations of each block in the sweep's order; an operation outside of all blocks is one
    by itself.
    """
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(block_of(row["site"]) or row["site"], []).append(row)
    return found


def totals(rows: Sequence[Row]) -> tuple[float, float, dict[str, float]]:
    """What operations together receive from others, pass on to others, and absorb by cause."""
    reached = [row for row in rows if row["received"] is not None]
    own = {row["site"] for row in reached}
    links = [link for row in reached for link in row["passed"].items()]
    within = math.fsum(v for site, v in links if site in own)
    absorbed: dict[str, list[float]] = {}
    for row in reached:
        for cause, v in row["absorbed"].items():
            absorbed.setdefault(cause, []).append(v)
    sums = {cause: math.fsum(values) for cause, values in absorbed.items()}
    causes = sorted(sums.items(), key=lambda item: -abs(item[1]))
    received = math.fsum(row["received"] for row in reached) - within
    return received, math.fsum(v for site, v in links if site not in own), dict(causes)


def blocks_table(rows: Sequence[Row]) -> list[Line]:
    """A line for each block, and one for each operation outside of all."""
    places = _places(rows)
    table: list[list[Span]] = [[(name, "bold") for name in BLOCKS]]
    for name, inside in blocks(rows).items():
        if all(row["received"] is None for row in inside):
            continue
        received, passed, absorbed = totals(inside)
        numbers = (received, passed, math.fsum(absorbed.values()))
        shown = (_number(v, places) for v in numbers)
        table.append(
            [(_within(name, NAME), ""), *((n, "") for n in shown), (_cause(absorbed), "dim")]
        )
    return grid(table, "lrrrl")


def _cause(absorbed: dict[str, float]) -> str:
    """The largest, and how many more there are."""
    found = [cause for cause, v in absorbed.items() if v]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return _within(found[0], 18) + more if found else ""


# -- by head ---------------------------------------------------------------------------------------


def heads(e: Explanation) -> dict[str, list[float]]:
    """Attention -> the relevance of each head's output, its context; their sum is what the whole
    attention received.
    """
    return {
        site.removesuffix(".context"): [float(r.sum()) for r in e[site]]
        for site in e
        if site.endswith(".context") and e[site].ndim == 3
    }


def heads_table(e: Explanation) -> list[Line]:
    """A line for each attention, from the logit back: all heads together, then each."""
    found = heads(e)
    places = decimals(strongest(v for each in found.values() for v in each), 4)
    most = max((len(each) for each in found.values()), default=0)
    across = min(most, 3)
    head: list[Span] = [("attention", "bold"), ("all heads", "bold"), ("heads", "bold")]
    rows: list[list[Span]] = [[*head, *[("", "")] * (across - 1)]]
    for site, each in found.items():
        for start in range(0, len(each), max(across, 1)):
            named = [(_within(site, NAME), ""), (_number(math.fsum(each), places), "bold")]
            part = [
                (f"{h}: {_number(v, places)}", "")
                for h, v in enumerate(each[start : start + across], start)
            ]
            rows.append([*(named if start == 0 else [("", "")] * 2), *part])
            rows[-1] += [("", "")] * (across + 2 - len(rows[-1]))
    return grid(rows, "lr" + "r" * across)


# -- in so many columns ----------------------------------------------------------------------------


def _places(rows: Sequence[Row]) -> int:
    return min(decimals(strongest(row["received"] or 0.0 for row in rows), 6), 6)


def _number(value: float, places: int) -> str:
    """In NUMBER columns, whatever its size."""
    shown = amount(value, places)
    return shown if len(shown) <= NUMBER else f"{value:.2e}"


def _within(text: str, most: int) -> str:
    """The text in so many columns: the end of a site says more than its middle."""
    shown = printable(text)
    if cells(shown) <= most:
        return shown
    tail = shown[-(2 * most // 3) :]
    while cells(tail) > most - 2:
        tail = tail[1:]
    front = shown[: most - 1 - cells(tail)]
    return f"{front}…{tail}"
