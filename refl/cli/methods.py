"""`refl methods`: the methods there are, each with its source; of one, its table of rules."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from refl.cli.command import add_command
from refl.cli.files import Source
from refl.cli.output import fold_width, print_json, print_lines, width
from refl.show.lines import Line

if TYPE_CHECKING:
    from refl.rules.composites import Composite


def add(commands: Any) -> None:
    """The command and its options."""
    p = add_command(commands, "methods", "the methods there are, each with its source", run)
    p.add_argument(
        "name",
        nargs="?",
        type=Source,
        metavar="NAME",
        help="one method, or a FILE.toml: its table of rules with every option",
    )


def run(args: argparse.Namespace) -> int:
    from refl.io import composites
    from refl.methods import METHODS

    chosen = list(METHODS.values()) if args.name is None else [composites.named(args.name)]
    if args.json:
        tables = [c.as_dict() for c in chosen]
        print_json(tables if args.name is None else tables[0])
    else:
        print_lines([line for c in chosen for line in _lines(c, args.name is not None)], args)
    return 0


def _lines(c: Composite, table: bool) -> list[Line]:
    from refl.show.tables import composite_table
    from refl.show.terminal import method_lines

    return [*method_lines(c, width()), [], *(composite_table(c, fold_width()) if table else [])]
