"""Options of methods, chosen on a part of a file that is then not judged: which part, and by what,
refl.evaluation.tuning says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refl import arguments
from refl.errors import ReflError
from refl.evaluation.data import Line, lines, parsed
from refl.evaluation.subject import Item, Subject, asked
from refl.evaluation.tuning import Tuned, split, tuned
from refl.model import Model
from refl.question import Progress

Grids = Mapping[str, tuple[str, Mapping[str, Sequence[Any]]]]
"""Label -> the name of a method, and the values to try of its options."""


@dataclass(frozen=True)
class Chosen:
    """methods    by their labels, with the options that were found
    skip       numbers of the lines that were tuned on
    notes      by label, how its options were found
    """

    methods: dict[str, Any] = field(default_factory=dict)
    skip: frozenset[int] = frozenset()
    notes: dict[str, str] = field(default_factory=dict)


def tune(
    model: Model,
    file: str | Path,
    grids: Grids,
    count: int,
    by: str,
    *,
    kind: str = "logit",
    contrast: bool = True,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Chosen:
    """Holds about `count` of the inputs out and chooses on them, by the first number of a metric.
    Raises ReflError for a line that cannot be used, and where no input is left to be judged.
    """
    if limit is not None:
        arguments.positive("limit", limit)
    every = [(line, asked(parsed(line).settled(model), contrast)) for line in lines(file, limit)]
    held, _ = split([item for _, item in every], count)
    found = Chosen(skip=_numbers(every, held))
    for n, (label, (name, grid)) in enumerate(grids.items()):
        if progress is not None:
            progress(f"tuning {name}", n, len(grids))
        try:
            best = tuned(model, held, name, grid, by, kind=kind)
        except ReflError:
            _refuse_unreadable(model, every, held, kind)
            raise
        found.methods[label], found.notes[label] = best.method, _note(best)
    return found


Lines = Sequence[tuple[Line, Item]]


def _of(every: Lines, held: Sequence[Item]) -> Lines:
    chosen = set(map(id, held))
    return [(line, item) for line, item in every if id(item) in chosen]


def _numbers(every: Lines, held: Sequence[Item]) -> frozenset[int]:
    return frozenset(line.number for line, _ in _of(every, held))


def _refuse_unreadable(model: Model, every: Lines, held: Sequence[Item], kind: str) -> None:
    """The line of an input that the model cannot read."""
    for line, item in _of(every, held):
        with parsed(line).named():
            Subject.read(model, item, kind)


def _note(best: Tuned) -> str:
    options = ", ".join(f"{name}={value}" for name, value in best.options.items())
    return (
        f"{options}, chosen among {len(best.tried)} by {best.number} of {best.metric} on "
        f"{len(best.items)} inputs that are not judged"
    )
