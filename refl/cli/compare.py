"""`refl compare`: two oracle files; where they first part, by how much, and why."""

from __future__ import annotations

import argparse
from typing import Any

from refl.cli.command import FAILED, add_command
from refl.cli.files import Folder, Source, output, write
from refl.cli.output import fold_width, print_json, print_lines, width

_ABOUT = """\
Hold one oracle file against another: align them by site, walk from the output down, and name the
first site where relevance parts beyond rounding (before that, where activations part), the
operation whose rule is to be looked at, and the option or the known mistake that explains it.
A is the reference, B what is held against it.
"""

_MORE = """\
oracle files are written by  refl explain TEXT --save FILE  and, for a model that runs in torch, by
  refl dump-torch FOLDER TEXT --out FILE
Any safetensors file with arrays relevance/<site> (activation/<site>, gradient/<site>) will do.

The exit code is 1 where the two part, and where it cannot be told: where rounding may explain more
than a thousandth of the largest number at a site, and the two differ there by more than plain
rounding. Save both in float64, or say with --tolerance what may pass.

examples:
  refl compare ours.safetensors theirs.safetensors
  refl compare ours.safetensors theirs.safetensors --model path/to/checkpoint --html where.html
  refl compare ours.safetensors lxt.safetensors --tolerance 1e-7

"""


def add(commands: Any) -> None:
    """The command and its options."""
    summary = "two oracle files: where do they first part, by how much, and why"
    p = add_command(commands, "compare", summary, run, description=_ABOUT, more=lambda: _MORE)
    p.add_argument("a", type=Source, metavar="A", help="the reference, an oracle file")
    p.add_argument("b", type=Source, metavar="B", help="what is held against it, an oracle file")
    p.add_argument(
        "--model",
        type=Folder,
        metavar="FOLDER",
        help="the checkpoint both were made with: options and known mistakes are tried on it",
    )
    p.add_argument(
        "--tolerance",
        type=float,
        metavar="T",
        help="let deviations up to T times the largest at a site pass, beside rounding",
    )
    p.add_argument("--all", action="store_true", help="list every site, not only those that matter")
    p.add_argument(
        "--html",
        type=output,
        metavar="FILE",
        help="write the comparison as one HTML page with a picture of the error by site",
    )


def run(args: argparse.Namespace) -> int:
    from refl.verification.compare.compare import compare
    from refl.verification.compare.report import html, lines

    found = compare(args.a, args.b, tolerance=args.tolerance, model=args.model)
    write(args.html, lambda: html(found).encode("utf-8"))
    if args.json:
        print_json(found.as_dict())
    else:
        print_lines(lines(found, width(), args.all, fold_width()), args)
    return 0 if found.equal else FAILED
