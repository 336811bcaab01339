"""`refl methods`: the methods there are, each with its cost, what it conserves, and its source; of
one, its table of rules or its options.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from refl.cli.command import add_command
from refl.cli.files import Source
from refl.cli.output import fold_width, print_json, print_lines, width
from refl.show.lines import Line

if TYPE_CHECKING:
    from refl.methods import Method


def add(commands: Any) -> None:
    """The command and its options."""
    p = add_command(
        commands, "methods", "the methods there are: cost, what is conserved, source", run
    )
    p.add_argument(
        "name",
        nargs="?",
        type=Source,
        metavar="NAME",
        help="one method, or a FILE.toml: its table of rules, or its options, with every value",
    )


def run(args: argparse.Namespace) -> int:
    from refl.methods import METHODS, chosen

    asked = [chosen(name) for name in (METHODS if args.name is None else [args.name])]
    if args.json:
        said = [_as_dict(m) for m in asked]
        print_json(said if args.name is None else said[0])
    else:
        print_lines([line for m in asked for line in _lines(m, args.name is not None)], args)
    return 0


def _as_dict(m: Method) -> dict[str, Any]:
    return m.facts().as_dict() | {"passes": m.passes, "conserved": m.conserved}


def _lines(m: Method, whole: bool) -> list[Line]:
    from refl.rules.composites import Composite
    from refl.show.tables import composite_table, options_table
    from refl.show.terminal import method_lines

    facts = m.facts()
    lines = [*method_lines(facts, width(), [f"cost: {m.passes}", f"conserved: {m.conserved}"]), []]
    if not whole:
        return lines
    if isinstance(facts, Composite):
        return lines + composite_table(facts, fold_width())
    return lines + options_table(facts.options, fold_width())
