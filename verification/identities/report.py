"""How `refl verify` shows what it measured: lines for a terminal, and plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refl.show.lines import Line, Span, grid, paragraph
from refl.show.text import one_line
from refl.verification.identities.model_under_test import ModelUnderTest
from refl.verification.identities.rows import Row

HEAD = ("", "identity", "measured", "allowed", "")
STYLES = {"holds": "green", "FAILS": "bold red"}
NOTE = (
    "measured: the deviation nearest to what is allowed, in the unit of the output. allowed: 8 u "
    "times the sum of |terms| over all sites, u the unit roundoff, and where two forward passes "
    "need more, 8 times what the last digits of the weights move; 0 where every bit has to be the "
    "same."
)
SMALL_HEAD = "the rules themselves, on small nets (not this model)"


def lines(m: ModelUnderTest, rows: Sequence[Row], width: int) -> list[Line]:
    """The table, the rows of small nets apart, and a summary."""
    here, small = [r for r in rows if not r.small], [r for r in rows if r.small]
    apart = [[], [(SMALL_HEAD, "bold")], *_table(small, width)] if small else []
    return [
        *_title(m, width),
        [],
        *_table(here, width),
        *apart,
        [],
        *paragraph(NOTE, width, "dim", indent=""),
        [],
        _summary(rows),
    ]


def _title(m: ModelUnderTest, width: int) -> list[Line]:
    model = m.model
    about = [model.name or "a model", model.net.MODEL_TYPE, model.dtype, model.task, _input(m)]
    return paragraph(" · ".join(one_line(a) for a in about), width, "bold", indent="")


def _input(m: ModelUnderTest) -> str:
    if m.model.takes_images:
        written = "" if m.decoder is None else f" and {len(m.decoder)} tokens of the decoder"
        return f"one picture{written}"
    decoder = "" if m.decoder is None else f" and {len(m.decoder)} of the decoder"
    return f"{len(m.item)} tokens{decoder}, explaining {_explained(m)}"


def _explained(m: ModelUnderTest) -> str:
    if m.at:
        return f"{m.at[0]}[{', '.join(map(str, m.at[1]))}]"
    return repr(m.model.output_names([m.target])[0])


def _table(rows: Sequence[Row], width: int) -> list[Line]:
    """Under each row what it means and on what it was measured."""
    table = grid([[(h, "dim") for h in HEAD], *(_cells(r) for r in rows)], "rlrrl")
    below = [[], *([*_below(r, width), []] for r in rows)]
    return [line for row, more in zip(table, below, strict=True) for line in (row, *more)][:-1]


def _cells(r: Row) -> list[Span]:
    if r.measured is None or r.bound is None:
        return [(cell, "dim") for cell in (str(r.number), r.identity, "-", "-", "-")]
    return [
        (str(r.number), "bold"),
        (r.identity, ""),
        (f"{r.measured:.2g}", ""),
        (f"{r.bound:.2g}", ""),
        (r.result, STYLES[r.result]),
    ]


def _below(r: Row, width: int) -> list[Line]:
    if r.measured is None:
        return paragraph(f"does not apply: {r.reason}", width, "dim", indent="    ")
    return [
        *paragraph(r.means, width, indent="    "),
        *paragraph(one_line(r.found), width, "dim", indent="    "),
    ]


def _summary(rows: Sequence[Row]) -> Line:
    failed = [r for r in rows if not r.holds]
    count = sum(r.measured is not None for r in rows)
    rest = f"; {len(rows) - count} do not apply" if len(rows) > count else ""
    if not count:
        return [("nothing could be measured: this decides nothing", STYLES["FAILS"])]
    if failed:
        numbers = ", ".join(str(n) for n in sorted({r.number for r in failed}))
        return [(f"{len(failed)} of {count} FAIL (identity {numbers}){rest}", STYLES["FAILS"])]
    return [(f"all {count} hold{rest}", STYLES["holds"])]


def all_hold(rows: Sequence[Row]) -> bool:
    """Whether something was measured, and nothing fails."""
    return any(r.measured is not None for r in rows) and all(r.holds for r in rows)


def as_dict(m: ModelUnderTest, rows: Sequence[Row]) -> dict[str, Any]:
    """What was measured on what, for JSON."""
    return {
        "model": m.model.name,
        "architecture": m.model.net.MODEL_TYPE,
        "dtype": m.model.dtype,
        "task": m.model.task,
        "input_ids": None if m.model.takes_images else m.item,
        "decoder_ids": m.decoder,
        "target": None if m.at else m.model.output_names([m.target])[0],
        "at": None if m.at is None else [m.at[0], list(m.at[1])],
        "holds": all_hold(rows),
        "identities": [r.as_dict() for r in rows],
    }
