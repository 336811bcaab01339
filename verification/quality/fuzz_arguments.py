"""Odd values for every parameter of the public Python API, by their signatures.

    python -m refl.verification.quality.fuzz_arguments --tries 100000

Each try calls one function: a method of a model (of a text, a class, a picture, an encoder with a
decoder), of an explanation, a batch, a ledger or a composite, `refl.load`, the names of methods,
the shipped model's evidence, the conformance cases. Its parameters are read from its signature;
each gets its default, a value that is right for its name, or an odd one. A ReflError of one
sentence is right, and so is an answer: an explanation is judged by its account, which has to
close.
"""

from __future__ import annotations

import inspect
import itertools
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import refl
from refl.edits import Edit
from refl.evaluation import known_evidence
from refl.explanation import Explanation
from refl.io import composites
from refl.latent.card import card
from refl.latent.effects import effect
from refl.latent.graph import graph
from refl.latent.projection import project
from refl.ledger import Ledger
from refl.methods import METHODS, method
from refl.methods import chosen as chosen_method
from refl.methods.random import Random as RandomScores
from refl.model import Model
from refl.rules.composites import Composite, Rule
from refl.verification import conformance
from refl.verification.quality.fuzzing import Draw, Try, fuzz
from refl.verification.random_models import BERT, LLAMA, T5, VIT, random_model

# -- odd values ------------------------------------------------------------------------------------


class Hostile:
    """Whatever is asked of it raises."""

    def _raise(self, *args: Any, **how: Any) -> Any:
        raise RuntimeError("a value that does not want to be looked at")

    __len__ = __iter__ = __getitem__ = __index__ = __int__ = __float__ = __repr__ = _raise
    __str__ = __call__ = __contains__ = __array__ = tolist = __fspath__ = _raise


class Word(str):
    """A text that says something else when it is printed."""

    def __str__(self) -> str:
        return "\n"


class Named(StrEnum):
    TARGET = "are"


def generator() -> Iterator[int]:
    yield 1


ODD: tuple[Callable[[], Any], ...] = tuple(
    (lambda value=value: value)
    for value in (
        None, True, False, 0, 1, 2, -1, 16, 17, 2**31, -(2**63), 10**30, 10**400, 10**5000, 0.0,
        1.0, 1.9, -1.5, 1e39, 1e-60, math.nan, math.inf, -math.inf, 2j, Decimal(3),
        Fraction(3, 1), "", "the", "keys", "the keys", "lm_head", "*", "*.mlp", "logit", "\0",
        "\n", "\udc80", "[", "[!", "x" * 5000, "are\x1b[31m", "attnlrp", "none.toml", "float64",
        b"", b"the", bytearray(b"ab"), memoryview(b"ab"), [], (), {}, set(), [[]], [()], [""],
        [None], [1], [1, 2], (1, 2), (1, 2, 3), [1.5], [True], ["the", 3], ["the", "keys"],
        ("are", "is"), ("are", "are"), [[1, 2], [3]], [[1, 2], 3], [[[1]]], [(1, 2), (3, 4)],
        {1: 2}, {"a": "b"}, {1, 2}, frozenset("a"), range(3), range(10**12), slice(2), Ellipsis,
        NotImplemented, object(), int, len, lambda: None, Hostile(), Word("keys"), Named.TARGET,
        Path("none"), Path("x.toml"), ("lm_head", (0, 1)), ("lm_head", ()),
        ("lm_head", (99, 99)), ("model.norm", [0, 0]), np.int64(3), np.uint8(3), np.bool_(True),
        np.float32(2), np.float64(1e-3), np.str_("the"), np.datetime64("2020-01-01"),
        np.asarray(3), np.asarray(3.0), np.asarray([1, 2]), np.asarray([1.0, 2.0]),
        np.asarray([True]), np.asarray(["the"]), np.asarray([None]), np.zeros((0,), int),
        np.zeros((2, 0), int), np.zeros((2, 2), int), np.zeros((1, 2, 3), int),
        np.zeros((3, 8, 12)), np.zeros((8, 12, 3), np.uint8), np.full((3, 8, 12), np.nan),
        np.zeros(3, [("a", int)]), np.ma.masked, np.asarray([2**63], np.uint64),
        {"lm_head": 0}, {"lm_head": Edit(0, index=(99,))}, {"lm_head": Edit(np.ones(7))},
        {"lm_head.edited": Edit()}, {"lm_head": Edit(), "lm_head.edited": Edit()}, Edit(0),
        {"none": Edit(0)}, {"lm_head": lambda z: None}, {"draw": -1}, {"eps": "a"}, RandomScores,
    )
) + (generator, lambda: iter([1, 2]), lambda: map(int, "12"))  # fmt: skip
"""Values that some parameter cannot have; those that can be read only once are made anew."""


