"""How an answer leaves: printed as lines or as JSON, colored or plain, or written to files
(`refl.cli.files`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from typing import IO, Any

from refl.show.colors import few_colors
from refl.show.lines import Line, plain, printed
from refl.show.numbers import finite

# -- printing --------------------------------------------------------------------------------------


def width() -> int:
    """Columns for running text."""
    return max(shutil.get_terminal_size((100, 24)).columns, 40)


def fold_width() -> int | None:
    """Columns a table has to fit in; None in a pipe, where each row is one line."""
    return width() if sys.stdout.isatty() else None


def wants_color(stream: IO[str], off: bool = False) -> bool:
    """Whether to color: never with --no-color or NO_COLOR, always with FORCE_COLOR, else on a
    terminal that can.
    """
    if off or os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") not in ("", "0"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def print_lines(lines: Sequence[Line], args: argparse.Namespace) -> None:
    """Lines on standard output, each character of them printable, whatever names a file has."""
    if wants_color(sys.stdout, args.no_color):
        _print_colored(lines)
    else:
        print(_encodable(plain(lines), sys.stdout.encoding))


def wrote(*paths: object, what: str = "") -> list[Line]:
    """A line for each file or folder that is there now, and what it holds; none for an option that
    was left out.
    """
    held = f": {what}" if what else ""
    return [[("wrote ", "dim"), (str(path), ""), (held, "dim")] for path in paths if path]


def below(lines: Sequence[Line]) -> list[Line]:
    """Lines under a blank one, where there are any."""
    return [[], *lines] if lines else []


def print_text(text: str) -> None:
    """A text that is drawn already, without a line's end of its own."""
    print(_encodable(text, sys.stdout.encoding), end="")


def print_json(value: Any) -> None:
    print(json.dumps(finite(value), indent=2, allow_nan=False))


_PLAINER = str.maketrans(
    {
        "█": "+",
        "▒": "-",
        "│": "|",
        "─": "-",
        "→": ">",
        "·": "-",
        "×": "x",
        "…": "~",
        "␣": "_",
        "•": "*",
        "▌": "|",
    }
)


def _encodable(text: str, encoding: str | None) -> str:
    """The text with plain signs in place of those an old terminal's encoding lacks."""
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return text.translate(_PLAINER)
    return text


def _print_colored(lines: Sequence[Line]) -> None:
    from rich.console import Console
    from rich.text import Text

    class Piped(Console):
        def on_broken_pipe(self) -> None:
            """rich would end the process; here that is said as everywhere (refl.cli.exits)."""
            raise BrokenPipeError

    def console(**how: Any) -> Console:
        return Piped(file=sys.stdout, force_terminal=True, soft_wrap=True, highlight=False, **how)

    terminal = console()
    if terminal.color_system is None:  # nothing says what whoever reads this can show
        terminal = console(color_system="256")
    shade = few_colors if terminal.color_system in ("standard", "windows") else str
    for line in printed(lines):
        spans = ((_encodable(text, sys.stdout.encoding), shade(style)) for text, style in line)
        terminal.print(Text.assemble(*spans))
