"""How `refl verify` shows what it measured: lines for a terminal, and plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refl.show.lines import Line, Span, grid, paragraph
from refl.show.text import one_line
from refl.verification.identities.identities import Row, Subject

HEAD = ("", "identity", "measured", "allowed", "")
STYLES = {"holds": "green", "FAILS": "bold red"}
NOTE = """\
measured: the deviation nearest to what is allowed, in the unit of the output. allowed: 8 u times the sum of |terms| over all sites, u the \
unit roundoff; 0 where every bit has to be the same."""
SMALL_HEAD = "the rules themselves, on small nets (not this model)"


def lines(s: Subject, rows: Sequence[Row], width: int) -> list[Line]:
    """The table, the rows of small nets apart, and the sum of it."""
    here, small = [r for r in rows if not r.small], [r for r in rows if r.small]
    apart = [[], [(SMALL_HEAD, "bold")], *_table(small, width)] if small else []
    return [
        *_title(s, width),
        [],
        *_table(here, width),
        *apart,
        [],
        *paragraph(NOTE, width, "dim", indent=""),
        [],
        _verdict(rows),
    ]


def _title(s: Subject, width: int) -> list[Line]:
    about = [
        s.model.name or "a model",
        s.model.net.MODEL_TYPE,
        s.model.dtype,
        s.model.task,
        _input(s),
    ]
    return paragraph(" · ".join(one_line(a) for a in about), width, "bold", indent="")


def _input(s: Subject) -> str:
    if s.model.takes_images:
        return "one picture"
    written = "" if s.decoder is None else f" and {len(s.decoder)} written"
    what = (
        f"{s.at[0]}[{', '.join(map(str, s.at[1]))}]"
        if s.at
        else repr(s.model.output_names([s.target])[0])
    )
    return f"{len(s.item)} tokens{written}, explaining {what}"


def _table(rows: Sequence[Row], width: int) -> list[Line]:
    """Under each row what it means and on what it was measured."""
    table = grid([[(h, "dim") for h in HEAD], *(_cells(r) for r in rows)], "rlrrl")
    below = [[], *([*_below(r, width), []] for r in rows)]
    return [line for row, more in zip(table, below, strict=True) for line in (row, *more)][:-1]


def _cells(r: Row) -> list[Span]:
    if r.measured is None or r.bound is None:
        return [
            (str(r.number), "dim"),
            (r.identity, "dim"),
            ("-", "dim"),
            ("-", "dim"),
            ("-", "dim"),
        ]
    return [
        (str(r.number), "bold"),
        (r.identity, ""),
        (f"{r.measured:.2g}", ""),
        (f"{r.bound:.2g}", ""),
        (r.verdict, STYLES[r.verdict]),
    ]


def _below(r: Row, width: int) -> list[Line]:
    if r.measured is None:
        return paragraph(f"does not apply: {r.reason}", width, "dim", indent="    ")
    return [
        *paragraph(r.means, width, indent="    "),
        *paragraph(one_line(r.found), width, "dim", indent="    "),
    ]


def _verdict(rows: Sequence[Row]) -> Line:
    failed = [r for r in rows if not r.holds]
    count = sum(r.measured is not None for r in rows)
    rest = f"; {len(rows) - count} do not apply" if len(rows) > count else ""
    if failed:
        numbers = ", ".join(str(n) for n in sorted({r.number for r in failed}))
        return [(f"{len(failed)} of {count} FAIL (identity {numbers}){rest}", STYLES["FAILS"])]
    return [(f"all {count} hold{rest}", STYLES["holds"])]


def as_dict(s: Subject, rows: Sequence[Row]) -> dict[str, Any]:
    """What was measured on what, for JSON."""
    return {
        "model": s.model.name,
        "architecture": s.model.net.MODEL_TYPE,
        "dtype": s.model.dtype,
        "task": s.model.task,
        "input_ids": None if s.model.takes_images else s.item,
        "decoder_ids": s.decoder,
        "target": None if s.at else s.model.output_names([s.target])[0],
        "at": None if s.at is None else [s.at[0], list(s.at[1])],
        "holds": all(r.holds for r in rows),
        "identities": [r.as_dict() for r in rows],
    }
