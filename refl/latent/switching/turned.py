"""What neurons are for the other answer: in the counterpart of an input, or in the mean over the
inputs whose answer is its foil (refl.latent.switching).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refl.errors import ReflError, argument, shown
from refl.latent.switching.inputs import COUNTERPART, Asked
from refl.latent.switching.pool import Change, Pool
from refl.latent.switching.scores import activations, mlps
from refl.model import Model


@dataclass(frozen=True)
class Other:
    """How the neurons of each input are changed.

    changes    of each input; None where no input has its other answer
    tokens     of each input the positions of the change, and of its ranking; None for all
    said       what z' is, in words
    """

    changes: Sequence[Any]
    tokens: Sequence[Any]
    said: str = ""

    @property
    def missing(self) -> int:
        """Inputs without a change."""
        return sum(change is None for change in self.changes)

    def known(self, some: Sequence[Asked]) -> tuple[list[Asked], Other]:
        """The inputs that have a change, and theirs. Raises ReflError where none has."""
        use = [n for n, change in enumerate(self.changes) if change is not None]
        if not use:
            raise ReflError(
                "no input has the foil of another as its answer: expected inputs of both answers, "
                f"or a {COUNTERPART} for each"
            )
        changes, tokens = ([all_of[n] for n in use] for all_of in (self.changes, self.tokens))
        return [some[n] for n in use], Other(changes, tokens, self.said)


def switched_off(some: Sequence[Asked]) -> Other:
    """Every neuron, at every position."""
    return Other([Change()] * len(some), [None] * len(some))


def other(model: Model, some: Sequence[Asked], pool: Pool) -> Other:
    """By the counterparts where there are any, else by means. Raises ReflError where neither is
    defined.
    """
    if any(m.tokens for m in mlps(pool)):
        raise ReflError(
            "neurons of experts have rows for the tokens that choose them, so there is no value "
            f"for the other answer at a position: set {argument('to')} to off"
        )
    without = [one.subject.item.name for one in some if one.counterpart is None]
    if not without:
        return _of_counterparts(some, pool)
    if len(without) < len(some):
        raise ReflError(
            f"item {shown(without[0])} has no {COUNTERPART} and others have one: expected one for "
            "each input, or none"
        )
    if not model.takes_images and model.task not in ("next-token", "masked-token"):
        raise ReflError(
            f"{model.name or 'the model'} explains no position of its input (its task is "
            f"{model.task}), at which means could be formed: expected a {COUNTERPART} for each "
            f"input, or {argument('to')} off"
        )
    return _of_means(model, some, pool)


def _of_counterparts(some: Sequence[Asked], pool: Pool) -> Other:
    changes = [
        Change(0.0, activations(one, one.counterpart, pool)) for one in some if one.counterpart
    ]
    said = "the value in the counterpart of the input, position by position"
    return Other(changes, [None] * len(some), said)


def _of_means(model: Model, some: Sequence[Asked], pool: Pool) -> Other:
    """Over the inputs whose target is an input's foil."""
    tokens = [_explained(model, one) for one in some]
    by_answer: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for one, where in zip(some, tokens, strict=True):
        found = activations(one, one.subject.reading, pool)
        place = slice(None) if where is None else where
        by_answer[one.subject.seed.target].append({site: z[place] for site, z in found.items()})
    means = {answer: _means(every) for answer, every in by_answer.items()}
    changes = [
        None if (mean := means.get(_foil(one))) is None else Change(0.0, mean, where)
        for one, where in zip(some, tokens, strict=True)
    ]
    what = "at the same position" if model.takes_images else "at the explained position alone"
    return Other(changes, tokens, f"the mean over the inputs whose answer is the foil, {what}")


def _means(every: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {site: np.mean([z[site] for z in every], axis=0) for site in every[0]}


def _foil(one: Asked) -> int:
    assert one.subject.seed.against is not None
    return one.subject.seed.against


def _explained(model: Model, one: Asked) -> Any:
    """Its position, int (1,); None for pictures, all of which have the same positions."""
    if model.takes_images:
        return None
    return np.array([one.subject.question.position_of(one.subject.reading)])
