"""What every command is made of: its options, its help, its exit codes, and errors in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from refl.errors import sentence

FAILED, BAD_INPUT, INTERRUPTED, NOBODY_READS = 1, 2, 130, 141

EXITS = """\
exit codes:
  0  done
  1  a check (verify, compare, conform, learn --run) found something
  2  the input, an option or a file is not usable; one sentence on standard error says why
  130 interrupted;  141 whoever read the output went away;  129, 143 ended by SIGHUP, SIGTERM
"""

_COLOR = (
    "color is used on a terminal; NO_COLOR or --no-color turns it off, FORCE_COLOR turns it on "
    "for a pipe\n\n"
)


class Said(SystemExit):
    """All has been said: --help, --version, or an error in the options."""


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
        self.exit(BAD_INPUT, f"{self.prog}: {sentence(message)} (see {self.prog} --help)\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        if message:
            with suppress(OSError, ValueError):  # the exit code speaks where nobody can read
                self._print_message(message, sys.stderr)
        raise Said(status)

    def _print_message(self, message: str, file: Any = None) -> None:
        """argparse's own says nothing of a disk that is full."""
        (sys.stderr if file is None else file).write(message)


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
