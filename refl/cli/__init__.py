"""The command line: `refl COMMAND ...`. A file per command, and what they share.

    command       what every command is made of: its options, its help, exit codes, errors
    options       options that several commands have, and how they are read
    asked         the method, the model and the explanation that the options ask for
    output        how an answer is printed: lines or JSON, colored or plain
    files         which files are read and written, and none both
    exits         how a run ends, whatever happens
    progress      the bar on standard error
    corpus        many inputs, on many cores or machines: what explain and evaluate have in common
    explain answer generate evaluate   what a model does, and why
    neurons references project graph switch card   what its neurons and heads do
    learn walk    the method itself: lessons, and a whole sweep number by number
    trace models methods   how refl does it; folder: what a checkpoint holds
    conform compare verify dump_torch   who checks it

Nothing heavy is imported before it is needed: `--help` loads no array library.
"""

from __future__ import annotations

from refl.cli import (
    answer,
    card,
    compare,
    conform,
    dump_torch,
    evaluate,
    explain,
    generate,
    graph,
    learn,
    methods,
    models,
    neurons,
    project,
    references,
    switch,
    trace,
    verify,
    walk,
)
from refl.cli.command import EXITS, Parser
from refl.cli.exits import ended
from refl.cli.files import refuse_overlaps
from refl.errors import ReflError
from refl.io import ORACLE_FORMAT
from refl.verification.vectors import FORMAT as VECTORS_FORMAT
from refl.version import __version__

__all__ = ["main"]

COMMANDS = (
    *(explain, answer, generate, evaluate),
    *(neurons, references, project, graph, switch, card),
    *(learn, walk),
    *(trace, models, methods),
    *(conform, compare, verify, dump_torch),
)

_ABOUT = """\
Layer-wise relevance propagation (LRP) on transformers: how much each token of an input
contributed to what the model says next, with a conservation ledger of every bit that did not.

examples:
  refl explain "the keys to the cabinet"
  refl explain "the keys to the cabinet" --contrast are is --method cp-lrp
  refl explain "the keys to the cabinet" --model path/to/checkpoint --html why.html
  refl answer "the keys to the cabinet" --tokens 6
  refl trace "the keys to the cabinet"
  refl methods attnlrp
  refl learn
"""

_VERSION = (
    f"refl {__version__} (conformance vectors format {VECTORS_FORMAT}, "
    f"oracle files format {ORACLE_FORMAT})"
)


def main(argv: list[str] | None = None) -> int:
    """The command `refl`. Returns the exit code."""
    return ended(lambda: _run(argv))


def _run(argv: list[str] | None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    refuse_overlaps(args)
    try:
        return int(args.run(args))
    except ReflError as error:
        raise error.spelled(vars(args)) from error


def _parser() -> Parser:
    parser = Parser("refl", description=_ABOUT)
    parser.more = lambda: EXITS
    parser.add_argument("--version", action="version", version=_VERSION)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for command in COMMANDS:
        command.add(commands)
    return parser
