"""`refl neurons`: the neurons, heads and blocks that carry most relevance, and the ways relevance
takes through each block.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from refl.cli import options
from refl.cli.command import add_command
from refl.cli.output import print_json, print_lines, width
from refl.cli.progress import Progress
from refl.errors import ReflError

if TYPE_CHECKING:
    from refl.explanation import Explanation
    from refl.model import Model
    from refl.show.lines import Line

_ABOUT = """\
The neurons, heads or blocks that carry most relevance for what a model says next, across the whole
model at once: by the size of their relevance, with its sign, its part of what is explained, the
neuron's activation, and the token where it is strongest.

  L3.N17      neuron 17 of the MLP of block 3, an entry of what its last linear layer reads
  L3.H2       head 2 of its attention
  L3.E1.N17   neuron 17 of expert 1;  decoder.L0.cross.H2: of an encoder-decoder
"""

_MORE = """\
examples:
  refl neurons "the keys to the cabinet" --contrast are is     # which make it are rather than is
  refl neurons "the keys to the cabinet" --by head --top 5
  refl neurons "the keys to the cabinet" --over -1             # at the last token alone
  refl neurons "the keys to the cabinet" --over each           # every (neuron, token) by itself
  refl neurons "the keys to the cabinet" --sign negative       # what speaks against it
  refl neurons "the keys" --sites "*.self_attn" --by neuron    # features of any sites
  refl neurons "the keys" --paths        # block by block: queries, keys, values, MLP, residual
  refl neurons digit.png --model path/to/vit --method attnlrp-vit --json

--paths, a line for each block from the output down:

  received + returned  =  queries + keys + values + mlp + residual + absorbed

  received                at the block's output
  queries, keys, values   at the linear layers that make them
  mlp                     at its output
  residual                what left the block along the stream, past attention and MLP
  absorbed                by attention and by the stream; what else MLPs absorb is in refl trace
  returned                what the MLP (or attention) handed back to the stream inside the block: it
                          is counted again in what stands before it
  first token, attention  the part of |R| that lies on the first token at the block's output, and
                          the part of all attention that it receives (an attention sink)

"""

_RANKING = ("top", "by", "over", "sites", "sign")


def add(commands: Any) -> None:
    """The command and its options."""
    summary = "the neurons, heads and blocks that carry most relevance"
    p = add_command(commands, "neurons", summary, run, description=_ABOUT, more=lambda: _MORE)
    options.explaining(p)
    options.edits(p)
    _add_ranking(p.add_argument_group("what to rank, and how"))


def _add_ranking(g: Any) -> None:
    g.add_argument("--top", type=int, metavar="K", help="how many to show (default: 10)")
    g.add_argument(
        "--by", choices=("neuron", "head", "block"), help="what to rank (default: neuron)"
    )
    g.add_argument(
        "--over",
        metavar="positions|each|N",
        help="sum over positions, take every position by itself, or token N alone, counted from "
        "the end if negative (default: positions)",
    )
    g.add_argument(
        "--sites",
        metavar="PATTERN",
        help="rank these sites, with * and ?, in place of all MLPs (heads of attentions, blocks)",
    )
    g.add_argument(
        "--sign",
        choices=("both", "positive", "negative"),
        help="of the relevance of those to show (default: both)",
    )
    g.add_argument(
        "--paths",
        action="store_true",
        help="in place of a ranking, what went through queries, keys, values, MLP and the residual "
        "stream of every block",
    )


def run(args: argparse.Namespace) -> int:
    from refl.cli.asked import explained, model_asked, table_asked

    method = table_asked(args, "relevance at neurons", "one that is, such as attnlrp")
    _refuse_unused(args)
    with Progress() as progress:
        model = model_asked(args)
        e = explained(model, args, method, _keep(model, args), progress)
        answer, lines = _paths(e) if args.paths else _ranking(e, args)
    if args.json:
        print_json(e.as_dict() | answer)
    else:
        _print(e, lines, args)
    return 0


def _print(e: Explanation, lines: list[Line], args: argparse.Namespace) -> None:
    from refl.show.terminal import head

    print_lines([*head(e, width()), [], *lines], args)


def _refuse_unused(args: argparse.Namespace) -> None:
    from refl import arguments

    if args.top is not None:
        arguments.positive("top", args.top)
    for option in _RANKING if args.paths else ():
        if getattr(args, option) is not None:
            raise ReflError(f"--{option} is of a ranking, and --paths shows every block: give one")


def _keep(model: Model, args: argparse.Namespace) -> list[str]:
    """The sites that are read, and no others: memory."""
    from refl.cli.asked import refuse_strange_sites
    from refl.ranking import needed, routers

    if args.paths:
        found = [block.site for block in model.components.blocks]
        paths = [a.context.removesuffix("context") for a in model.components.attentions]
        return found + [f"{path}probabilities" for path in paths]
    if args.sites is None:
        return needed(model.components, args.by or "neuron")
    refuse_strange_sites(model, "sites", [args.sites])
    return [args.sites, *routers(model.components)]


def _ranking(e: Explanation, args: argparse.Namespace) -> tuple[dict[str, Any], list[Line]]:
    from refl.show.ranking import ranking_lines

    found = e.top(
        args.sites,
        10 if args.top is None else args.top,
        _over(args.over),
        args.by or "neuron",
        args.sign or "both",
    )
    return {"ranking": found.as_dict()}, ranking_lines(found, width())


def _over(said: str | None) -> str | int:
    from refl.cli.asked import typed

    found = "positions" if said is None else typed(said)
    return found if isinstance(found, int) and not isinstance(found, bool) else said or "positions"


def _paths(e: Explanation) -> tuple[dict[str, Any], list[Line]]:
    from refl.show.ranking import paths_lines

    paths, sinks = e.paths(), e.sinks()
    answer = {"paths": paths.as_dict(), "sinks": sinks.as_dict()}
    return answer, paths_lines(paths, sinks, width())
