"""`refl answer`: each token of an answer explained, a matrix of its tokens by those before them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from refl.cli import options
from refl.cli.command import add_command
from refl.cli.files import output, write_all
from refl.cli.output import below, print_json, print_lines, width, wrote
from refl.cli.progress import Progress

if TYPE_CHECKING:
    from refl.show.answer import ShownAnswer

_ABOUT = """\
Explain each token of an answer: the one you give, or the one the model itself writes. A row for
each token of the answer, a column for each token of the prompt and of the answer so far; for every
row

  explained  =  sum of the row  +  absorbed on the way  +  conservation error

By a method that is a table of rules the sums of the columns are the relevance of the answer as a
whole, as refl explain --answer finds it in one sweep.
"""

_MORE = """\
a text is an answer as it stands behind the prompt, with the blank before its first word, as refl
generate prints what is new; of an encoder-decoder it is what the decoder says next

examples:
  refl answer "the keys to the cabinet" --tokens 6                # what the model itself writes
  refl answer "the keys to the cabinet" --answer " are on the table"
  refl answer "the keys to the cabinet" --answer " is on the table" --seed log-probability
  refl answer "the keys to the cabinet" --html answer.html        # a page, with every number
  refl answer "translate English to German: the house" --model path/to/t5 --answer "das Haus"
  refl answer "the keys to the cabinet" --method integrated-gradients --tokens 4 --json
  refl answer --ids 2 151 87 --answer-ids 9 13 151 --dtype float64 --save answer.safetensors

"""


def add(commands: Any) -> None:
    """The command and its options."""
    summary = "why a model gives each token of an answer, as a matrix"
    p = add_command(commands, "answer", summary, run, description=_ABOUT, more=lambda: _MORE)
    options.text(p, "the prompt; - reads it from standard input")
    options.ids(p)
    options.decoder(p, "of an encoder-decoder what it has said before the answer")
    options.decoder_ids(p, "token ids in place of that, the start token first")
    options.answer(p, "the answer that is explained (default: what the model itself writes)")
    p.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help="without --answer: how many tokens the model writes at most (default: 32)",
    )
    options.of_model(p, "of the computation; float64 for oracles")
    options.how(p.add_argument_group("how"))
    options.edits(p)
    g = p.add_argument_group("what to write")
    g.add_argument(
        "--html",
        type=output,
        metavar="FILE",
        help="write the matrix as one HTML page that needs no network",
    )
    g.add_argument(
        "--save",
        type=output,
        metavar="FILE",
        help="write the matrix, its parts and all that is said of it to a safetensors file",
    )
    g.add_argument("--svg", type=output, metavar="FILE", help="write the matrix as SVG")
    g.add_argument(
        "--pdf",
        type=output,
        metavar="FILE",
        help="write it as PDF (needs matplotlib, the extra `figures`)",
    )


def run(args: argparse.Namespace) -> int:
    from refl.show.answer import terminal

    _refuse_contradictions(args)
    with Progress() as progress:
        m = _explained(args, progress)
        if args.save:
            m.save(args.save)
        contents = {
            "html": lambda: m.html().encode("utf-8"),
            "svg": lambda: m.svg().encode("utf-8"),
            "pdf": m.pdf,
        }
        write_all(args, contents)
    if args.json:
        print_json(m.as_dict())
        return 0
    print_lines(
        [*terminal(m, width()), *below(wrote(args.save, args.html, args.svg, args.pdf))], args
    )
    return 0


def _refuse_contradictions(args: argparse.Namespace) -> None:
    from refl.cli.asked import answer_asked, refuse_two_inputs

    refuse_two_inputs(args)
    options.refuse_both(args, "answer", "answer_ids")
    if args.tokens is not None and answer_asked(args) is not None:
        args.parser.error("--tokens says how many the model writes: leave it out with --answer")


def _explained(args: argparse.Namespace, progress: Progress) -> ShownAnswer:
    from refl.cli.asked import answer_asked, input_for, model_asked, said_how

    method = said_how(args)
    model = model_asked(args)
    return model.explain_answer(
        input_for(model, args),
        answer_asked(args),
        32 if args.tokens is None else args.tokens,
        method,
        decoder=args.decoder if args.decoder_ids is None else list(args.decoder_ids),
        seed=args.seed,
        progress=progress,
        keep=(),
    )