# -- right values ----------------------------------------------------------------------------------

RIGHT: dict[str, tuple[Any, ...]] = {
    "item": ([3, 1, 4], [2]),
    "items": ([[3, 1, 4], [2]], [[1]]),
    "targets": ([1, 2], [3]),
    "target": (1, 2, [1], None),
    "contrast": (None, None, None, (1, 2), [(1, 2)]),
    "decoder": (None, None, [0], [0, 3]),
    "at": (None, None, None, None),
    "position": (None, None, None, 0, -1),
    "types": (None, None, None, [0, 0, 1]),
    "keep": (None, (), "*", ["*.mlp*"]),
    "method": ("attnlrp", "cp-lrp", METHODS["attnlrp-gradient"], "random", RandomScores(2)),
    "which": ("attnlrp", "random", RandomScores(2)),
    "edits": (
        None,
        {"lm_head": Edit(0.5, 0.1, (..., 3))},
        {"model.norm": Edit(2)},
        {"L0.N3": refl.off, "L0.H1": refl.scale(2)},
    ),
    "positions": (None, 0, [0, 1], slice(1, None)),
    "part": ("L0.N3", "L0.H1", "encoder.L0.N1", "decoder.L0.H1"),
    "parts": ("L0.N3", ["L0.N3", "L0.N4"], ["L0.H1"], ["decoder.L0.N1"]),
    "change": (refl.off, refl.value(0.5), refl.scale(2)),
    "k": (1, 3, 100),
    "over": ("positions", "each", 0, -1),
    "by": ("neuron", "head", "block"),
    "sign": ("both", "negative"),
    "fraction": (0.5, 1.0),
    "most": (1, 20),
    "kinds": (("neuron",), ("neuron", "head")),
    "draws": (1, 3),
    "conditions": (None, None, None, ["L0.N3"], {"L0.H1": ...}),
    "attention_mask": (None, None, None, [1, 0, 1], np.tril(np.ones((3, 3))), [True] * 3),
    "factor": (0, 0.5, np.ones(3)),
    "amount": (0, 0.5, np.ones(3)),
    "index": (..., 0, (..., 2), slice(1, 3), [0, 2]),
    "draw": (0, 3),
    "ids": ([1, 2], [0]),
    "token": (1, 2),
    "name": (1, "attnlrp", 0, "L0.N3", "L0.H1"),
    "site": ("lm_head", "model.norm"),
    "b": (0,),
    "tokens": (1,),
    "length": (3,),
    "batch_tokens": (1, 100),
    "progress": (None, lambda *p: None),
    "operation": ("linear", "add"),
    "rule": ("epsilon", "identity"),
    "names": (["x"],),
    "role": ("", "mlp.up"),
    "folder": (None,),
    "device": ("cpu",),
    "dtype": ("float32", "float64"),
    "count": (1,),
    "pattern": ("linear_epsilon", None, "*.mlp"),
    "options": ({"eps": 1e-3}, {"draw": 2}, {}),
}
"""Parameter -> values it can have; None four times is a value that is tried more often."""


def drawn(random: Random, parameter: inspect.Parameter) -> Any:
    """A value for a parameter; `inspect.Parameter.empty` for its default."""
    has_default = parameter.default is not inspect.Parameter.empty
    luck = random.random()
    if has_default and luck < 0.5:
        return inspect.Parameter.empty
    if luck < 0.75 and parameter.name in RIGHT:
        return random.choice(RIGHT[parameter.name])
    if has_default and luck < 0.6:
        return inspect.Parameter.empty
    return random.choice(ODD)()


