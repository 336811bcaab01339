"""What every command is made of: its options, its help, its exit codes, and errors in one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from refl.show.text import one_line

FAILED, BAD_INPUT, INTERRUPTED, NOBODY_READS = 1, 2, 130, 141

EXITS = """\
exit codes:
  0  done
  1  a check (verify, compare, conform) found something
  2  the input, an option or a file is not usable; one sentence on standard error says why
  130 interrupted;  141 whoever read the output went away
"""

_COLOR = (
    "color is used on a terminal; NO_COLOR or --no-color turns it off, FORCE_COLOR turns it on "
    "for a pipe\n\n"
)


class Parser(argparse.ArgumentParser):
    """Errors are one line, options are written out, and what `more` says below the options is put
    together when --help asks for it.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        self.allow_abbrev = False
        self.more: Callable[[], str] = str

    def format_help(self) -> str:
        self.epilog = self.more()
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {one_line(message)} (see {self.prog} --help)\n")


def add_command(
    commands: Any,
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace], int],
    *,
    description: str = "",
    more: Callable[[], str] = str,
) -> Parser:
    """A command with the options that all have; `more` gives what its help says below them."""
    command: Parser = commands.add_parser(
        name, help=summary, description=description or f"{summary[0].upper()}{summary[1:]}."
    )
    command.more = lambda: more() + _COLOR + EXITS
    command.add_argument("--json", action="store_true", help="print JSON in place of a table")
    command.add_argument("--no-color", action="store_true", help="no color, whatever the terminal")
    command.set_defaults(run=run, parser=command)
    return command
