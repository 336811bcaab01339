"""The inputs that neurons are switched in: an answer, and the one that it is held against.

    *.jsonl, *.json    a line each, as `refl evaluate` reads it: text (or prefix, ids, image),
                       target and foil; and `counterpart`, the input whose answer the foil is, of as
                       many tokens, where there is one. Of a classifier the foil may be left out: it
                       is then the class that comes next
                       or clean_prefix, patch_prefix, clean_answer, patch_answer (Marks et al.
                       2024): the patched prefix is the counterpart
                       or BLiMP's own lines (refl.evaluation.datasets)
    *.csv, *.tsv[.gz]  minimal pairs (refl.evaluation.datasets)

Of pairs the lines that the model cannot read (answers of several tokens, prefixes of two lengths,
words it does not know) are left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from refl import arguments
from refl.errors import ReflError, shown
from refl.evaluation import data, datasets, patching
from refl.evaluation.subject import Item, Subject
from refl.model import Model
from refl.network import CLASSIFIES, Reading

COUNTERPART = "counterpart"
"""Name of the fact of an item."""

TABLES = (".csv", ".tsv", ".tsv.gz")


def shipped(limit: int | None = None) -> list[Item]:
    """The shipped model's held-out sentences of agreement."""
    found = datasets.shipped(10**6)["agreement"]
    return found if limit is None else found[: arguments.positive("limit", limit)]


def items(model: Model, path: str | Path, limit: int | None = None) -> list[Item]:
    """The first `limit` of a file. Raises ReflError for a file, or a line, that is none."""
    path = arguments.path("the file of inputs", path)
    if limit is not None:
        arguments.positive("limit", limit)
    if path.name.endswith(TABLES):
        return datasets.items(model, path, limit)
    keys = _keys(path)
    if "clean_prefix" in keys:
        found = _pairs(model, path, limit)
    elif "one_prefix_prefix" in keys:
        found = datasets.items(model, path, limit)
    else:
        found = list(data.items(path, model, limit))
    if not found:
        raise ReflError(f"{shown(path)} has no input that the model can read")
    return found


def _keys(path: Path) -> set[str]:
    """Of the first line."""
    first = next(data.lines(path, 1), None)
    try:
        said = json.loads(first.content) if first else {}
    except (ValueError, RecursionError):  # whoever reads all lines says what is wrong
        return set()
    return set(said) if isinstance(said, dict) else set()


def _pairs(model: Model, path: Path, limit: int | None) -> list[Item]:
    """Of clean and patched prefixes, as token ids."""
    found = islice(patching.pairs(model, [_said(line) for line in data.lines(path)]), limit)
    return [
        Item(
            name=str(n),
            input=pair.clean.input,
            contrast=(pair.answer, pair.against),
            facts={COUNTERPART: pair.corrupted.input},
        )
        for n, pair in enumerate(found)
    ]


def _said(line: data.Line) -> Any:
    try:
        return json.loads(line.content)
    except (ValueError, RecursionError) as error:
        raise line.refused(f"it is no JSON: {shown(error)}") from None


# -- asked of a model ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """An item as a model reads it.

    counterpart    the input whose answer is the foil, of as many tokens; None where there is none
    """

    subject: Subject
    counterpart: Reading | None
    classifies: bool

    def is_answer(self, z: Any) -> bool:  # (V,)
        """Whether the answer is: the target above the foil; of a classifier above every class."""
        if self.classifies:
            return int(np.argmax(z)) == self.subject.seed.target
        return self.subject.seed.value(z) > 0

    def flips_and_change(self, z: Any) -> tuple[float, float]:  # (V,)
        """1 where the answer is it no more, else 0; and what f is more than at first."""
        return float(not self.is_answer(z)), self.subject.seed.value(z) - self.subject.value

    @property
    def correct(self) -> bool:
        """Whether the answer is, before anything is switched."""
        if not self.classifies:
            return self.subject.value > 0
        return self.is_answer(self.subject.question.rows([self.subject.reading])[0])


def asked(model: Model, item: Item) -> Asked:
    """Raises ReflError for an item without a foil, and for a counterpart of another length."""
    subject = Subject.read(model, _settled(model, item))
    counterpart = item.facts.get(COUNTERPART)
    reading = None if counterpart is None else _counterpart(model, subject, counterpart)
    return Asked(subject, reading, model.task in CLASSIFIES)


def _settled(model: Model, item: Item) -> Item:
    """With target and foil: of a classifier the foil is the likeliest of the other classes."""
    if item.contrast is not None:
        return item
    if model.task not in CLASSIFIES:
        raise ReflError(
            f"item {shown(item.name)} has no foil: expected the answer as target, and as foil the "
            "one that it is held against"
        )
    subject = Subject.read(model, item)
    z = subject.question.rows([subject.reading])[0].astype(np.float64)
    if len(z) < 2:
        raise ReflError("the model has one output: expected two classes or more, to tell apart")
    z[subject.seed.target] = -np.inf
    return replace(item, target=None, contrast=(subject.seed.target, int(np.argmax(z))))


def _counterpart(model: Model, subject: Subject, said: Any) -> Reading:
    item, own = subject.item, subject.reading
    (reading,) = model.readings([said], item.decoder, None if own.types is None else [own.types])
    if model.lengths(reading) != model.lengths(own):
        raise ReflError(
            f"item {shown(item.name)} has {model.lengths(own)[0]} tokens and its counterpart "
            f"{model.lengths(reading)[0]}: expected as many, for neurons are turned to their "
            "values at the same position"
        )
    return reading


def correct(some: Sequence[Asked]) -> list[Asked]:
    """Those whose answer is the target. Raises ReflError where none is."""
    found = [one for one in some if one.correct]
    if not found:
        raise ReflError(
            f"the model answers none of the {len(some)} inputs as their targets say: nothing can "
            "flip"
        )
    return found