def seldom_odd(random: Random, parameter: inspect.Parameter) -> Any:
    """A value for one of many parameters: were each as likely odd, no call would be answered."""
    if random.random() < 0.1:
        return random.choice(ODD)()
    required = parameter.default is inspect.Parameter.empty
    if (required or random.random() < 0.3) and parameter.name in RIGHT:
        return random.choice(RIGHT[parameter.name])
    return parameter.default if not required else random.choice(ODD)()


Drawing = Callable[[Random, inspect.Parameter], Any]

SKIPPED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def call_of(random: Random, name: str, function: Callable[..., Any], draw: Drawing = drawn) -> Try:
    """A function with values for its parameters, drawn."""
    given = {
        p.name: value
        for p in inspect.signature(function).parameters.values()
        if p.kind not in SKIPPED and (value := draw(random, p)) is not inspect.Parameter.empty
    }
    positional = [
        given.pop(p.name)
        for p in inspect.signature(function).parameters.values()
        if p.kind is inspect.Parameter.POSITIONAL_ONLY and p.name in given
    ]
    said = ", ".join(
        [*map(described, positional), *(f"{key}={described(v)}" for key, v in given.items())]
    )

    def run() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = function(*positional, **given)
            return list(itertools.islice(answer, 5)) if inspect.isgenerator(answer) else answer

    return Try(f"{name}({said})", run, wrong)


def described(value: Any) -> str:
    try:
        return " ".join(repr(value).split())[:80]
    except Exception:  # noqa: BLE001 - some have no repr
        return f"<{type(value).__name__}>"


def wrong(answer: Any) -> str:
    """What an explanation says that cannot be; nothing of other answers."""
    if isinstance(answer, list):
        return next(filter(None, map(wrong, answer)), "")
    if not isinstance(answer, Explanation):
        return ""
    if not np.isfinite(answer.relevance).all() or not math.isfinite(answer.explained):
        return "relevance that is not finite"
    if answer.recorded is None:
        return ""
    ledger = answer.recorded
    turnover = abs(ledger.explained) + sum(
        abs(a) for entry in ledger for a in (entry.received, *entry.absorbed.values())
    )
    error = abs(ledger.conservation_error)
    return "" if error <= 1e4 * ledger.roundoff * turnover else f"an account off by {error:.1e}"


# -- what is called --------------------------------------------------------------------------------


@cache
def models() -> dict[str, Model]:
    small = {"num_hidden_layers": 1}
    heads = {"architectures": ["BertForSequenceClassification"]}
    encoder = replace(random_model(BERT | small, 0), mask_id=16)
    return {
        "shipped": refl.load(),
        "llama": random_model(LLAMA | small, 0, "float32"),
        "encoder": encoder,
        "classifier": random_model(BERT | small | heads, 0),
        "t5": random_model(T5 | {"num_layers": 1, "num_decoder_layers": 1}, 0),
        "vit": random_model(VIT | small, 0),
    }


INSIDE = {
    *("forward", "batch", "readings", "batch_dependent", "lengths", "decoder_prefixes", "targets"),
    "answering",
    *("rule", "changed_from", "from_dict", "absorbing", "canonical"),
}
"""Methods that take what other parts of refl make: no face of it."""


def public(one: Any) -> dict[str, Callable[..., Any]]:
    """The methods of an object that its users call."""
    names = [n for n in dir(type(one)) if not n.startswith("_") or n in ("__getitem__",)]
    found = {n: getattr(one, n) for n in names if n not in INSIDE and not _is_property(one, n)}
    return {n: f for n, f in found.items() if callable(f) and n not in ("append", "sort")}


def _is_property(one: Any, name: str) -> bool:
    return isinstance(inspect.getattr_static(type(one), name), property)


