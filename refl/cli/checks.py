"""The commands that check: `refl conform`, `compare`, `verify`, and `dump-torch`, which makes
something to compare with. cli.py reads the options they share and calls them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import Any

FAILED = 1
"""Exit code of a check that ran and found something."""

Command = Callable[..., argparse.ArgumentParser]


def add(commands: Any, command: Command) -> None:
    """Every command of this file with its options. `command(commands, name, summary, description,
    more, run)` is cli.py's.
    """
    _conform_options(
        command(
            commands,
            "conform",
            "hold an implementation against the conformance vectors",
            _CONFORM,
            _CONFORM_MORE.format(rules=_rule_names()),
            conform,
        )
    )
    _compare_options(
        command(
            commands,
            "compare",
            "two oracle files: where do they first part, by how much, and why",
            _COMPARE,
            _COMPARE_MORE,
            compare,
        )
    )
    _verify_options(
        command(
            commands,
            "verify",
            "the identities relevance obeys, measured on a checkpoint",
            _VERIFY,
            _VERIFY_MORE,
            verify,
        )
    )
    _dump_options(
        command(
            commands,
            "dump-torch",
            "an oracle file of what torch computes (needs torch and transformers)",
            _DUMP,
            _DUMP_MORE,
            dump_torch,
        )
    )


# -- conform ---------------------------------------------------------------------------------------

_CONFORM = """\
Hold an implementation of LRP, in whatever framework, against the conformance vectors: numbers for
every rule with the answers by its definition. Says which rules pass, which fail and by how much,
shows the smallest failing case, and names the known mistake that gives the same wrong numbers.
"""

_CONFORM_MORE = """\
ADAPTER is a Python file, or the name of a module, with functions named like the rules. It runs as
your code does, so take adapters only from people you would take code from. The shortest one:

  def linear_epsilon(x, w, b, r, *, eps):            # my_adapter.py
      z = x.astype(float) @ w.T + (0 if b is None else b)
      return x * ((r / (z + eps * (1 - 2 * (z < 0)))) @ w)

Functions take and give NumPy arrays; with to_array(values, dtype), and where needed to_numpy(x), the
arrays of another framework:
  to_array = lambda values, dtype: torch.from_numpy(values).to(getattr(torch, dtype))

rules there are vectors for (--list shows how each is called):
{rules}

examples:
  refl conform my_adapter.py
  refl conform my_adapter.py --rule 'linear_*' --html report.html
  refl conform my_package.refl_adapter --junit conformance.xml

"""


def _rule_names() -> str:
    """The names of the rules, wrapped; read from the file names, for --help must not load NumPy."""
    names = sorted(
        path.stem
        for path in (Path(__file__).parents[1] / "verification" / "vectors" / "rules").glob(
            "*.json"
        )
    )
    return fill(
        ", ".join(names), 96, initial_indent="  ", subsequent_indent="  ", break_long_words=False
    )


def _conform_options(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "adapter",
        nargs="?",
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
        "--all", action="store_true", help="rules that are not covered in the table, too"
    )
    p.add_argument("--html", metavar="FILE", help="write the report as one HTML page")
    p.add_argument(
        "--junit", metavar="FILE", help="write the report as JUnit XML, for build servers"
    )


def conform(args: argparse.Namespace) -> int:
    """`refl conform`"""
    from refl import cli
    from refl.verification.conformance import report, runner

    if args.list:
        cli._print(report.signatures(args.rule, cli._width()), args)
        return 0
    if args.adapter is None:
        args.parser.error("give an ADAPTER: a Python file, or the name of a module (or --list)")
    cli._refuse_outputs(args, "html", "junit")
    sys.path.insert(0, "")
    with cli._Progress() as progress:
        found = runner.run(args.adapter, args.rule, progress=progress)
    _write(args.html, lambda: report.html(found).encode("utf-8"))
    _write(args.junit, lambda: report.junit(found))
    if args.json:
        cli._print_json(report.as_dict(found))
    else:
        cli._print(report.lines(found, cli._width(), args.all), args)
    return 0 if found.passed else FAILED


def _write(path: str | None, content: Callable[[], bytes]) -> None:
    from refl.io.files import atomic_write

    if path:
        atomic_write(path, content())


# -- compare ---------------------------------------------------------------------------------------

_COMPARE = """\
Hold one oracle file against another: align them by site, walk from the output down, and name the
first site where relevance parts beyond rounding (before that, where activations part), the
operation whose rule is to be looked at, and the option or the known mistake that explains it.
A is the reference, B what is held against it.
"""

_COMPARE_MORE = """\
oracle files are written by  refl explain TEXT --save FILE  and, for a model that runs in torch, by
  refl dump-torch FOLDER TEXT --out FILE
