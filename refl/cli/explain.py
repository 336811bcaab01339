"""`refl explain`: the relevance of every token, the candidates, the conservation ledger."""

from __future__ import annotations

import argparse
from textwrap import fill
from typing import TYPE_CHECKING, Any

from refl.cli import corpus, options
from refl.cli.command import add_command
from refl.cli.files import Source, output, write, write_all
from refl.cli.output import below, fold_width, print_json, print_lines, width, wrote
from refl.cli.progress import Progress
from refl.errors import ReflError

if TYPE_CHECKING:
    from refl.explanation import Explanation

_ABOUT = """\
Explain the token a model gives next: the relevance of every token of the text, the model's
next candidates, and the conservation ledger, in which

  explained  =  relevance on the tokens  +  absorbed on the way, by cause  +  conservation error
"""

_MORE = """\
methods that are tables of rules (refl methods NAME prints one):
{methods}
and those that are none, from integrated gradients to leave-one-out: refl methods lists them all
  FILE.toml               a table of your own: name, base = "attnlrp", and [[rule]] lines on top

seeds, which say what is explained:
  logit              the logit of the target; with --contrast the difference of two
  log-probability    the target's logit less the mean logit under the model's own distribution
  probability        softmax-weighted: the target against every other token; adds up to 0
of an --answer the sum over its tokens of one of the first two

examples:
  refl explain "the keys to the cabinet"                       # the most likely next token
  refl explain "the keys to the cabinet" --target were
  refl explain "the keys to the cabinet" --contrast are is     # why are rather than is
  echo "the keys to the cabinet" | refl explain - --json
  refl explain --ids 2 150 87 --dtype float64 --save oracle.safetensors
  refl explain "the [MASK] sat" --model path/to/bert           # the masked token
  refl explain "a fine film" --model path/to/classifier --target positive
  refl explain "Ada lives in Paris" --model path/to/tagger --position 4 --target B-LOC
  refl explain "Where is it?" --pair "It is in Paris." --model path/to/qa        # the best answer
  refl explain "Where is it?" --pair "It is in Paris." --model path/to/qa --target 8-9
  refl explain "Where is it?" --pair "It is in Paris." --model path/to/qa --target start=8
  refl explain "a fine film" --model path/to/minilm --cosine query.npy --mean    # why so near
  refl explain "a fine film" --model path/to/minilm --coordinate 5
  refl explain "the keys" --at model.layers.1.mlp 2 17         # a neuron
  refl explain "the keys" --edit L3.N17=off L2.H1=x2 L0.N3@-1=0.5      # neurons and heads changed
  refl explain cat.png --model path/to/vit --method attnlrp-vit --png why.png --html why.html
  refl explain "a photo of a cat" --image cat.png --model path/to/clip --html why.html
  refl explain "a cat" --among "a dog" "a car" --image cat.png --model path/to/clip --target "a cat"
  refl explain "the keys" --svg keys.svg --beside cp-lrp input-x-gradient --scale shared
  refl explain "the keys" --keep "*.mlp" "*.self_attn" --save blocks.safetensors
  refl explain "the keys to the cabinet" --contrast are is --through L3.N17 L3.N33
  refl explain --ids 2 150 87 9 --attention-mask 1,0,1,1       # the second token is hidden
  refl explain "the keys to the cabinet" --answer " are on the table" --seed log-probability

"""


def add(commands: Any) -> None:
    """The command and its options."""
    summary = "why a model says what it says next"
    p = add_command(commands, "explain", summary, run, description=_ABOUT, more=_more)
    options.explaining(p)
    options.attention_mask(p)
    options.answer(
        p.add_argument_group("a whole answer"),
        "explain this text behind the input as one target, in place of one output: with the blank "
        "before its first word (refl answer explains each of its tokens)",
    )
    inside = p.add_argument_group("neurons and heads")
    options.edits(inside)
    inside.add_argument(
        "--through",
        nargs="+",
        metavar="NAME",
        help="only relevance that came through these neurons, heads or sites: L2.N17 L2.N33 (any "
        "of those of one site), L1.H0 L2.N17 (through both)",
    )
    g = p.add_argument_group("what to keep and to write")
    g.add_argument(
        "--keep",
        nargs="+",
        metavar="PATTERN",
        help="sites whose activation and relevance to keep, with * and ?: '*.mlp'",
    )
    g.add_argument(
        "--save",
        type=output,
        metavar="FILE",
        help="write everything kept (default: every site) to a safetensors file",
    )
    g.add_argument(
        "--png",
        type=output,
        metavar="FILE",
        help="write the heatmap over the image (for models of images)",
    )
    g.add_argument(
        "--html",
        type=output,
        metavar="FILE",
        help="write the explanation as one HTML page that needs no network",
    )
    _figures(p.add_argument_group("pictures for a paper"))
    corpus.add(p)