def model_call(random: Random) -> Try:
    name = random.choice(list(models()))
    methods = public(models()[name])
    weighted = [*methods, *["explain", "explain_each", "encode", "trace"] * 3]
    chosen = random.choice(weighted)
    return call_of(random, f"{name}.{chosen}", methods[chosen])


@cache
def explanations() -> dict[str, Explanation]:
    llama, t5 = models()["llama"], models()["t5"]
    return {
        "kept": llama.explain([3, 1, 4], keep="*"),
        "lazy": llama.explain([3, 1, 4], "attnlrp-gradient"),
        "bare": llama.explain([3, 1, 4], contrast=(1, 2), keep=()),
        "t5": t5.explain([3, 1, 4]),
        "vit": models()["vit"].explain(np.zeros((3, 8, 12)) + 0.5),
        "random": llama.explain([3, 1, 4], "random"),
        "edited": llama.explain([3, 1, 4], edits={"model.norm": Edit(2)}, keep="*"),
    }


def explanation_call(random: Random) -> Try:
    name = random.choice(list(explanations()))
    e = explanations()[name]
    methods = public(e)
    chosen = random.choice(list(methods))
    if chosen in ("save", "load"):
        return file_call(random, f"{name}.{chosen}", methods[chosen])
    return call_of(random, f"{name}.{chosen}", methods[chosen])


def file_call(random: Random, name: str, function: Callable[..., Any]) -> Try:
    """In a folder of its own, which goes afterwards."""
    one = call_of(random, name, function)

    def run() -> Any:
        before = os.getcwd()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                return one.run()
            finally:
                os.chdir(before)

    return replace(one, run=run)


@cache
def ledgers() -> dict[str, Any]:
    e = explanations()["kept"]
    return {
        "ledger": e.ledger,
        "batch ledger": Ledger(np.asarray([1.0, 2.0]), 1e-16),
        "composite": METHODS["attnlrp"],
        "batch": models()["llama"].explain([[1, 2], [3]], keep=()),
        "sites": e.sites,
    }


BUILT_IN = {"copy", "count", "index", "insert", "pop", "remove", "extend", "clear", "reverse"}
"""Of list and dict: Python's own, which raises what it raises."""


def object_call(random: Random) -> Try:
    name = random.choice(list(ledgers()))
    methods = {n: f for n, f in public(ledgers()[name]).items() if n not in BUILT_IN}
    if name == "batch":
        methods = {n: f for n, f in methods.items() if n != "__getitem__"}
    if not methods:
        return Try(f"repr of {name}", lambda: repr(ledgers()[name]))
    chosen = random.choice(list(methods))
    return call_of(random, f"{name}.{chosen}", methods[chosen])


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "refl.load": refl.load,
    "methods.method": method,
    "methods.chosen": chosen_method,
    "Edit": Edit,
    "Random": RandomScores,
    "composites.chosen": composites.chosen,
    "composites.from_toml": composites.from_toml,
    "Explanation.load": Explanation.load,
    "Composite": Composite,
    "Rule": Rule,
    "known_evidence.sentences": known_evidence.sentences,
    "conformance.cases": conformance.cases,
}


def function_call(random: Random) -> Try:
    chosen = random.choice(list(FUNCTIONS))
    return file_call(random, chosen, FUNCTIONS[chosen])


INSIDE_THE_MODEL: dict[str, Callable[..., Any]] = {
    "project": project,
    "effect": effect,
    "graph": graph,
    "card": card,
}


def inside_call(random: Random) -> Try:
    """A function of refl.latent, its model one of ours."""
    name = random.choice(("llama", "llama", "encoder", "classifier", "t5", "vit"))
    chosen = random.choice(list(INSIDE_THE_MODEL))
    function = partial(INSIDE_THE_MODEL[chosen], models()[name])
    return call_of(random, f"{chosen} of {name}", function, seldom_odd)


KINDS: dict[str, Draw] = {
    "model": model_call,
    "inside": inside_call,
    "explanation": explanation_call,
    "object": object_call,
    "function": function_call,
}


if __name__ == "__main__":
    sys.exit(fuzz(__doc__, KINDS))
