"""`refl graph`: what passed relevance to what, as a table, a picture, and a file for viewers of
attribution graphs.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from refl.cli import options
from refl.cli.command import add_command
from refl.cli.files import output, write_all
from refl.cli.output import below, print_json, print_lines, width, wrote
from refl.cli.progress import Progress

if TYPE_CHECKING:
    from refl.latent.graph import Graph

_ABOUT = """\
The graph of what passed relevance to what: from the explained output through neurons of MLPs
(L2.N17 is neuron 17 of the third block) and heads of attention (L1.H0) to the tokens.

  relevance of a node  =  sum of the edges into it
                       =  sum of its edges to what lies below  +  absorbed on the way

An edge is the relevance that came from one node to another and met no third. What meets a neuron or
head that was not chosen passes through it, so the sums hold for any choice: --fraction and --most
decide how much the graph tells apart, not how much it accounts for.
"""

_MORE = """\
which neurons and heads are nodes:
  --fraction F   of the neurons of each MLP, and of the heads of each attention, over all positions,
                 the fewest whose |relevance| makes up F of the sum of |relevance| there
  --most N       and of those the N strongest of the whole model; each costs a sweep
  --kinds        only neurons, or only heads: of a large model a single neuron has little relevance
                 beside a head, which has that of many numbers

methods are tables of rules, whose sweeps are linear in relevance: attnlrp, cp-lrp,
attnlrp-gradient, ... (refl methods lists them; the others have no sweep)

--graph writes the JSON that Neuronpedia and circuit-tracer's viewer open: neurons and heads are
features there, layers are half-blocks, weights of links are relevance, and metadata.info.refl has
the method and the account of every node.

examples:
  refl graph "the keys to the cabinet" --contrast are is
  refl graph "the keys to the cabinet" --contrast are is --svg why.svg --graph why.json
  refl graph "the keys to the cabinet" --fraction 0.5 --most 20 --method cp-lrp
  refl graph "the keys to the cabinet" --kinds neuron --most 100
  refl graph cat.png --model path/to/vit --method attnlrp-vit --most 100 --pdf cat.pdf
  refl graph "the keys" --json | jq '.edges[:5]'

"""


def add(commands: Any) -> None:
    """The command and its options."""
    summary = "what passed relevance to what, as a graph"
    p = add_command(commands, "graph", summary, run, description=_ABOUT, more=lambda: _MORE)
    options.explaining(p)
    options.edits(p)
    g = p.add_argument_group("the graph")
    g.add_argument(
        "--fraction",
        type=float,
        default=0.8,
        metavar="F",
        help="of |relevance| at each MLP and attention, above 0, at most 1 (default: %(default)s)",
    )
    g.add_argument(
        "--most",
        type=int,
        default=50,
        metavar="N",
        help="neurons and heads at most (default: %(default)s)",
    )
    g.add_argument(
        "--kinds",
        nargs="+",
        choices=("neuron", "head"),
        default=("neuron", "head"),
        help="what can be a node (default: both)",
    )
    g.add_argument(
        "--graph",
        type=output,
        metavar="FILE.json",
        help="write it for viewers of attribution graphs",
    )
    g.add_argument("--svg", type=output, metavar="FILE", help="write a picture as SVG")
    g.add_argument(
        "--pdf",
        type=output,
        metavar="FILE",
        help="write it as PDF (needs matplotlib, the extra `figures`)",
    )


def run(args: argparse.Namespace) -> int:
    from refl.cli.asked import explained, method_asked, model_asked
    from refl.latent.graph import shown, tracing

    asked = tracing(method_asked(args), args.fraction, args.most, args.kinds)
    with Progress() as progress:
        answer: Any = explained(model_asked(args), args, asked, None, progress)
        found = shown(answer)
        _write(found, args)
    _answer(found, args)
    return 0


def _write(graph: Graph, args: argparse.Namespace) -> None:
    contents = {
        "graph": lambda: graph.json().encode("utf-8"),
        "svg": lambda: graph.svg().encode("utf-8"),
        "pdf": graph.pdf,
    }
    write_all(args, contents)


def _answer(graph: Graph, args: argparse.Namespace) -> None:
    from refl.latent.graph.table import lines

    if args.json:
        print_json(graph.as_dict())
        return
    files = wrote(args.graph, args.svg, args.pdf)
    print_lines([*lines(graph, width()), *below(files)], args)
