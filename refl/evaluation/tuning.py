"""Options that a paper tunes, tuned on a part of the data that is not judged.

    held_out, rest = split(items, count)
    found = tuned(model, held_out, "smoothgrad", {"s": [0.01, 0.05, 0.25]}, "flip")
    found.refuse_overlap(rest)

The part is drawn by a hash of each input, so it does not depend on the order of the data, and equal
inputs are all in it or all outside. Of equal means the first in the grid wins.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refl import arguments
from refl.arguments import received
from refl.arrays import asnumpy
from refl.errors import ReflError
from refl.evaluation.judging import judged, metric
from refl.evaluation.statistics import Summary, summary
from refl.evaluation.subject import Item, Metric
from refl.methods import Method, chosen
from refl.model import Model


@dataclass(frozen=True)
class Tuned:
    """The method with the options that were found, and how.

    options    the best of the grid
    tried      every choice of the grid, and its mean over the held-out items
    items      names of the held-out items
    """

    method: Method
    options: dict[str, Any]
    metric: str
    number: str
    tried: tuple[tuple[dict[str, Any], Summary], ...]
    items: tuple[str, ...]
    inputs: frozenset[str]
    """Hashes of their inputs."""

    def refuse_overlap(self, items: Sequence[Item]) -> None:
        """Raises ReflError where an input that is judged was tuned on."""
        for item in items:
            if fingerprint(item) in self.inputs:
                raise ReflError(
                    f"item {item.name} was used to tune {self.method.name}: judge other inputs"
                )

    def as_dict(self) -> dict[str, Any]:
        """For a report."""
        return {
            "method": self.method.name,
            "options": self.options,
            "metric": self.metric,
            "number": self.number,
            "tried": [{"options": options, **vars(s)} for options, s in self.tried],
            "items": list(self.items),
        }


def tuned(
    model: Model,
    items: Sequence[Item],
    method: str | Method,
    grid: Mapping[str, Sequence[Any]],
    by: str | Metric = "flip",
    number: str | None = None,
    kind: str = "logit",
    **how: Any,
) -> Tuned:
    """The choice of options whose mean over these items is best.

    grid      option -> the values to try; several options are tried in every combination
    by        the metric, and of its numbers the one that counts (by default its first)
    kind, how    as `judged` has them

    Raises ReflError for an empty grid or no items, and where no choice has a number.
    """
    choices = _choices(grid)
    if not items:
        raise ReflError("no held-out items to tune on: expected at least one")
    asked = metric(by)
    counted, larger = _number(asked, number)
    methods = {str(n): chosen(method, options=choice) for n, choice in enumerate(choices)}
    found: dict[str, list[float]] = {label: [] for label in methods}
    for item in items:  # one at a time: the choices share the copies of an item
        for row in judged(model, item, methods, [asked], kind, **how):
            found[row.method].append(row.numbers[counted])
    summaries = [summary(found[label]) for label in methods]
    best = _best([s.mean for s in summaries], larger)
    return Tuned(
        method=methods[str(best)],
        options=choices[best],
        metric=asked.name,
        number=counted,
        tried=tuple(zip(choices, summaries, strict=True)),
        items=tuple(item.name for item in items),
        inputs=frozenset(map(fingerprint, items)),
    )


def _choices(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    columns = [arguments.members(values) or [] for values in grid.values()]
    if not columns or not all(columns):
        raise ReflError(
            f"the grid {received(dict(grid))} has no choice: expected each option with a list of "
            "values"
        )
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*columns)]


def _number(by: Metric, name: str | None) -> tuple[str, bool]:
    """The number that counts, and whether larger is better. Raises ReflError where neither is."""
    known = by.larger_is_better
    name = next(iter(known)) if name is None else name
    if known.get(name) is None:
        good = ", ".join(n for n, larger in known.items() if larger is not None)
        raise ReflError(
            f"metric {by.name} cannot be tuned by {received(name)}: expected one of "
            f"{good or 'none'}"
        )
    return name, bool(known[name])


def _best(means: Sequence[float], larger: bool) -> int:
    known = [n for n, mean in enumerate(means) if math.isfinite(mean)]
    if not known:
        raise ReflError("no choice of the grid has a number on the held-out items")
    return (max if larger else min)(known, key=means.__getitem__)


# -- which items -----------------------------------------------------------------------------------


def split(items: Sequence[Item], count: int, draw: int = 0) -> tuple[list[Item], list[Item]]:
    """About `count` items to tune on, and the others: at least that many, more where inputs are
    equal. `draw`: another number holds other items out. Raises ReflError where nothing is left to
    be judged.
    """
    count = arguments.positive("count", count)
    prints = [fingerprint(item) for item in items]
    order = sorted(set(prints), key=lambda p: hashlib.sha256(f"{draw} {p}".encode()).digest())
    held: set[str] = set()
    for one in order:
        if sum(p in held for p in prints) >= count:
            break
        held.add(one)
    rest = [item for item, p in zip(items, prints, strict=True) if p not in held]
    if not rest:
        raise ReflError(
            f"of {len(items)} items {count} are to be held out: expected some left to be judged"
        )
    return [item for item, p in zip(items, prints, strict=True) if p in held], rest


def fingerprint(item: Item) -> str:
    """Of the input alone: whatever is asked of it, it is the same input."""
    parts = [item.input, item.decoder, item.pair]
    if isinstance(item.input, (str, list, tuple)) or arguments.members(item.input) is None:
        said = json.dumps(list(map(_plain, parts)))
    else:
        array = np.ascontiguousarray(asnumpy(item.input))
        said = f"{array.shape} {array.dtype} {hashlib.sha256(array.tobytes()).hexdigest()}"
    return hashlib.sha256(said.encode()).hexdigest()


def _plain(part: Any) -> Any:
    members = arguments.members(part)
    return part if isinstance(part, str) or part is None else members or repr(part)
