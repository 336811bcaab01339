"""What the options ask for: the method, the model, the input, the explanation. Options that
contradict each other are refused before a model is loaded.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from refl import arguments
from refl.cli import options
from refl.edits import Edit, off, scale, value
from refl.errors import ReflError, nearest_patterns, shown
from refl.explainer import fits_any
from refl.explanation import Explanation
from refl.io.files import read_bytes
from refl.io.vectors import read_vector
from refl.methods import Method, Table, chosen
from refl.model import Model, load
from refl.network import LABELED
from refl.targets import coordinate, cosine


def method_asked(args: argparse.Namespace) -> Method:
    """The method with its options; refuses what no model could make sense of."""
    refuse_contradictions(args)
    return said_how(args)


def table_asked(args: argparse.Namespace, lacking: str, instead: str) -> Method:
    """The method, which has to be a table of rules: others have none of what is shown."""
    method = method_asked(args)
    if not isinstance(method, Table):
        raise ReflError(
            f"method {method.name} is no table of rules: it has no {lacking}; take {instead}"
        )
    return method


def said_how(args: argparse.Namespace) -> Method:
    """The method with its options, of whatever input."""
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


def refuse_two_inputs(
    args: argparse.Namespace, text: str = "a TEXT (or - for standard input)"
) -> None:
    """TEXT or ids, of the input and of a decoder."""
    if args.text is None and args.ids is None:
        args.parser.error(f"give {text} or --ids")
    if args.text is not None and args.ids is not None:
        args.parser.error(f"give {text} or --ids, not both")
    options.refuse_both(args, "decoder", "decoder_ids")


def refuse_contradictions(args: argparse.Namespace) -> None:
    refuse_two_inputs(args)
    if args.pair is not None and (args.ids is not None or args.types is not None):
        args.parser.error("--pair joins two texts: give TEXT with it, and no --ids or --types")
    options.refuse_both(args, "target", "contrast")
    _refuse_two_targets(args)


def _refuse_two_targets(args: argparse.Namespace) -> None:
    """Features are explained in place of an output, and one way at a time."""
    of_features = [name for name in ("coordinate", "cosine") if _option(args, name) is not None]
    for name in ("target", "contrast", "at"):
        if of_features and _option(args, name) is not None:
            args.parser.error(f"give --{name} or --{of_features[0]}, not both")
    if len(of_features) > 1:
        args.parser.error("give --coordinate or --cosine, not both")
    if _option(args, "mean") and not of_features:
        args.parser.error("--mean is of features: give --coordinate or --cosine with it")


def _option(args: argparse.Namespace, name: str) -> Any:
    """An option that not every command has."""
    return getattr(args, name, None)


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
    if not all(is_number(p.removeprefix("-")) or (between and not p) for p in parts):
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
    e: Explanation = model.explain(
        input_for(model, args),
        method,
        **outputs_asked(model, args),
        decoder=args.decoder if args.decoder_ids is None else list(args.decoder_ids),
        seed=args.seed,
        keep=keep,
        progress=progress,
        position=args.position,
        at=_neuron(args),
        types=args.types,
        pair=args.pair,
        conditions=getattr(args, "through", None),
        attention_mask=_attention_mask(getattr(args, "attention_mask", None)),
    )
    return e


LARGEST_MASK = 1 << 28
"""Bytes of a file: one for every pair of 16,384 tokens."""


def _attention_mask(said: str | None) -> Any:
    """1,1,0,1 as numbers; anything else is a file, .npy or JSON. Raises ReflError for what cannot
    be read.
    """
    if said is None:
        return None
    if set(said) <= set("01, "):
        return [int(one) for one in said.replace(",", " ").split()]
    raw = read_bytes(Path(said), LARGEST_MASK)
    try:
        if said.endswith(".npy"):
            return np.load(BytesIO(raw), allow_pickle=False)
        return json.loads(raw)
    except (OSError, EOFError, ValueError, RecursionError) as reason:
        raise ReflError(
            f"--attention-mask {shown(said)!r} cannot be read ({shown(str(reason))}): expected "
            "1,1,0,1 or the name of a .npy or JSON file"
        ) from reason


def input_asked(args: argparse.Namespace) -> str | list[int] | None:
    """Token ids, a text, or the text on standard input."""
    if args.ids is not None:
        return list(args.ids)
    return _standard_input() if args.text == "-" else args.text


def input_for(model: Model, args: argparse.Namespace) -> str | list[int] | None:
    """The same for a model that is there. Raises ReflError for a text where nothing reads it."""
    if args.ids is None and model.text is None and not model.takes_images:
        raise no_tokenizer(model.name or "the model")
    return input_asked(args)


def no_tokenizer(name: str) -> ReflError:
    """For a text that a checkpoint cannot read."""
    return ReflError(f"{name} has no tokenizer.json: give token ids with --ids")


def outputs_asked(model: Model, args: argparse.Namespace) -> dict[str, Any]:
    """--target and --contrast, as arguments of what explains."""
    target, contrast = args.target, args.contrast
    if (feature := _feature(args)) is not None:
        return {"target": feature, "contrast": None}
    return {
        "target": None if target is None else target_asked(model, target),
        "contrast": None if contrast is None else tuple(target_asked(model, t) for t in contrast),
    }


def _feature(args: argparse.Namespace) -> Any:
    """--coordinate or --cosine, with --mean."""
    if _option(args, "coordinate") is not None:
        return coordinate(args.coordinate, bool(args.mean))
    if _option(args, "cosine") is not None:
        return cosine(read_vector(args.cosine), bool(args.mean))
    return None


def _answer(text: str) -> Any:
    """17-21, start=17 or end=21. Raises ReflError for what is none of these."""
    found = re.fullmatch(r"(start|end)=(\d{1,9})|(\d{1,9})[-–](\d{1,9})", text, re.ASCII)
    if found is None:
        raise ReflError(
            f"--target is {arguments.received(text)}: expected an answer as 17-21, its first and "
            "its last token, counted from 0, or start=17 or end=21 for one of the two logits"
        )
    end, token, first, last = found.groups()
    return (end, int(token)) if end else (int(first), int(last))


def target_asked(model: Model, token: str) -> Any:
    """An output as it was typed: a token, the number of a class that is no label, an answer."""
    if model.task == "answer-span":
        return _answer(token)
    if model.task not in LABELED:
        return token_asked(model, token)
    return int(token) if is_number(token) and token not in model.labels.values() else token


def token_asked(model: Model, token: str) -> str | int:
    """A token of the vocabulary as it was typed; its id where the model has no tokenizer."""
    return int(token) if is_number(token) and model.text is None else token


def is_number(text: str) -> bool:
    """Digits, and not thousands of them."""
    return text.isdecimal() and len(text) <= LONGEST_NUMBER


def _neuron(args: argparse.Namespace) -> tuple[str, list[int]] | None:
    """--at: a site, and whole numbers."""
    if args.at is None:
        return None
    site, *index = args.at
    if not index or not all(is_number(i.removeprefix("-")) for i in index):
        raise ReflError(
            f"--at is {arguments.received(' '.join(args.at))}: expected a site and the neuron's "
            "index there, such as model.layers.1.mlp 2 17"
        )
    return site, [int(i) for i in index]


def refuse_strange_sites(model: Model, option: str, patterns: Sequence[str]) -> None:
    """A pattern that names no site of the model is a mistake. The names come from a forward pass of
    one token, or of a blank picture.
    """
    names = list(model.sites()) if patterns else []
    for pattern in patterns:
        if not fits_any(pattern, names):
            near = ", ".join(nearest_patterns(pattern, names)) or "none"
            raise ReflError(
                f"--{option} {pattern!r} names no site of this model; nearest: {near} (refl trace "
                "lists all sites)"
            )


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