Any safetensors file with arrays relevance/<site> (activation/<site>, gradient/<site>) will do.

examples:
  refl compare ours.safetensors theirs.safetensors
  refl compare ours.safetensors theirs.safetensors --model path/to/checkpoint --html where.html
  refl compare ours.safetensors lxt.safetensors --tolerance 1e-7

"""


def _compare_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("a", metavar="A", help="the reference, an oracle file")
    p.add_argument("b", metavar="B", help="what is held against it, an oracle file")
    p.add_argument(
        "--model",
        metavar="FOLDER",
        help="the checkpoint both were made with: options and known mistakes are tried on it",
    )
    p.add_argument(
        "--tolerance",
        type=float,
        metavar="T",
        help="let deviations up to T times the largest at a site pass, beside rounding",
    )
    p.add_argument(
        "--all", action="store_true", help="every site in the table, not only those that matter"
    )
    p.add_argument(
        "--html",
        metavar="FILE",
        help="write the comparison as one HTML page with a picture of the error by site",
    )


def compare(args: argparse.Namespace) -> int:
    """`refl compare`"""
    from refl import cli
    from refl.verification.compare.compare import compare as held_against

    cli._refuse_outputs(args, "html")
    found = held_against(args.a, args.b, tolerance=args.tolerance, model=args.model)
    _write(args.html, lambda: found.html().encode("utf-8"))
    if args.json:
        cli._print_json(found.as_dict())
    else:
        from refl.verification.compare.report import lines

        cli._print(
            lines(found, cli._width(), args.all, cli._width() if sys.stdout.isatty() else None),
            args,
        )
    return 0 if found.equal else FAILED


# -- verify ----------------------------------------------------------------------------------------

_VERIFY = """\
Measure on a checkpoint the identities that its relevance has to obey, each against an answer found
another way: the balance of every operation, a gradient by complex step, the Shapley value, the same
function written with other weights, a decomposition that runs forwards. Every number comes from the
weights at hand. What does not apply to the net is named, with the reason.
"""

_VERIFY_MORE = """\
the identities, by number:
   1  what an operation receives = what it passes on + what it absorbs
   2  relevance at eps -> 0 = x * gradient of the surrogate with norms and activation ratios frozen
   3  output = relevance on the input + everything absorbed
   4  LRP-0 of a ReLU net = gradient * input; what is missing are the biases
   5  the uniform rule = the Shapley value = integrated gradients, on a product
   6  linear model, and one attention layer: relevance = what is missing when a part is left out
   7  the same function written with other weights has the same relevance; a shift of softmax logits
   8  relevance is linear in what is explained
   9  nothing from later tokens, other inputs, padding, or the way it is run
  10  shares of a triple product
  11  the net taken apart forwards, token by token = CP-LRP
  12  what the true derivative of a norm absorbs

How far a number may be off follows from its conditioning: 8 u times the sum of |terms| that the rules
added up, u the unit roundoff (1.1e-16 for float64). A wrong rule is off by far more.

examples:
  refl verify                                        # the model that ships with refl
  refl verify --model path/to/checkpoint --text "the keys to the cabinet"
  refl verify --model path/to/checkpoint --only 2 7 --json

