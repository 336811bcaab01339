"""The commands that check: `refl verify`, `refl compare`, `refl conform`. cli.py reads the options they share and calls them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FAILED = 1
"""Exit code of a check that ran and found something."""

Command = Callable[..., argparse.ArgumentParser]


def add(commands: Any, command: Command) -> None:
    """Every command of this file with its options. `command(commands, name, summary, description, more, run)` is cli.py's."""
    _compare_options(command(commands, "compare", "two oracle files: where do they first part, by how much, and why", _COMPARE, _COMPARE_MORE, compare))


# -- compare ------------------------------------------------------------------------------------------------------------------------

_COMPARE = """\
Hold one oracle file against another: align them by site, walk from the output down, and name the
first site where relevance parts beyond rounding (before that, where activations part), the
operation whose rule is to be looked at, and the option or the known mistake that explains it.
A is the reference, B what is held against it.
"""

_COMPARE_MORE = """\
oracle files are written by  refl explain TEXT --save FILE  and, for a model that runs in torch, by
  python -m refl.verification.dump_torch FOLDER TEXT --out FILE
Any safetensors file with arrays relevance/<site> (activation/<site>, gradient/<site>) will do.

examples:
  refl compare ours.safetensors theirs.safetensors
  refl compare ours.safetensors theirs.safetensors --model path/to/checkpoint --html where.html
  refl compare ours.safetensors lxt.safetensors --tolerance 1e-7

"""


def _compare_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("a", metavar="A", help="the reference, an oracle file")
    p.add_argument("b", metavar="B", help="what is held against it, an oracle file")
    p.add_argument("--model", metavar="FOLDER", help="the checkpoint both were made with: options and known mistakes are tried on it")
    p.add_argument("--tolerance", type=float, metavar="T", help="let deviations up to T times the largest at a site pass, beside rounding")
    p.add_argument("--all", action="store_true", help="every site in the table, not only those that matter")
    p.add_argument("--html", metavar="FILE", help="write the comparison as one HTML page with a picture of the error by site")


def compare(args: argparse.Namespace) -> int:
    """`refl compare`"""
    from refl import cli
    from refl.verification.compare import compare as held_against

    if args.html:
        cli._refuse_output(Path(args.html), args.model)
    found = held_against(args.a, args.b, tolerance=args.tolerance, model=args.model)
    if args.html:
        from refl.checkpoint import atomic_write

        atomic_write(args.html, found.html().encode("utf-8"))
    if args.json:
        cli._print_json(found.as_dict())
    else:
        from refl.verification.compare_page import lines

        cli._print(lines(found, cli._width(), args.all, cli._width() if sys.stdout.isatty() else None), args)
    return 0 if found.equal else FAILED
