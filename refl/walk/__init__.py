"""The walk: one page that leads through a whole forward pass and a whole sweep, number by number.

    w = refl.walk.walk(model, "the keys to the cabinet", contrast=("are", "is"))
    w.html()                      the page: no network, nothing beside it
    w.data, w.arrays              what it is told (refl.walk.stops), and every array it shows

The page forms with arithmetic of its own (page/rules.js) what it works out digit by digit, what a
planted mistake does and what another eps would do; everything else in it are the engine's numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from refl import arguments
from refl.errors import ReflError, argument
from refl.explainer import Explainer
from refl.explanation import Explanation
from refl.methods import Table, chosen
from refl.model import Model
from refl.network import Network, Reading
from refl.question import Forward, Question, Target
from refl.rules.composites import Composite
from refl.rules.operations import CAUSES
from refl.version import __version__
from refl.walk.document import document, equations, picture
from refl.walk.packed import Packed
from refl.walk.stops import Stops, method_facts

__all__ = ["LIMIT", "METHODS", "Walk", "walk"]

METHODS = ("attnlrp", "cp-lrp", "input-x-gradient")
"""Those that a page can switch between."""

LIMIT = 8_000_000
"""Bytes that a page has at most: more are slow to open on a phone."""

ASKED = {"target", "contrast", "position", "seed", "decoder", "types", "pair", "progress"}
"""What is asked of a model as Model.explain has it."""

_BYTES = 6 * 4 / 3
"""Of a number in a page, before what deflating saves."""


@dataclass(frozen=True)
class Walk:
    """A walk through one run and its sweeps."""

    explanations: Sequence[Explanation]
    """Of each method in turn."""
    data: dict[str, Any]
    """Everything but the arrays, as plain numbers, texts and lists."""
    arrays: str
    """The arrays, as refl.walk.packed stores them."""

    @cached_property
    def _html(self) -> str:
        return document(self.data, self.arrays)

    def html(self) -> str:
        """The page. Raises ReflError where it would be too large."""
        size = len(self._html.encode("utf-8"))
        if size > LIMIT:
            raise ReflError(
                f"the page would have {size / 1e6:.1f} MB, and has at most {LIMIT / 1e6:.0f} MB: "
                f"{_smaller(self.explanations[0], size)}"
            )
        return self._html


def walk(model: Model, item: Any, **asked: Any) -> Walk:
    """A walk through the run and the sweeps of one explained output.

    item     one text, list of token ids, or picture, as Model.explain takes it
    asked    what is explained, as in Model.explain: target, contrast, position, seed, decoder,
             types, pair; progress, which is told ("walk", methods done, methods)

    Raises ReflError as Model.explain does, and for a model or an input too large for a page.
    """
    arguments.refuse_unknown("walk", asked, sorted(ASKED))
    found: Walk = model.explain(item, Walking(), **asked)
    if not isinstance(found, Walk):
        raise ReflError("a walk is through one input: give them one by one")
    return found


@dataclass(frozen=True)
class Walking:
    """What `Model.explain` may ask as it asks a method, whose answer is a walk."""

    name: ClassVar[str] = "walk"
    summary: ClassVar[str] = "a page through a whole sweep"
    source: ClassVar[str] = ""
    passes: ClassVar[str] = "a forward and a sweep for each of its methods"
    conserved: ClassVar[str] = "as by each of its methods"

    def facts(self) -> Composite:
        return _table(METHODS[0]).facts()

    def refuse(self, network: Network) -> None:
        """Raises ReflError for a net whose weights alone are too large for a page."""
        if network.compares:
            raise ReflError(
                "a walk is through a text or a picture, and this model compares both: take refl "
                "trace, which prints the sweep of any"
            )
        shapes = network.net.shapes(network.config)
        count = sum(math.prod(shape) for _, shape, _ in shapes)
        if count * 4 * 4 / 3 > LIMIT:
            raise ReflError(
                f"a page of at most {LIMIT / 1e6:.0f} MB has no room for the {count:,} weights of "
                f"{network.name or 'this model'}: take a model of at most "
                f"{int(LIMIT * 3 / 16):,}, or refl trace, which prints the sweep of any"
            )

    def explain(
        self,
        question: Question,
        readings: Sequence[Reading],
        targets: Sequence[Target],
        keep: Any = None,
        audit: bool = False,
    ) -> list[Any]:
        if len(readings) != 1:
            raise ReflError(f"a walk is through one input, got {len(readings)}: one by one")
        if keep is not None:
            raise ReflError(f"a walk keeps every site: leave {argument('keep')} out")
        if question.recompute:
            raise ReflError(f"a walk needs every activation: leave {argument('recompute')} out")
        self.refuse(question.network)
        question.refuse([targets])
        forward = question.forward([readings[0]], plain=True)
        _refuse_unknown(forward, question.network)
        _refuse_long(forward)
        return [_walked(question, forward, targets[0])]


def _walked(question: Question, forward: Forward, target: Target) -> Walk:
    """One run, and a sweep of it for each method."""
    explanations = []
    for number, name in enumerate(METHODS):
        explainer: Explainer = _table(name).explainer(question, "*", audit=True)
        explanations += explainer.of(forward, [target], release=False)
        question.tell("walk", number + 1, len(METHODS))
    packed = Packed()
    data = _data(Stops(forward, explanations, packed))
    return Walk(tuple(explanations), data, packed.text())


def _data(stops: Stops) -> dict[str, Any]:
    e = stops.explanations[0]
    found = stops.found()
    return {
        "format": 1,
        "refl": __version__,
        "model": e.about.get("model", ""),
        "architecture": e.about.get("architecture", ""),
        "dtype": e.about.get("dtype", ""),
        "what": e.what,
        "explained": e.explained,
        "target": e.target,
        "against": e.against,
        "position": e.position,
        "tokens": list(e.tokens),
        "decoder_tokens": e.decoder_tokens,
        "picture": picture(e),
        "causes": CAUSES,
        "methods": [
            method_facts(e) | _relevance_of_input(e, stops.packed) for e in stops.explanations
        ],
        "blocks": stops.blocks,
        "values": stops.values,
        "weights": stops.weights,
        "sources": stops.sources,
        "equations": stops.equations,
        "stops": found,
        "arrays": stops.packed.arrays,
    }


def _relevance_of_input(e: Explanation, packed: Packed) -> dict[str, Any]:
    """The relevance of every token, or of every pixel."""
    if e.picture is not None:
        return {"relevance": packed.relevance(e.relevance)}
    decoder = e.decoder_relevance
    return {
        "relevance": [float(r) for r in e.relevance],
        "decoder_relevance": None if decoder is None else [float(r) for r in decoder],
    }


def _table(name: str) -> Table:
    method = chosen(name)
    assert isinstance(method, Table)
    return method


def _refuse_unknown(forward: Forward, network: Network) -> None:
    """Raises ReflError for an operation that the page has no equation of, and cannot work out."""
    known = {name.partition(".")[0] for name in equations()}
    strange = next((r for r in forward.trace.records if r.operation not in known), None)
    if strange is not None:
        raise ReflError(
            f"a walk has no equation for the operation {strange.operation} of "
            f"{network.name or 'this model'} ({strange.output.site}): take refl trace, which "
            "prints the sweep of any model"
        )


def _refuse_long(forward: Forward) -> None:
    """Raises ReflError where the arrays alone would be too large however well they deflate."""
    count = sum(math.prod(record.output.array.shape) for record in forward.trace.records)
    least = count * (1 + len(METHODS)) * _BYTES / 4
    if least > LIMIT:
        raise ReflError(
            f"the page would have more than {least / 1e6:.0f} MB, and has at most "
            f"{LIMIT / 1e6:.0f} MB: shorten the text"
        )


def _smaller(e: Explanation, size: int) -> str:
    if e.picture is not None:
        return "take a smaller model"
    room = int(len(e.tokens) * LIMIT / size)
    return f"of these {len(e.tokens)} tokens about {room} have room, so shorten the text"
