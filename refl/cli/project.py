"""`refl project`: what a neuron or a head writes, read as logits."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from refl.cli import options
from refl.cli.command import add_command
from refl.cli.files import Source
from refl.cli.output import print_json, print_lines, width
from refl.errors import ReflError
from refl.show.lines import Line, Span, grid, paragraph
from refl.show.numbers import decimals, strongest
from refl.show.text import shorten, visible

if TYPE_CHECKING:
    from refl.components import Part
    from refl.latent.projection import Entry, Projection

_ABOUT = """\
The vocabulary projection of a neuron or a head: what it writes to the residual stream, taken by the
direct way to the outputs as if no later block were there. The tokens (or classes) it speaks most
for, and most against.

  p = U N v      v: the neuron's row of the down projection, or the head's output at one token
                 N: the final norm without its scale;  U: the unembedding

Times the neuron's activation and the norm's 1/std, p is what it adds to the logits of a run.
"""

_MORE = """\
{names}

examples:
  refl project L2.N17                                  # a neuron: the same in every text
  refl project L2.N17 --no-norm --top 5
  refl project L3.H1 --text "the keys to the cabinet"  # a head, at the last token
  refl project L3.H1 --text "the keys to the cabinet" --position 1
  refl project L3.H1 --token keys                      # from weights alone
  refl project L1.N3 --model path/to/vit               # on the classes
  refl project decoder.L0.N3 --model path/to/t5 --json

"""


def add(commands: Any) -> None:
    """The command and its options."""
    summary = "the tokens a neuron or a head speaks for"
    p = add_command(commands, "project", summary, run, description=_ABOUT, more=_more)
    options.part(p)
    p.add_argument("--no-norm", action="store_true", help="without the final norm")
    p.add_argument(
        "--top",
        type=int,
        default=10,
        metavar="K",
        help="how many tokens at each end (default: %(default)s)",
    )
    g = p.add_argument_group("the input in which a head is looked at")
    g.add_argument(
        "--text",
        type=Source,
        metavar="TEXT",
        help="the text, or the file of a picture; a neuron needs none",
    )
    g.add_argument("--ids", nargs="+", type=int, metavar="ID", help="token ids in place of it")
    g.add_argument(
        "--position",
        type=int,
        metavar="N",
        help="the token, counted from 0, or from the end if negative (default: the one whose "
        "output is read, the last of a text)",
    )
    options.decoder(g, "what the decoder has said so far")
    g.add_argument(
        "--token",
        metavar="TOKEN",
        help="no input, but what the head's weights alone make of this token where it looks at "
        "nothing else (its OV circuit)",
    )
    options.of_model(p)


def _more() -> str:
    return _MORE.format(names=options.PARTS)


def run(args: argparse.Namespace) -> int:
    from refl import arguments
    from refl.cli.asked import model_asked, token_asked
    from refl.latent.projection import project

    k = arguments.positive("top", args.top)
    options.refuse_both(args, "text", "ids")
    model = model_asked(args)
    _refuse_strange_input(model.components.part(args.name), args)
    found = project(
        model,
        args.name,
        norm=not args.no_norm,
        k=k,
        item=args.text if args.ids is None else args.ids,
        position=args.position,
        decoder=args.decoder,
        token=None if args.token is None else token_asked(model, args.token),
    )
    if args.json:
        print_json(found.as_dict())
    else:
        print_lines(lines(found), args)
    return 0


def _refuse_strange_input(part: Part, args: argparse.Namespace) -> None:
    """A head is looked at in an input, and a neuron in none."""
    options = ("text", "ids", "position", "decoder", "token")
    said = [n for n in options if getattr(args, n) is not None]
    if part.kind == "head" and not {"text", "ids", "token"} & set(said):
        raise ReflError(
            f"what the head {part.name} gives depends on the input: give --text, or --token"
        )
    if args.token is not None and part.kind == "head" and said != ["token"]:
        raise ReflError(f"--token is looked at without any input: leave --{said[0]} out")
    if part.kind == "neuron" and said:
        raise ReflError(
            f"{part.name} is a neuron, whose row is the same in every input: leave --{said[0]} out"
        )


def lines(p: Projection) -> list[Line]:
    """The projection for a terminal."""
    where = " of one token" if p.alone else ""
    where += "" if p.position is None else f" at position {p.position}"
    token = "" if p.token is None else f" ({visible(p.token)})"
    head: Line = [(p.part.name, "bold"), (f"  {p.part.kind} of {p.part.site}{where}{token}", "")]
    notes = [line for note in p.notes for line in paragraph(note, width(), "dim")]
    return [head, *notes, [], *_table(p)]


def _table(p: Projection) -> list[Line]:
    largest = strongest(entry.logit for entry in (*p.top, *p.bottom))
    places = decimals(largest, 4)
    names: list[Span] = [("most for", "bold"), ("", ""), ("most against", "bold"), ("", "")]
    rows = [
        [*_cells(top, places), *_cells(bottom, places)]
        for top, bottom in zip(p.top, p.bottom, strict=True)
    ]
    return grid([names, *rows], "lrlr")


def _cells(entry: Entry, places: int) -> Sequence[Span]:
    return (shorten(visible(entry.token), 28), "cyan"), (f"{entry.logit:+.{places}f}", "")
