"""What the options ask for: the method, the model, the input, the explanation. Options that
contradict each other are refused before a model is loaded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any

from refl import arguments
from refl.edits import Edit, off, scale, value
from refl.errors import ReflError, shown
from refl.explanation import Explanation
from refl.methods import Method, chosen
from refl.model import Model, load
from refl.network import CLASSIFIES


def method_asked(args: argparse.Namespace) -> Method:
    """The method with its options; refuses what no model could make sense of."""
    refuse_contradictions(args)
    return chosen(args.method, args.eps, args.stabilizer, options_asked(args.option))


def options_asked(said: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE each, the values typed."""
    return {name: typed(value) for name, value in named("--option", said).items()}


def named(what: str, said: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE each. Raises ReflError for what is none, and for a name that stands twice."""
    found: dict[str, str] = {}
    for one in said:
        name, sign, value = one.partition("=")
        if not name or not sign:
            raise ReflError(f"{what} gives {arguments.received(one)}: expected NAME=VALUE")
        if name in found:
            raise ReflError(f"{what} gives {arguments.received(name)} twice")
        found[name] = value
    return found


def typed(text: str) -> Any:
    """A number, true, false or none where the text reads as one, else the text."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def refuse_two_inputs(args: argparse.Namespace) -> None:
    """TEXT or ids, of the input and of a decoder."""
    if args.text is None and args.ids is None:
        args.parser.error("give a TEXT (or - for standard input) or --ids")
    if args.text is not None and args.ids is not None:
        args.parser.error("give a TEXT (or - for standard input) or --ids, not both")
    if args.decoder is not None and args.decoder_ids is not None:
        args.parser.error("give --decoder or --decoder-ids, not both")


def refuse_contradictions(args: argparse.Namespace) -> None:
    refuse_two_inputs(args)
    if args.pair is not None and (args.ids is not None or args.types is not None):
        args.parser.error("--pair joins two texts: give TEXT with it, and no --ids or --types")
    if args.contrast and args.target is not None:
        args.parser.error("give --target or --contrast, not both")


def model_asked(args: argparse.Namespace) -> Model:
    """The checkpoint, ready; with --edit where the command has it."""
    changes = edits_asked(args)
    return edited(loaded(args), changes)


def loaded(args: argparse.Namespace) -> Model:
    """The checkpoint as it is."""
    return load(
        args.model,
        device=args.device,
        dtype=args.dtype,
        ignore=args.ignore,
        ignore_tensors=args.ignore_tensors,
    )


# -- edits -----------------------------------------------------------------------------------------

Asked = tuple[str, str, Edit]
"""The name of what is changed, at which positions, and how."""


def edits_asked(args: argparse.Namespace) -> list[Asked]:
    """Of --edit, where the command has it."""
    return [_edit(said) for said in getattr(args, "edit", [])]


def edited(model: Model, changes: Sequence[Asked]) -> Model:
    """The model with these changes, made in the order in which they stand."""
    if len({(name, where) for name, where, _ in changes}) < len(changes):
        raise ReflError("--edit gives a name twice: change it once")
    for positions, some in groupby(changes, key=lambda one: one[1]):
        asked = {name: change for name, _, change in some}
        model = model.with_edits(asked, _tokens_at(positions))
    return model


def _edit(said: str) -> Asked:
    """NAME[@T]=CHANGE -> the name, its positions, and what is done there."""
    name, sign, change = said.partition("=")
    name, at, positions = name.partition("@")
    if not name or not sign or (at and not positions):
        raise ReflError(
            f"--edit is {arguments.received(said)}: expected NAME=off, NAME=0.5 or NAME=x2, such "
            "as L3.N17=off, at some tokens L3.N17@-1=off"
        )
    if change == "off":
        return name, positions, off
    try:
        number = float(change.removeprefix("x"))
        return name, positions, scale(number) if change.startswith("x") else value(number)
    except (ValueError, ReflError):
        raise ReflError(
            f"--edit changes {shown(name)} by {arguments.received(change)}: expected off, a "
            "finite number, or x and a finite factor"
        ) from None


def _tokens_at(said: str) -> list[int] | slice | None:
    """2,5 or 1:4; None for all of them."""
    if not said:
        return None
    parts, between = (said.split(":"), True) if ":" in said else (said.split(","), False)
    if not all(_is_number(p.removeprefix("-")) or (between and not p) for p in parts):
        raise ReflError(
            f"--edit has the tokens {arguments.received(said)}: expected whole numbers, such as "
            "@-1, @2,5 or @1:4"
        )
    if between and len(parts) > 2:
        raise ReflError(f"--edit has the tokens {arguments.received(said)}: expected @1:4")
    if between:
        return slice(*(int(p) if p else None for p in parts))
    return [int(p) for p in parts]


# -- the explanation -------------------------------------------------------------------------------


def explained(
    model: Model, args: argparse.Namespace, method: Method, keep: Any, progress: Any
) -> Explanation:
    """The explanation that the options ask for."""
    if args.ids is None and model.text is None and not model.takes_images:
        raise ReflError(
            f"{model.name or 'the model'} has no tokenizer.json: give token ids with --ids"
        )
    e: Explanation = model.explain(
        input_asked(args),
        method,
        target=None if args.target is None else _target(model, args.target),
        contrast=None if args.contrast is None else _contrast(model, *args.contrast),
        decoder=args.decoder if args.decoder_ids is None else list(args.decoder_ids),
        seed=args.seed,
        keep=keep,
        progress=progress,
        position=args.position,
        at=_neuron(args),
        types=args.types,
        pair=args.pair,
        conditions=getattr(args, "through", None),
    )
    return e


def input_asked(args: argparse.Namespace) -> str | list[int] | None:
    """Token ids, a text, or the text on standard input."""
    if args.ids is not None:
        return list(args.ids)
    return _standard_input() if args.text == "-" else args.text


def _target(model: Model, token: str) -> str | int:
    """A token as it was typed; its id where the model has no tokenizer,
    the number of a class that is no label.
    """
    numbered = (
        model.text is None if model.task not in CLASSIFIES else token not in model.labels.values()
    )
    return int(token) if numbered and _is_number(token) else token


def _is_number(text: str) -> bool:
    """Digits, and not thousands of them."""
    return text.isdecimal() and len(text) <= LONGEST_NUMBER


def _contrast(model: Model, token: str, against: str) -> tuple[str | int, str | int]:
    return _target(model, token), _target(model, against)


def _neuron(args: argparse.Namespace) -> tuple[str, list[int]] | None:
    """--at: a site, and whole numbers."""
    if args.at is None:
        return None
    site, *index = args.at
    if not index or not all(_is_number(i.removeprefix("-")) for i in index):
        raise ReflError(
            f"--at is {arguments.received(' '.join(args.at))}: expected a site and the neuron's "
            "index there, such as model.layers.1.mlp 2 17"
        )
    return site, [int(i) for i in index]


LONGEST_NUMBER = 20
"""Digits: more than any index or id has."""

_MOST_INPUT = 16 << 20


def _standard_input() -> str:
    """All of standard input, without the line end that echo and editors add."""
    if sys.stdin is None:
        raise ReflError("standard input is closed: give the TEXT itself in place of -")
    try:
        # in a fork of a test or a notebook it may be a stream of strings
        raw = getattr(sys.stdin, "buffer", sys.stdin).read(_MOST_INPUT + 1)
        text = raw if isinstance(raw, str) else raw.decode("utf-8")
    except UnicodeDecodeError as reason:
        raise ReflError(f"standard input is not UTF-8: {reason}") from None
    except (OSError, ValueError) as reason:  # a folder, a stream that has been closed
        words = getattr(reason, "strerror", None) or reason
        raise ReflError(f"standard input cannot be read: {words}") from None
    if len(raw) > _MOST_INPUT:
        raise ReflError(
            f"standard input has more than {_MOST_INPUT} bytes: expected a text that a model reads"
        )
    return text.removesuffix("\n").removesuffix("\r")