FIGURES = {
    "svg": "write the heatmap as SVG",
    "pdf": "write it as PDF (needs matplotlib, the extra `figures`)",
    "tex": "write it for \\input in LaTeX, with \\usepackage{xcolor}",
}


def _figures(g: Any) -> None:
    for name, said in FIGURES.items():
        g.add_argument(f"--{name}", type=output, metavar="FILE", help=said)
    g.add_argument(
        "--beside",
        nargs="+",
        type=Source,
        metavar="NAME|FILE.toml",
        help="further methods of the same input, drawn below the first",
    )
    g.add_argument(
        "--scale",
        choices=("own", "shared"),
        help="of the colors of several methods: each its own (the default), or one for all",
    )


def _more() -> str:
    from refl.rules.published import METHODS

    return _MORE.format(methods="\n".join(_named(c.name, c.summary) for c in METHODS.values()))


def _named(name: str, summary: str) -> str:
    return fill(summary, 98, initial_indent=f"  {name:<22}  ", subsequent_indent=" " * 26)


def run(args: argparse.Namespace) -> int:
    from refl.cli.asked import explained, method_asked, model_asked, refuse_strange_sites
    from refl.methods import Table, chosen

    if corpus.is_asked(args):
        return corpus.run(args)
    method = method_asked(args)
    _refuse_unused(args)
    others = [chosen(name) for name in args.beside or ()]
    with Progress() as progress:
        model = model_asked(args)
        if args.png and not (model.takes_images or model.compares):
            raise ReflError("--png draws over a picture, and this model reads text: leave it out")
        refuse_strange_sites(model, "keep", args.keep or [])
        keep = args.keep or ("*" if args.save and isinstance(method, Table) else ())
        e = explained(model, args, method, keep, progress)
        beside = [explained(model, args, other, (), progress) for other in others]
        _write(e, args, progress)
        _draw([e, *beside], args)
    _answer(e, args)
    return 0


def _write(e: Explanation, args: argparse.Namespace, progress: Progress) -> None:
    from refl.show import heatmap
    from refl.show.page import html

    if args.save:
        progress("saving", 0, 0)
        e.save(args.save)
    drawn = e if e.image is None else e.of_picture
    write(args.png, lambda: heatmap.png(drawn.relevance, drawn.picture))
    write(args.html, lambda: html(e).encode("utf-8"))


def _refuse_unused(args: argparse.Namespace) -> None:
    for option, needs, there in (
        ("beside", "--svg, --pdf or --tex", any(getattr(args, name) for name in FIGURES)),
        ("scale", "--beside", args.beside),
    ):
        if getattr(args, option) and not there:
            raise ReflError(f"--{option} is of a picture for a paper: give {needs} with it")


def _draw(explanations: list[Explanation], args: argparse.Namespace) -> None:
    from refl.show.figure import compare

    if any(getattr(args, name) for name in FIGURES):
        figure = compare(explanations, args.scale or "own")
        contents = {
            "svg": lambda: figure.svg().encode("utf-8"),
            "pdf": figure.pdf,
            "tex": lambda: figure.tex().encode("utf-8"),
        }
        write_all(args, contents)


def _answer(e: Explanation, args: argparse.Namespace) -> None:
    from refl.show.tables import kept, kept_table
    from refl.show.terminal import terminal

    if args.json:
        print_json(e.as_dict() | ({"sites": kept(e)} if args.keep else {}))
        return
    lines = terminal(e, width())
    if args.keep and not args.save:
        lines += [[], *kept_table(e, fold_width())]
    files = (args.save, args.html, args.png, args.svg, args.pdf, args.tex)
    print_lines([*lines, *below(wrote(*files))], args)
