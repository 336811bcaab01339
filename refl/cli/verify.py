"""`refl verify`: the identities that relevance obeys, measured on a checkpoint."""

from __future__ import annotations

import argparse
from typing import Any

from refl.cli import options
from refl.cli.command import FAILED, add_command
from refl.cli.files import Source
from refl.cli.output import print_json, print_lines, width
from refl.cli.progress import Progress

_ABOUT = """\
Measure on a checkpoint the identities that its relevance has to obey, each against an answer found
another way: conservation at every operation, a gradient by complex step, the Shapley value, the
same function written with other weights, a decomposition that runs forward. Every number comes from
the weights at hand. What does not apply to the net is named, with the reason.
"""

_MORE = """\
the identities, by number:
   1  what an operation receives = what it passes on + what it absorbs
   2  relevance at eps -> 0 = x * gradient of the surrogate with norms and activation ratios frozen
   3  output = relevance on the input + everything absorbed
   4  LRP-0 of a ReLU net = gradient * input; what is missing are the biases
   5  the uniform rule = the Shapley value = integrated gradients, on a product
   6  linear models, and one attention layer: relevance = what is missing when a part is left out
   7  the same function written with other weights has the same relevance; a shift of softmax logits
      moves it and leaves its sum
   8  relevance is linear in what is explained
   9  nothing from later tokens, other inputs, padding, or the way it is run
  10  how a triple product is split
  11  the net taken apart forward, token by token = CP-LRP
  12  what the true derivative of a norm absorbs

How far a number may be off follows from its conditioning: 8 u times the sum of |terms| that the
rules added up, u the unit roundoff (1.1e-16 for float64). A wrong rule is off by far more. What
compares nothing larger than that (no such operation, one token, relevance of 0) does not hold: it
does not apply, and the row says why. Exit status 1: something fails, or nothing could be measured.

All of it runs on the host, in NumPy, as the answers that it is held against do.

examples:
  refl verify                                        # the model that ships with refl
  refl verify --model path/to/checkpoint --text "the keys to the cabinet"
  refl verify --model path/to/checkpoint --only 2 7 --json

"""


def add(commands: Any) -> None:
    """The command and its options."""
    summary = "the identities relevance obeys, measured on a checkpoint"
    p = add_command(commands, "verify", summary, run, description=_ABOUT, more=lambda: _MORE)
    p.add_argument(
        "--text",
        type=Source,
        metavar="TEXT",
        help="what to explain; - reads it from standard input; for a model of images, a file "
        "(default: a random input)",
    )
    options.ids(p)
    options.decoder_ids(
        p,
        "what a decoder has written so far, the start token first (default: that and three tokens "
        "drawn at random, always the same)",
    )
    p.add_argument(
        "--only",
        nargs="+",
        type=int,
        choices=range(1, 13),
        metavar="N",
        help="only the identities of these numbers",
    )
    options.model(p)
    options.dtype(p, "of the computation; 1 is measured in both, 2 and 11 in float64", "float64")
    options.ignore(p)
    p.set_defaults(device="cpu")


def run(args: argparse.Namespace) -> int:
    from refl.cli.asked import input_asked, model_asked
    from refl.verification.identities import report
    from refl.verification.identities.catalogue import IDENTITIES, verify
    from refl.verification.identities.model_under_test import model_under_test

    options.refuse_both(args, "text", "ids")
    with Progress() as progress:
        item = input_asked(args)
        decoder = None if args.decoder_ids is None else list(args.decoder_ids)
        m = model_under_test(model_asked(args), item, decoder)
        rows = list(verify(m, args.only or tuple(IDENTITIES), progress))
    if args.json:
        print_json(report.as_dict(m, rows))
    else:
        print_lines(report.lines(m, rows, width()), args)
    return 0 if report.all_hold(rows) else FAILED
