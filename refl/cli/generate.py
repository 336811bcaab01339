"""`refl generate`: what a model writes, and what it writes with neurons, heads or sites changed."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from refl.cli import options
from refl.cli.command import add_command
from refl.cli.output import print_json, print_lines
from refl.cli.progress import Progress
from refl.show.lines import Line
from refl.show.text import printable

if TYPE_CHECKING:
    from refl.model import Model

_ABOUT = """\
Continue a text greedily, token by token. With --edit the model writes twice: as it is, and with
neurons, heads or sites changed in every run.
"""

_MORE = """\
examples:
  refl generate "the keys to the cabinet" --tokens 4
  refl generate "the keys to the cabinet" --tokens 4 --edit L3.N17=off L2.H1=x2
  refl generate "Once upon a time" --model path/to/checkpoint --edit L0.N3@-1=0.5

"""

AS_IT_IS, EDITED = "as it is", "edited"


def add(commands: Any) -> None:
    """The command and its options."""
    summary = "what a model writes, and what it writes with neurons or heads changed"
    p = add_command(commands, "generate", summary, run, description=_ABOUT, more=lambda: _MORE)
    options.text(p, "what is continued; - reads it from standard input")
    options.ids(p)
    options.decoder(p, "of an encoder-decoder what it has said so far, which is continued")
    options.decoder_ids(p, "token ids in place of that, the start token first")
    p.add_argument(
        "--tokens",
        type=int,
        default=16,
        metavar="N",
        help="how many at most: the model may end before (default: %(default)s)",
    )
    options.edits(p)
    options.of_model(p)


def run(args: argparse.Namespace) -> int:
    from refl.cli.asked import edited, edits_asked, input_for, loaded, refuse_two_inputs

    refuse_two_inputs(args)
    changes = edits_asked(args)
    with Progress() as progress:
        model = loaded(args)
        item = input_for(model, args)
        models = {AS_IT_IS: model} | ({EDITED: edited(model, changes)} if changes else {})
        found = {}
        for number, (name, one) in enumerate(models.items()):
            progress("generating", number, len(models))
            found[name] = _continued(one, item, args)
    if args.json:
        print_json(found)
        return 0
    print_lines([_line(name, said, len(found)) for name, said in found.items()], args)
    return 0


def _continued(model: Model, item: Any, args: argparse.Namespace) -> dict[str, Any]:
    """What there was and what the model adds: ids, tokens, and texts where it has a tokenizer."""
    decoder = args.decoder if args.decoder_ids is None else list(args.decoder_ids)
    ids = model.generate(item, args.tokens, decoder)
    before = len(model.readings([item], decoder)[0].explained)
    texts = _texts(model, ids, before)
    return {
        name: {"ids": part, "tokens": model.tokens(part), "text": text}
        for name, part, text in zip(
            ("before", "new"), (ids[:before], ids[before:]), texts, strict=True
        )
    }


def _texts(model: Model, ids: list[int], before: int) -> tuple[str | None, str | None]:
    """Of what there was and of what is new, with the space between where there is one."""
    if model.text is None:
        return None, None
    old, both = model.text.decode(ids[:before]), model.text.decode(ids)
    new = both.removeprefix(old) if both.startswith(old) else model.text.decode(ids[before:])
    return old, new


def _line(name: str, said: dict[str, Any], of: int) -> Line:
    before, new = (_text(said[part]) for part in ("before", "new"))
    label = f"{name:<{len(AS_IT_IS)}}  " if of > 1 else ""
    return [(label, "dim"), (before, ""), (new or " (nothing)", "bold")]


def _text(part: dict[str, Any]) -> str:
    if part["text"] is None:
        return "".join(f"{printable(token)} " for token in part["tokens"])
    return printable(part["text"])
