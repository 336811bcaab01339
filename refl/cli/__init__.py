"""The command line: `refl COMMAND ...`. A file per command, and what they share.

    command       what every command is made of: its options, its help, exit codes, errors
    options       options that several commands have, and how they are read
    asked         the method, the model and the explanation that the options ask for
    output        how an answer is printed: lines or JSON, colored or plain; files to be written
    progress      the bar on standard error
    explain trace models methods conform compare verify dump_torch   the commands

Nothing heavy is imported before it is needed: `--help` loads no array library.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from refl.cli import compare, conform, dump_torch, explain, methods, models, trace, verify
from refl.cli.command import BAD_INPUT, EXITS, INTERRUPTED, NOBODY_READS, Parser
from refl.errors import ReflError
from refl.io import ORACLE_FORMAT
from refl.show.text import one_line
from refl.verification.vectors import FORMAT as VECTORS_FORMAT
from refl.version import __version__

__all__ = ["main"]

COMMANDS = (explain, trace, models, methods, conform, compare, verify, dump_torch)

_ABOUT = """\
Layer-wise relevance propagation (LRP) on transformers: how much each token of an input
contributed to what the model says next, with an account of every bit that did not reach a token.

examples:
  refl explain "the keys to the cabinet"
  refl explain "the keys to the cabinet" --contrast are is --method cp-lrp
  refl explain "the keys to the cabinet" --model path/to/checkpoint --html why.html
  refl trace "the keys to the cabinet"
  refl methods attnlrp
"""

_VERSION = (
    f"refl {__version__} (conformance vectors format {VECTORS_FORMAT}, "
    f"oracle files format {ORACLE_FORMAT})"
)


def main(argv: list[str] | None = None) -> int:
    """The command `refl`. Returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _run(argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        _let_go()
        return NOBODY_READS
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ReflError, OSError, MemoryError) as error:
        return _refuse(error)


def _run(argv: list[str] | None) -> int:
    parser = _parser()
    try:
        args = parser.parse_args(argv)
        if args.command is not None:
            return int(args.run(args))
    except SystemExit as done:  # --help, --version, or an error that has been said
        return int(done.code or 0)
    parser.print_help()
    return 0


def _parser() -> Parser:
    parser = Parser("refl", description=_ABOUT)
    parser.more = lambda: EXITS
    parser.add_argument("--version", action="version", version=_VERSION)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for command in COMMANDS:
        command.add(commands)
    return parser


def _let_go() -> None:
    """The reader is gone: what is still buffered must not be
    flushed into the closed pipe at exit.
    """
    with suppress(OSError, ValueError):  # a stream that is no file has nothing to let go of
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(error: BaseException) -> int:
    sentence = str(error)
    if isinstance(error, MemoryError):
        sentence = (
            "out of memory: try a shorter text, --dtype float32, or fewer sites with --keep "
            f"({sentence or 'no more is known'})"
        )
    print(f"refl: {one_line(sentence)}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # a full disk: what is left would fail once more at exit
        _let_go()
    return BAD_INPUT
