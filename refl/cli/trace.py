"""`refl trace`: the sweep from the logit back, with every entry of the conservation ledger."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from refl.cli import options
from refl.cli.command import add_command
from refl.cli.output import print_json, print_lines, width
from refl.cli.progress import Progress

if TYPE_CHECKING:
    from refl.explanation import Explanation
    from refl.model import Model
    from refl.show.lines import Line

_ABOUT = """\
The sweep as it went, from the logit back: every operation with its rule and its entry in the
conservation ledger, under the totals of its block.

  received = passed on + absorbed + conservation error

--json has shapes, causes and conservation errors, too.
"""


def add(commands: Any) -> None:
    """The command and its options."""
    summary = "every operation with its entry in the conservation ledger"
    p = add_command(commands, "trace", summary, run, description=_ABOUT)
    p.add_argument(
        "--by",
        choices=("operation", "block", "head"),
        default="operation",
        help="a line for each operation, the totals of each block, or the relevance of each "
        "attention head (default: %(default)s)",
    )
    options.explaining(p)


def run(args: argparse.Namespace) -> int:
    from refl.cli.asked import explained, model_asked, table_asked
    from refl.show.account import account, quantity
    from refl.show.terminal import account_lines, head
    from refl.show.traces import WIDTH

    method = table_asked(args, "operations to follow", "refl explain")
    with Progress() as progress:
        model = model_asked(args)
        # scores are kept so that attention runs in its plain form, operation by operation
        keep = ("*.scores", "*.context") if args.by == "head" else "*.scores"
        e = explained(model, args, method, keep, progress)
        rows = _operations(model, e, args.position, every=args.at is not None or bool(args.mean))
    if args.json:
        print_json(e.as_dict() | {"operations": rows} | _totals(e, rows, args.by))
        return 0
    columns = min(width(), WIDTH)
    sums = account_lines(account(e.ledger), quantity(e), columns)
    print_lines([*head(e, columns), [], *_table(e, rows, args.by), [], *sums], args)
    return 0


def _table(e: Explanation, rows: list[dict[str, Any]], by: str) -> list[Line]:
    from refl.show import traces

    if by == "head":
        return traces.heads_table(e)
    return (traces.blocks_table if by == "block" else traces.operations_table)(rows)


def _totals(e: Explanation, rows: list[dict[str, Any]], by: str) -> dict[str, Any]:
    from refl.show import traces

    if by == "head":
        return {"heads": traces.heads(e)}
    if by == "operation":
        return {}
    names = ("received", "passed", "absorbed")
    found = traces.blocks(rows).items()
    return {"blocks": {n: dict(zip(names, traces.totals(i), strict=True)) for n, i in found}}


_UNREACHED: dict[str, Any] = {
    "rule": None,
    "received": None,
    "passed": {},
    "absorbed": {},
    "conservation_error": None,
}


def _operations(
    model: Model, e: Explanation, position: int | None, every: bool
) -> list[dict[str, Any]]:
    """Every operation from the output down with its entry in the ledger; those that no relevance
    reached have none.
    """
    entries = {entry["site"]: entry for entry in e.ledger.as_dict()["sites"]}
    item = e.input_ids if e.picture is None else model.blank()
    records = model.trace([item], position, e.decoder_ids, every)[0].records
    return [
        {
            "site": r.output.site,
            "operation": r.operation,
            "shape": [int(n) for n in r.output.array.shape[1:]],
        }
        | {key: entries.get(r.output.site, _UNREACHED)[key] for key in _UNREACHED}
        for r in reversed(records)
    ]
