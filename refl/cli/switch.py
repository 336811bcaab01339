"""`refl switch`: how often an answer flips when the neurons it hangs on are switched."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from refl.cli import options
from refl.cli.command import add_command
from refl.cli.files import Source, output, write
from refl.cli.output import print_json, print_lines, width, wrote
from refl.cli.progress import Progress

if TYPE_CHECKING:
    from refl.evaluation.subject import Item
    from refl.latent.switching.results import Switching
    from refl.model import Model

_ABOUT = """\
Switch the neurons that a method ranks first, and count how often the answer flips: whether what
has the relevance is what the answer hangs on. Beside each ranking stand as many random neurons
of the same MLPs, and random neurons of the whole net.

Without --data the shipped model's held-out sentences of subject-verb agreement are switched: the
answer is the verb's number, and flips where the other number becomes the likelier one.
"""

_MORE = """\
rankings (all neurons of all MLPs at once, the largest first):
  any table of rules    the sum over positions of the relevance of the contrast, signed: neurons
                        that speak for the answer first (attnlrp, cp-lrp, input-x-gradient, ...)
  activation            the sum over positions of |z|

what a neuron is switched to:
  off      0 at every position
  other    what it is for the other answer: its value in the counterpart of the input, position by
           position, where the data has one; else its mean over the inputs whose answer is the foil
           (of texts at the explained position alone)

whose ranking:
  input    each input's own (the default)
  corpus   one for all: the mean over one half of the inputs; the other half is switched

DATA has a JSON object on each line: text (or prefix, ids, image), target and foil, and where there
is one a counterpart; or clean_prefix, patch_prefix, clean_answer, patch_answer (Marks et al. 2024).
Minimal pairs are read as their authors publish them: BLiMP as .jsonl or .csv, Marvin and Linzen as
.tsv. Of a classifier the foil may be left out: it is then the class that comes next.

Inputs that are not answered as their target says are left out. Intervals are BCa bootstrap over
inputs, differences paired; --json has all of them, and the numbers of every input.

examples:
  refl switch                                       # which neurons the verb's number hangs on
  refl switch --to other --rank corpus --svg flips.svg
  refl switch --by attnlrp relp activation --k 1 2 4 8 --limit 50
  refl switch --data pairs.jsonl --model path/to/checkpoint --to other --json

"""


def add(commands: Any) -> None:
    """The command and its options."""
    summary = "which neurons an answer hangs on: switch those ranked first, and count the flips"
    p = add_command(commands, "switch", summary, run, description=_ABOUT, more=lambda: _MORE)
    p.add_argument("--data", type=Source, metavar="FILE", help="the inputs (default: see above)")
    p.add_argument("--limit", type=int, metavar="N", help="of them the first N alone")
    p.add_argument(
        "--svg",
        type=output,
        metavar="FILE",
        help="write flips and change as curves (needs matplotlib, the extra `figures`)",
    )
    _what(p.add_argument_group("what is switched, and how"))
    options.of_model(p)


def _what(g: Any) -> None:
    g.add_argument(
        "--by",
        nargs="+",
        type=Source,
        metavar="NAME|FILE.toml",
        help="rankings (default: attnlrp cp-lrp input-x-gradient activation)",
    )
    g.add_argument(
        "--k",
        nargs="+",
        type=int,
        metavar="K",
        help="how many neurons (default: 1 2 4 ... 64, as far as an MLP has as many others)",
    )
    g.add_argument(
        "--to",
        choices=("off", "other"),
        default="off",
        help="what a neuron is switched to (default: %(default)s)",
    )
    g.add_argument(
        "--rank",
        choices=("input", "corpus"),
        default="input",
        help="whose ranking (default: %(default)s)",
    )
    g.add_argument(
        "--draws",
        type=int,
        default=20,
        metavar="N",
        help="of random neurons, of each input, ranking and k; 0 for none (default: %(default)s)",
    )
    g.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the random draws (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    from refl.cli.asked import model_asked
    from refl.latent.switching import BY, switching

    if args.model is not None and args.data is None:
        args.parser.error("--model needs --data: the sentences that ship are of the shipped model")
    _refuse_figure(args)
    with Progress() as progress:
        model: Model = model_asked(args)
        found = switching(
            model,
            _items(model, args),
            BY if args.by is None else [str(one) for one in args.by],
            args.k,
            to=args.to,
            rank=args.rank,
            draws=args.draws,
            seed=args.seed,
            progress=progress,
        )
        progress("intervals", 0, 0)
        lines, said = found.lines(width()), found.as_dict() if args.json else {}
        write(args.svg, lambda: _figure(found))
    if args.json:
        print_json(said)
    else:
        print_lines([*lines, *wrote(args.svg)], args)
    return 0


def _refuse_figure(args: argparse.Namespace) -> None:
    """Before anything is computed."""
    if args.svg:
        from refl.show import plots

        plots.library("matplotlib.figure")


def _items(model: Model, args: argparse.Namespace) -> list[Item]:
    from refl.latent.switching import inputs as switched_inputs

    if args.data is None:
        return switched_inputs.shipped(args.limit)
    return switched_inputs.items(model, args.data, args.limit)


def _figure(found: Switching) -> bytes:
    from refl.latent.switching.figure import figure

    return figure([(f"{found.model}, {len(found.inputs)} inputs", found)])
