"""`refl conform`: the conformance vectors against anyone's implementation."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from textwrap import fill
from typing import Any

import refl.verification.vectors
from refl.cli.command import FAILED, add_command
from refl.cli.files import Module, output, write
from refl.cli.output import print_json, print_lines, width
from refl.cli.progress import Progress
from refl.errors import quoted

_ABOUT = """\
Hold an implementation of LRP, in whatever framework, against the conformance vectors: numbers for
every rule with the answers by its definition. Says which rules pass, which fail and by how much,
shows the smallest failing case, and names the known mistake that gives the same wrong numbers.
"""

_MORE = """\
ADAPTER is a Python file, or the name of a module, with functions named like the rules. It runs as
your code does, so take adapters only from people you would take code from. The shortest one:

  def linear_epsilon(x, w, b, r, *, eps):            # my_adapter.py
      z = x.astype(float) @ w.T + (0 if b is None else b)
      return x * ((r / (z + eps * (1 - 2 * (z < 0)))) @ w)

Functions take and give NumPy arrays; with to_array(values, dtype), and where needed to_numpy(x),
the arrays of another framework:
  to_array = lambda values, dtype: torch.from_numpy(values).to(getattr(torch, dtype))

rules there are vectors for (--list shows how each is called):
{rules}

examples:
  refl conform my_adapter.py
  refl conform my_adapter.py --rule 'linear_*' --html report.html
  refl conform my_package.refl_adapter --junit conformance.xml

A rule is passed where every case that it must answer is right: in float64 and float32, options left
at their defaults. One of which such cases are not covered is "partly covered": no failure, and no
pass. The exit code is 1 where something failed or nothing passed; with --complete also where
something is partly covered.

"""


SECONDS, MOST_SECONDS = 600, 1_000_000
"""For a rule, or for all that is asked of one model; and how many may be asked for."""


def add(commands: Any) -> None:
    """The command and its options."""
    summary = "hold an implementation against the conformance vectors"
    p = add_command(commands, "conform", summary, run, description=_ABOUT, more=_more)
    p.add_argument(
        "adapter",
        nargs="?",
        type=Module,
        metavar="ADAPTER",
        help="a Python file, or the name of a module that can be imported from here",
    )
    p.add_argument(
        "--rule",
        default="*",
        metavar="PATTERN",
        help="only rules so named, with * and ?: 'softmax_*'; whole models are 'model'",
    )
    p.add_argument(
        "--list",
        action="store_true",
        help="how each rule is called, with its equation; no adapter is needed",
    )
    p.add_argument(
        "--complete",
        action="store_true",
        help="exit with 1 also where a rule is covered in part alone",
    )
    p.add_argument(
        "--in-process",
        action="store_true",
        help="run the adapter in this process, for a debugger; if it ends that, nothing is said",
    )
    p.add_argument(
        "--seconds",
        type=int,
        default=SECONDS,
        metavar="N",
        help=f"give up on a rule, or a model, that takes longer (default: {SECONDS})",
    )
    p.add_argument("--all", action="store_true", help="list the rules that are not covered, too")
    p.add_argument("--html", type=output, metavar="FILE", help="write the report as one HTML page")
    p.add_argument(
        "--junit",
        type=output,
        metavar="FILE",
        help="write the report as JUnit XML, for build servers",
    )


def _more() -> str:
    return _MORE.format(rules=_rule_names())


def _rule_names() -> str:
    """The names of the rules, wrapped; read from the file names, for --help must not load NumPy."""
    folder = Path(refl.verification.vectors.__path__[0]) / "rules"
    names = ", ".join(sorted(path.stem for path in folder.glob("*.json")))
    return fill(names, 96, initial_indent="  ", subsequent_indent="  ", break_long_words=False)


def run(args: argparse.Namespace) -> int:
    if args.list:
        from refl.verification.conformance import report

        if args.json or args.html or args.junit:
            args.parser.error("--list prints text alone: leave --json, --html and --junit out")
        print_lines(report.signatures(args.rule, width()), args)
        return 0
    if not 1 <= args.seconds <= MOST_SECONDS:
        args.parser.error(f"--seconds: expected 1 to {MOST_SECONDS}, got {quoted(args.seconds)}")
    if args.adapter is None:
        args.parser.error("give an ADAPTER: a Python file, or the name of a module (or --list)")
    sys.path.insert(0, "")
    with Progress() as progress:
        found = _report(args, progress)
    write(args.html, lambda: found["html"].encode("utf-8"))
    write(args.junit, lambda: found["junit"].encode("utf-8"))
    if args.json:
        print_json(found["json"])
    else:
        print_lines(found["lines"], args)
    return FAILED if found["failed"] or (args.complete and found["partly"]) else 0


def _report(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """In a process of its own, where there can be one."""
    from refl.verification.conformance import child

    if not args.in_process and sys.executable:
        asked = {"adapter": args.adapter, "rule": args.rule, "width": width(), "all": args.all}
        return child.run(asked, progress, args.seconds)
    from refl.verification.conformance import runner

    return child.in_every_form(
        runner.run(args.adapter, args.rule, progress=progress), width(), args.all
    )
