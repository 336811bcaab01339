"""`refl trace`: every operation of the forward pass with its entry in the conservation ledger."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from refl.cli import options
from refl.cli.command import add_command
from refl.cli.output import fold_width, print_json, print_lines, width
from refl.cli.progress import Progress

if TYPE_CHECKING:
    from refl.explanation import Explanation
    from refl.model import Model

_ABOUT = """\
Every operation of the forward pass, in order: site, operation, shape of the output (without
the batch axis), the rule that was applied, and its entry in the conservation ledger:
received = passed on + absorbed + conservation error.
"""


def add(commands: Any) -> None:
    """The command and its options."""
    summary = "every operation with its entry in the conservation ledger"
    options.explaining(add_command(commands, "trace", summary, run, description=_ABOUT))


def run(args: argparse.Namespace) -> int:
    from refl.cli.asked import composite_asked, explained, model_asked
    from refl.show.tables import trace_table
    from refl.show.terminal import head

    composite = composite_asked(args)
    with Progress() as progress:
        model = model_asked(args)
        # scores are kept so that attention runs in its plain form, operation by operation
        e = explained(model, args, composite, "*.scores", progress)
        rows = _operations(model, e, args.position, every=args.at is not None)
    if args.json:
        print_json(e.as_dict() | {"operations": rows})
    else:
        print_lines([*head(e, width()), [], *trace_table(rows, fold_width())], args)
    return 0


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
    """Every operation in forward order with its entry in the ledger; those that no relevance
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
        for r in records
    ]