"""


def _verify_options(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--text",
        metavar="TEXT",
        help="what to explain; - reads it from standard input; for a model that sees, a picture "
        "(default: a random input)",
    )
    p.add_argument("--ids", nargs="+", type=int, metavar="ID", help="token ids in place of TEXT")
    p.add_argument(
        "--only",
        nargs="+",
        type=int,
        choices=range(1, 13),
        metavar="N",
        help="only the identities of these numbers",
    )
    p.add_argument(
        "--model",
        metavar="FOLDER",
        help="a Hugging Face checkpoint (default: the small model that ships with refl)",
    )
    p.add_argument(
        "--dtype",
        choices=("float32", "float64"),
        default="float64",
        help="of the computation; 1 is measured in both, 2 and 11 in float64 (default: "
        "%(default)s)",
    )
    p.add_argument(
        "--ignore",
        nargs="+",
        default=[],
        metavar="OPTION",
        help="options of config.json known to change nothing in the forward pass",
    )
    p.set_defaults(device="cpu")


def verify(args: argparse.Namespace) -> int:
    """`refl verify`"""
    from refl import cli
    from refl.verification.identities import identities, report

    if args.text is not None and args.ids is not None:
        args.parser.error("give --text or --ids, not both")
    with cli._Progress() as progress:
        given = (
            args.ids
            if args.ids is not None
            else cli._standard_input()
            if args.text == "-"
            else args.text
        )
        subject = identities.subject(cli._load(args), given)
        rows = list(identities.verify(subject, args.only or tuple(identities.IDENTITIES), progress))
    if args.json:
        cli._print_json(report.as_dict(subject, rows))
    else:
        cli._print(report.lines(subject, rows, cli._width()), args)
    return 0 if all(row.holds for row in rows) else FAILED


# -- dump-torch ------------------------------------------------------------------------------------

_DUMP = """\
Run a Hugging Face checkpoint in torch and write an oracle file of it: activation, gradient and
relevance at the output of every module, for  refl compare.
"""

_DUMP_MORE = """\
methods: attnlrp and cp-lrp are LXT 2.1's gradient x input form; input-x-gradient is plain autograd with hooks.
torch and transformers are the extra 'peers', LXT comes beside it:
  pip install 'refl-lrp[peers]'; pip install --no-deps lxt==2.1 zennit==0.5.1

examples:
  refl dump-torch path/to/checkpoint "Once upon a time" --out theirs.safetensors
  refl dump-torch path/to/checkpoint --ids 1 403 407 --out theirs.safetensors --method input-x-gradient
  refl explain "Once upon a time" --model path/to/checkpoint --method attnlrp-gradient --dtype float64 --save ours.safetensors
  refl compare ours.safetensors theirs.safetensors --model path/to/checkpoint

"""


def _dump_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("folder", metavar="FOLDER", help="a Hugging Face checkpoint")
    p.add_argument("text", nargs="?", metavar="TEXT", help="the input; needs a tokenizer.json")
    p.add_argument("--ids", nargs="+", type=int, metavar="ID", help="token ids in place of TEXT")
    p.add_argument(
        "--decoder-ids",
        nargs="+",
        type=int,
        metavar="ID",
        help="what an encoder-decoder has written, its start token first",
    )
    p.add_argument("--types", nargs="+", type=int, metavar="N", help="token type ids")
    p.add_argument("--out", required=True, metavar="FILE", help="the oracle file to write")
    p.add_argument(
        "--method",
        choices=("attnlrp", "cp-lrp", "input-x-gradient"),
        default="attnlrp",
        help="default: %(default)s",
    )
    p.add_argument(
        "--target",
        metavar="TOKEN",
        help="explain this token, or output by its number (default: the largest logit)",
    )
    p.add_argument(
        "--position",
        type=int,
        metavar="N",
        help="explain the output at this token (default: the mask, or the last)",
    )
    p.add_argument(
        "--dtype", choices=("float32", "float64"), default="float64", help="default: %(default)s"
    )
    p.add_argument(
        "--identity-eps",
        type=float,
        metavar="E",
        help="LXT's eps in f(x)/(x + E) (default: LXT's own, 1e-10)",
    )


def dump_torch(args: argparse.Namespace) -> int:
    """`refl dump-torch`"""
    from refl import cli
    from refl.verification.peers import dump_torch as torch_side

    cli._refuse_output(Path(args.out), args.folder)
    e = torch_side.run(args)
    if args.json:
        cli._print_json(
            {
                "file": args.out,
                "sites": list(e),
                "what": e.what,
                "logit": e.logit,
                "method": args.method,
            }
        )
    else:
        print(
            f"wrote {args.out}: {len(list(e))} sites, {cli._printable(e.what)} = "
            f"{e.logit:.6g}, method {args.method}"
        )
    return 0
