"""One checkpoint's part of the report: its methods, tuned where a paper tunes them, judged on its
inputs. Everything that the page says of it is in the result, as JSON.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import refl
from refl.errors import ReflError
from refl.evaluation.judging import cases, judge_all, metric
from refl.evaluation.statistics import summary
from refl.evaluation.subject import Item, Subject
from refl.evaluation.tuning import split, tuned
from refl.methods import METHODS, Method, chosen
from refl.model import Model
from refl.verification.quality.faithfulness.inputs import INPUTS, SHARED

GRIDS: dict[str, dict[str, list[Any]]] = {
    "smoothgrad": {"noise": [0.01, 0.05, 0.1, 0.25]},
    "atman": {"p": [0.1, 0.5, 0.9, 1.0]},
    "attention-rollout": {"discard": [0.0, 0.5, 0.9]},
}
"""What the papers tune."""

IG = "integrated-gradients"
LOOSE = {"tolerance": 0.01}
FROM_MASKS = {"nodes": "gauss-legendre", "steps": 64, "baseline": "mask"}
"""Of integrated gradients, neither the defaults nor tuned: a hundredth of the path's logits may be
missed, for a third of the gradients; and for a model of masked tokens the smooth path from masks.
"""

HELD_OUT = 30
"""Inputs that options are tuned on, and nothing else."""

LEFT_OUT = {
    "metagame": "its sums over pairs are the scores of the method inside",
    "lxt-explicit": "attnlrp with another stabilizer",
    "lrp-0": "attnlrp without one",
    "attnlrp-gradient": "attnlrp in another form, the same scores but for the stabilizer",
    "decompx": "the same scores as cp-lrp",
}
"""Methods that are not judged, and why."""

PIECE = 20
"""Inputs that are judged at once."""


@dataclass(frozen=True)
class Part:
    """What is judged on a checkpoint: metrics by the names that the page has for them."""

    metrics: Mapping[str, str]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {IG: LOOSE})
    """Of methods, neither defaults nor tuned."""


TEXT = {"dA, zero": "flip", "dA, deletion": "flip:baseline=delete"}
LONG = {"dA, zero": "flip:steps=12", "dA, deletion": "flip:baseline=delete:steps=12"}
PICTURE = {"dA, zero": "flip", "dA, mean": "flip:baseline=mean"}
AGREES = {"leave-one-out": "leave-one-out"}

PARTS: dict[str, Part] = {
    "shipped": Part(
        TEXT | AGREES | {"evidence": "evidence"},
        {IG: LOOSE, "atman": {"score": "explained"}},  # a contrast has no cross-entropy
    ),
    "stories260K": Part(LONG | AGREES),
    "babyllama105": Part(LONG | AGREES),
    "capp_gpt2": Part(TEXT | AGREES),
    "rxnmapper_albert": Part(
        {"dA, zero": "flip:steps=8", "dA, mask": "flip:baseline=mask:steps=8"} | AGREES,
        {IG: FROM_MASKS},
    ),
    "vit_mnist_012_hf": Part(PICTURE | AGREES),
    "vit_455_hf": Part(PICTURE | AGREES),
}


def opened(name: str) -> Model:
    return refl.load(None if name == "shipped" else SHARED / "checkpoints" / name)


def results(name: str, count: int) -> Iterator[dict[str, Any]]:
    """After every PIECE of inputs what is known of those so far; at last of `count`, those held out
    not counted.
    """
    model, part = opened(name), PARTS[name]
    items = INPUTS[name](model, count + HELD_OUT)
    held_out, rest = split(items, HELD_OUT)
    methods, refused = defined(model, rest[0], part)
    options = {label: dict(how) for label, how in part.options.items() if label in methods}
    for label, found in tuned_methods(model, methods, held_out, part):
        options[label] = options.get(label, {}) | found
    methods |= {label: chosen(label, options=how) for label, how in options.items()}
    facts = {
        "checkpoint": name,
        "tokens": [len(model.read(i.input)) for i in rest] if not model.takes_images else [],
        "tuned": options,
        "refused": refused,
    }
    for done, seconds, numbers in judged(model, methods, rest, part):
        yield facts | {"inputs": done, "seconds": seconds, "numbers": numbers}


METHODS_BY = {name: name for name in METHODS if name not in LEFT_OUT}


def defined(model: Model, item: Item, part: Part) -> tuple[dict[str, Method], dict[str, str]]:
    """The methods that the model has, and what the others say."""
    found, refused = {}, {}
    for name in METHODS_BY:
        if name.endswith(("-vit", "-vit-box")) and not model.takes_images:
            continue
        try:
            method = chosen(name, options=part.options.get(name))
            cases(method, [Subject.read(model, item)])
            found[name] = method
        except ReflError as reason:
            refused[name] = str(reason)
    return found, refused


def tuned_methods(
    model: Model, methods: Mapping[str, Method], held_out: Sequence[Item], part: Part
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of each method that has a grid the options that are best on the first metric."""
    by = next(iter(part.metrics.values()))
    for name, grid in GRIDS.items():
        if name in methods:
            yield name, tuned(model, held_out, methods[name], grid, by).options


def judged(
    model: Model, methods: Mapping[str, Method], items: Sequence[Item], part: Part
) -> Iterator[tuple[int, dict[str, float], dict[str, dict[str, list[float]]]]]:
    """Inputs so far; seconds for one by method; and by number, by method, that of each input."""
    spent = dict.fromkeys(methods, 0.0)
    found: dict[str, dict[str, list[float]]] = {}
    for first in range(0, len(items), PIECE):
        subjects = [Subject.read(model, item) for item in items[first : first + PIECE]]
        scored = {}
        for name, method in methods.items():
            start = time.process_time()
            scored[name] = cases(method, subjects)
            spent[name] += time.process_time() - start
        for label, which in part.metrics.items():
            one = metric(which)
            every = [case for each in scored.values() for case in each]
            answers = iter(judge_all(one, every))
            for name in methods:
                for _ in subjects:
                    for number, value in next(answers).numbers.items():
                        column = found.setdefault(f"{label}: {number}", {})
                        column.setdefault(name, []).append(float(value))
        done = first + len(subjects)
        yield done, {name: seconds / done for name, seconds in spent.items()}, found


def ranking(columns: Mapping[str, Sequence[float]]) -> list[tuple[str, float, float]]:
    """Method, mean and standard error, the best first."""
    means = {name: summary(np.asarray(values)) for name, values in columns.items()}
    best = sorted(means, key=lambda name: -means[name].mean)
    return [(name, means[name].mean, means[name].standard_error) for name in best]
