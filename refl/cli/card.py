"""`refl card`: all there is to say of one neuron or head, as one HTML page."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from refl.cli import options
from refl.cli.command import add_command
from refl.cli.files import Source, folder, output, write
from refl.cli.output import below, print_json, print_lines, width, wrote
from refl.cli.progress import Progress
from refl.show.lines import Line, paragraph
from refl.show.text import shorten, visible

if TYPE_CHECKING:
    from refl.latent.card import Card

_ABOUT = """\
A card of one neuron or head: its activations over a corpus, the inputs where it is most active and
most relevant (each as a heatmap), what it writes as logits, and what switching it off does, as
relevance predicts it and as it is measured, beside others of its block drawn at random. Of a head
also which token asked which: the relevance at every product of a query and a key.
"""

_MORE = """\
{names}

The model that ships with refl takes its own held-out sentences; any other model needs a --file for
activations and references: a JSON object on each line, with text, ids or image, and what is
explained (target, foil) where that is not the most likely output.

examples:
  refl card L2.N17 --html card.html
  refl card L2.H1 --example "the keys to the cabinet" --contrast are is --html head.html
  refl card L3.N8 --model path/to/checkpoint --file corpus.jsonl --references folder --html n8.html
  refl card L1.N3 --model path/to/vit --file digits.jsonl --html n3.html
  refl card L2.N17 --json

"""


def add(commands: Any) -> None:
    """The command and its options."""
    summary = "a page about one neuron or head"
    p = add_command(commands, "card", summary, run, description=_ABOUT, more=_more)
    options.part(p)
    p.add_argument("--html", type=output, metavar="FILE", help="write the page")
    _corpus(p.add_argument_group("the corpus"))
    _example(p.add_argument_group("the example it is looked at in"))
    g = p.add_argument_group("how")
    g.add_argument(
        "--method",
        type=Source,
        default="attnlrp",
        metavar="NAME|FILE.toml",
        help="a table of rules (default: %(default)s)",
    )
    for name, default, what in (
        ("top", 5, "references of each kind"),
        ("inputs", 20, "lines, spread over the file, in which it is switched off"),
        ("draws", 20, "others of its block, drawn at random, that are switched off beside it"),
    ):
        words = f"{what} (default: %(default)s)"
        g.add_argument(f"--{name}", type=int, default=default, metavar="N", help=words)
    options.of_model(p)


def _corpus(g: Any) -> None:
    g.add_argument(
        "--file",
        type=Source,
        metavar="FILE",
        help="inputs, a JSON object on each line (default: the held-out sentences of the model "
        "that ships with refl)",
    )
    g.add_argument("--limit", type=int, metavar="N", help="only the first N lines of it")
    g.add_argument(
        "--references",
        type=folder,
        metavar="FOLDER",
        help="where references have been found (refl references), or are to be kept (default: "
        "found anew, and not kept)",
    )


def _example(g: Any) -> None:
    g.add_argument(
        "--example",
        type=Source,
        metavar="TEXT",
        help="a text, or the file of a picture (default: the line where it is most relevant)",
    )
    options.decoder(g, "what the decoder has said so far")
    options.target(g, "explain this token")
    options.contrast(g)


def _more() -> str:
    return _MORE.format(names=options.PARTS)


def run(args: argparse.Namespace) -> int:
    from refl.cli.asked import model_asked, outputs_asked
    from refl.latent.card import card
    from refl.latent.card_page import html

    _refuse_strange(args)
    with Progress() as progress:
        model = model_asked(args)
        found = card(
            model,
            args.name,
            args.references,
            args.file,
            args.example,
            decoder=args.decoder,
            **outputs_asked(model, args),
            method=args.method,
            k=args.top,
            inputs=args.inputs,
            draws=args.draws,
            limit=args.limit,
            progress=progress,
        )
        write(args.html, lambda: html(found).encode("utf-8"))
    if args.json:
        print_json(found.as_dict())
        return 0
    print_lines([*lines(found), *below(wrote(args.html))], args)
    return 0


def _refuse_strange(args: argparse.Namespace) -> None:
    """Before a model is loaded."""
    from refl import arguments

    for name in ("top", "inputs"):
        arguments.positive(name, getattr(args, name))
    arguments.count("draws", args.draws)
    if args.limit is not None:
        arguments.positive("limit", args.limit)
    options.refuse_both(args, "target", "contrast")


def lines(c: Card) -> list[Line]:
    """The card in short, for a terminal."""
    return [
        [(c.part.name, "bold"), (f"  {c.part.kind} of {c.part.site}", "")],
        *_active(c),
        *_found(c),
        *_writes(c),
        *_switched(c),
        *_left_out(c),
    ]


def _left_out(c: Card) -> list[Line]:
    if not c.missing:
        return []
    each = (f"no {field}: {words}" for field, words in c.missing.items())
    return [[], *(line for words in each for line in paragraph(words, width(), "dim"))]


def _active(c: Card) -> list[Line]:
    h = c.histogram
    if h is None or h.mean is None:
        return []
    words = (
        f"  {h.smallest:z.4g} to {h.largest:z.4g} at {h.count} positions, mean {h.mean:z.4g}, "
        f"{h.above / h.count:.1%} above 0"
    )
    return [[(words, "")]]


def _found(c: Card) -> list[Line]:
    found: list[Line] = []
    for by, some in (c.references or {}).items():
        found += [[], [(f"largest {by}", "bold")]]
        for one in some:
            r, tokens = one.reference, one.explanation.tokens
            at = visible(tokens[r.position]) if r.position < len(tokens) else ""
            said = f"  {r.value:+.4g}  line {r.line}, {one.place}  "
            found.append([(said, ""), (shorten(at, 24), "cyan")])
    return found


def _writes(c: Card) -> list[Line]:
    if not c.projections:
        return []
    p = c.projections[0]
    rows = [("for", p.top[:6]), ("against", p.bottom[:6])]
    table: list[Line] = [
        [(f"  {name}: ", ""), (", ".join(shorten(visible(e.token), 24) for e in some), "cyan")]
        for name, some in rows
    ]
    return [[], [("what it writes, as logits", "bold")], *table]


def _switched(c: Card) -> list[Line]:
    found: list[Line] = []
    for over, e in c.effects or ():
        found += [[], [(f"in {over}", "bold")], *e.lines()]
    return found
