"""What is judged, and what judges: an item of data, the same as a model reads it, and a metric.

Item        one line of the data
Subject     the item read by a model, its target settled: what perturbed copies are asked, too
Metric      numbers (and curves) for the scores of one subject, whoever made them
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from refl.errors import ReflError
from refl.model import Model
from refl.network import Reading
from refl.question import Question
from refl.seeds import Seed
from refl.targets import Special


@dataclass(frozen=True)
class Item:
    """One input and what is known about it.

    name          its name in the data, by default its number there
    input         a text, token ids, or a picture
    target        what is explained; None for the likeliest output
    contrast      (a, b) in place of it
    evidence      numbers of the tokens (or patches) that are known to decide; None where nobody
                  knows
    """

    name: str
    input: Any
    target: str | int | Special | None = None
    contrast: tuple[str | int, str | int] | None = None
    decoder: Any = None
    pair: str | None = None
    types: tuple[int, ...] | None = None
    position: int | None = None
    evidence: tuple[int, ...] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else the data says of it."""


def asked(item: Item, contrast: bool) -> Item:
    """The item; its target alone where a contrast is not wanted."""
    if contrast or item.contrast is None:
        return item
    return replace(item, target=item.contrast[0], contrast=None)


@dataclass(frozen=True)
class Subject:
    """An item as a model reads it."""

    item: Item
    question: Question
    reading: Reading
    seed: Seed
    """What is explained: the target settled, the likeliest included."""
    value: float
    """Of the unchanged input."""
    known: dict[Any, float] = field(default_factory=dict, compare=False, repr=False)
    """What copies of it gave, some of whose units were replaced, so that no copy is run twice."""

    @property
    def target(self) -> tuple[int, int | None]:
        return self.seed.asked

    @classmethod
    def read(cls, model: Model, item: Item, kind: str = "logit", **how: Any) -> Subject:
        """By one forward pass. `how`: batch_tokens and progress of the Question. Raises ReflError
        for what the model cannot read.
        """
        question = Question(model, kind, position=item.position, **how)
        types = None if item.types is None else [list(item.types)]
        pair = None if item.pair is None else [item.pair]
        (reading,) = model.readings([item.input], item.decoder, types, pair)
        ((what, against),) = model.targets(1, item.target, item.contrast)
        if isinstance(what, Special) or model.task == "answer-span":
            raise _special(model)
        question.refuse([[(what, against)]])
        rows = question.rows([reading])
        z = rows[0]
        seed = Seed(kind, int(z.argmax()) if what is None else what, against)
        return cls(item, question, reading, seed, seed.value(z))


def _special(model: Model) -> ReflError:
    """For outputs that are not judged."""
    what = "answers" if model.task == "answer-span" else "features"
    return ReflError(
        f"{model.name or 'the model'} gives {what} (its task is {model.task}), and what is judged "
        "here are tokens and classes: explain it, or take another model"
    )


@dataclass(frozen=True)
class Case:
    """Scores of one subject, whoever made them: (T,) of tokens, (H, W) of pixels or (rows, columns)
    of patches; `decoder_scores` (U,) of what a decoder has written.
    """

    subject: Subject
    scores: Any
    decoder_scores: Any = None


@dataclass(frozen=True)
class Judged:
    """What a metric says of one subject."""

    numbers: dict[str, float]
    """By name; nan where nothing can be said (no evidence in this input, say)."""
    curves: dict[str, Any] = field(default_factory=dict)
    """Name -> values, state by state, NumPy."""


class Metric(Protocol):
    """A way to judge scores."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def source(self) -> str: ...

    @property
    def larger_is_better(self) -> Mapping[str, bool | None]:
        """Of each number it gives; None where neither is."""

    def refuse(self, subject: Subject) -> None:
        """Raises ReflError for a subject that it is not defined for."""

    def judge(self, subject: Subject, scores: Any, decoder_scores: Any = None) -> Judged:
        """`scores` (T,) of tokens, (H, W) of pixels or (rows, columns) of patches;
        `decoder_scores` (U,) of what a decoder has written.
        """
