"""`refl walk`: a page that leads through a whole forward pass and a whole sweep."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from refl.cli import options
from refl.cli.command import add_command
from refl.cli.files import output, write
from refl.cli.output import print_json, print_lines, wrote
from refl.cli.progress import Progress

if TYPE_CHECKING:
    from refl.walk import Walk

_ABOUT = """\
A page that leads through a whole forward pass and then back down in the order of the sweep, with
the numbers of this model on this input: at every stop the equation, what went in, what came out,
the relevance, one element worked out digit by digit, and the entry in the conservation ledger.

It needs no network and nothing but itself: open it in a browser, go on with the arrow keys, and
press ? for the others. It switches between attnlrp, cp-lrp and input-x-gradient, has a slider for
eps, and plants mistakes on request, to show where the ledger says so.
"""

_MORE = """\
a page has at most 8 MB: in it are the weights of the model, at most 1.5 million, and the relevance
and activations of every token (of stories260K some 40 tokens have room)

examples:
  refl walk "the keys to the cabinet" --html walk.html
  refl walk "the keys to the cabinet" --contrast are is --html walk.html
  refl walk "Once upon a time" --model path/to/stories260K --html walk.html
  refl walk digit.png --model path/to/vit --html walk.html

"""


def add(commands: Any) -> None:
    """The command and its options."""
    summary = "a page through a whole sweep, with every number"
    p = add_command(commands, "walk", summary, run, description=_ABOUT, more=lambda: _MORE)
    options.one_output(p)
    p.add_argument_group("the page").add_argument(
        "--html", type=output, metavar="FILE", required=True, help="write the page"
    )


def run(args: argparse.Namespace) -> int:
    from refl.cli.asked import explained, model_asked, refuse_contradictions
    from refl.walk import Walking

    refuse_contradictions(args)
    with Progress() as progress:
        found: Any = explained(model_asked(args), args, Walking(), None, progress)
        page = found.html().encode("utf-8")
        write(args.html, lambda: page)
    _answer(found, len(page), args)
    return 0


def _answer(found: Walk, size: int, args: argparse.Namespace) -> None:
    stops = len(found.data["stops"])
    if args.json:
        print_json({"html": str(args.html), "stops": stops, "bytes": size})
        return
    said = f"{size / 1e6:.1f} MB, {stops} operations there and back"
    print_lines(wrote(args.html, what=said), args)
