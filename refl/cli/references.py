"""`refl references`: where neurons and heads are most active, and most relevant, in a corpus."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from refl.cli import corpus, options
from refl.cli.command import add_command
from refl.cli.files import Source, folder, output, write
from refl.cli.output import print_json, print_lines, width, wrote
from refl.cli.progress import Progress
from refl.errors import shown

if TYPE_CHECKING:
    from refl.latent.references import References
    from refl.latent.references.page import Shown
    from refl.model import Model

SHARD = 256
"""Of refl.latent.references, which nothing imports before it is needed."""

_ABOUT = """\
Find the inputs of a corpus that say what neurons and heads respond to, all of them in one pass:

  ActMax   where each is most active (of a head: where its row of the context is longest)
  RelMax   where it is most relevant for what is explained of the line

and, of each, the histogram of its activations over every position.
"""

_MORE = """\
names (numbers count from 0):
  L2           every neuron of the third block          L2.E1      of its second expert
  L2.N17       one neuron, of the block's MLP           L2.H3      one head of its attention
  "L2.H*"      every head of a block: any name that a pattern with * or ? fits
  decoder.L0.cross.H2    of an encoder-decoder, whose blocks are those of encoder and decoder

FILE has a JSON object on each line: text (or ids, or image), and what is explained of it, if it is
not the most likely output: target, foil, position, decoder, pair, types. Of each line the best
position counts, so that 10 references are 10 lines.

The folder of --out holds shards, each with the best and the histograms of its own lines. What is
finished there is not computed again: the same command with another --show only shows. --show
explains the references: of a neuron its own activation, down to the tokens; of a head, whose row is
no number, what is explained of the line as far as it comes through the head at that position.

examples:
  refl references --file corpus.jsonl --out run --parts L2 --show L2.N17
  refl references --file corpus.jsonl --out run --parts L2 --show L2.N17 L2.N3 --html neurons.html
  refl references --file corpus.jsonl --out fast --by activation --workers 4      # every neuron
  refl references --file corpus.jsonl --out heads --parts "*.H*" --top 5 --method cp-lrp

"""


def add(commands: Any) -> None:
    """The command and its options."""
    summary = "what neurons and heads respond to: their reference inputs in a corpus"
    p = add_command(commands, "references", summary, run, description=_ABOUT, more=lambda: _MORE)
    p.add_argument(
        "--file", type=Source, required=True, metavar="FILE.jsonl", help="the corpus, a line each"
    )
    p.add_argument(
        "--out", type=folder, required=True, metavar="FOLDER", help="where to write the shards"
    )
    g = p.add_argument_group("what to find")
    g.add_argument(
        "--parts",
        nargs="+",
        metavar="NAME",
        help="blocks, neurons, heads, or patterns of names (default: every neuron)",
    )
    g.add_argument(
        "--top", type=int, default=10, metavar="K", help="references of each (default: %(default)s)"
    )
    g.add_argument(
        "--by",
        nargs="+",
        choices=("activation", "relevance"),
        default=["activation", "relevance"],
        help="ActMax, RelMax, or both (the default); activation alone takes no sweep",
    )
    g.add_argument("--lowest", action="store_true", help="also where both are lowest")
    g.add_argument(
        "--every-position",
        action="store_true",
        help="every position for itself, in place of the best of each line",
    )
    _shown(p.add_argument_group("what to show"))
    options.edits(options.of_model(p))
    options.how(p.add_argument_group("how relevance is found"))
    corpus.spread(p.add_argument_group("the work"), SHARD)


def _shown(g: Any) -> None:
    g.add_argument(
        "--show",
        nargs="+",
        default=[],
        metavar="NAME",
        help="show the references of these neurons and heads, each as a heatmap",
    )
    g.add_argument(
        "--html",
        type=output,
        metavar="FILE",
        help="write what --show shows as one HTML page that needs no network",
    )


def run(args: argparse.Namespace) -> int:
    from refl import arguments
    from refl.cli.asked import model_asked, options_asked
    from refl.latent.references import references

    options.refuse_both(args, "workers", "dask")
    if args.html and not args.show:
        args.parser.error("--html writes what --show shows: give names with --show")
    k = arguments.positive("top", args.top)
    with Progress() as progress, corpus.pool(args) as pool:
        model = model_asked(args)
        _refuse_strange(model, args)
        found = references(
            model,
            args.file,
            args.out,
            args.parts,
            k,
            args.by,
            args.method,
            options=options_asked(args.option),
            pool=pool,
            progress=progress,
            shard=SHARD if args.shard is None else args.shard,
            **{name: getattr(args, name) for name in _HANDED_ON},
        )
        progress("explaining", 0, 0)
        every = [_explained(found, model, name, args) for name in args.show]
        write(args.html, lambda: _page(found, every))
    _answer(found, every, args)
    return 0


_HANDED_ON = (
    *("lowest", "every_position", "seed", "eps", "stabilizer"),
    *("limit", "workers"),
)


def _refuse_strange(model: Model, args: argparse.Namespace) -> None:
    """Names to show that are not looked for would be missed once all is done."""
    from refl.errors import ReflError
    from refl.latent.references.selection import selected

    looked_for = {name for g in selected(model.components, args.parts) for name in g.names}
    for name in args.show:
        model.components.part(name)
        if name not in looked_for:
            raise ReflError(f"--show {shown(name)} is not among --parts: name it there, too")


def _explained(found: References, model: Model, name: str, args: argparse.Namespace) -> Shown:
    from refl.latent.references.page import Shown

    rankings, how = found.run["options"]["by"], _how(args)
    return Shown(
        found.of(name),
        {by: found.heatmaps(model, args.file, name, by=by, **how) for by in rankings},
    )


def _how(args: argparse.Namespace) -> dict[str, Any]:
    """What explains references, where the run, by activation alone, does not say."""
    from refl.cli.asked import said_how

    if "relevance" in args.by:
        return {}
    return {"method": said_how(args), "seed": args.seed}


def _page(found: References, every: list[Shown]) -> bytes:
    from refl.latent.references.page import html

    model, data = found.run["model"]["name"] or "a model", found.run["data"]
    return html(every, f"{model}, {data['inputs']} inputs.").encode()


def _answer(found: References, every: list[Shown], args: argparse.Namespace) -> None:
    from refl.latent.references.page import lines

    assert found.done is not None
    done = found.done
    if args.json:
        shown_ = {"shown": [one.found.as_dict() for one in every]} if every else {}
        print_json(done.as_dict() | {"parts": len(found.names)} | shown_)
        return
    what = f"{len(found.names)} neurons and heads over {corpus.held(done)}"
    view = [line for one in every for line in ([], *lines(one, width()))]
    print_lines([*wrote(done.folder, what=what), *view, *wrote(args.html)], args)
