"""How an answer leaves: printed as lines or as JSON, colored or plain, or written to files that are
refused before anything is computed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from refl.errors import ReflError
from refl.show.lines import Line, plain

SHIPPED = Path(__file__).parents[1] / "shipped"


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
    if wants_color(sys.stdout, args.no_color):
        _print_colored(lines)
    else:
        print(_encodable(plain(lines), sys.stdout.encoding))


def print_json(value: Any) -> None:
    print(json.dumps(_finite(value), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_PLAINER = str.maketrans(
    {"█": "+", "▒": "-", "│": "|", "─": "-", "→": ">", "·": "-", "×": "x", "…": "~", "␣": "_"}
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

    def console(**how: Any) -> Console:
        return Console(file=sys.stdout, force_terminal=True, soft_wrap=True, highlight=False, **how)

    terminal = console()
    if terminal.color_system is None:  # nothing says what whoever reads this can show
        terminal = console(color_system="256")
    for line in lines:
        spans = ((_encodable(text, sys.stdout.encoding), style) for text, style in line)
        terminal.print(Text.assemble(*spans))


# -- files -----------------------------------------------------------------------------------------


def refuse_outputs(args: argparse.Namespace, *options: str) -> None:
    """Refuse what cannot be written before anything is computed; `options` name files to write."""
    named: dict[str, str] = {}
    for option in options:
        if path := getattr(args, option):
            refuse_output(Path(path), getattr(args, "model", None))
            other = named.setdefault(os.path.realpath(path), option)
            if other != option:
                raise ReflError(
                    f"--{other} and --{option} both name {path}: give each a file of its own"
                )


def write(path: str | None, content: Callable[[], bytes]) -> None:
    """A file, whole or not at all, where one is asked for."""
    from refl.io.files import atomic_write

    if path:
        atomic_write(path, content())


def refuse_output(path: Path, model: str | None) -> None:
    """Refuse a path that cannot be written, or that is a file of the model's folder."""
    target = Path(os.path.realpath(path))
    if reason := _obstacle(target) or _of_the_model(target, model):
        raise ReflError(f"{path} cannot be written: {reason}")


def _obstacle(target: Path) -> str:
    if not target.parent.is_dir():
        return f"there is no folder {target.parent}"
    if target.is_dir():
        return "it is a folder, expected the name of a file"
    if target.exists() and not target.is_file():
        return "it is a pipe or a device, expected the name of a file"
    if not os.access(target.parent, os.W_OK | os.X_OK):
        return f"no permission to write in {target.parent}"
    return ""


def _of_the_model(target: Path, model: str | None) -> str:
    folder = Path(os.path.realpath(model or SHIPPED))
    own = target.exists() and target.parent == folder
    return "it is a file of the model's own folder" if own else ""
