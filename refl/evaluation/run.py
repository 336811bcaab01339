"""Methods judged on every input of a file, in shards: interrupted work goes on where it was, and
the numbers have the same bits whoever computes them (refl.evaluation.corpus).

    found = evaluate(model, "data.jsonl", "folder", ["attnlrp", "cp-lrp"], ["flip", "evidence"])

A row of a shard is what one metric says of one method's scores of one input. Random scores stand
beside every method: a metric that prefers nothing to them has found nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refl import arguments
from refl.batching import TOKENS
from refl.errors import ReflError, argument
from refl.evaluation.corpus import Job, Opened
from refl.evaluation.data import Line, items, parsed
from refl.evaluation.judging import Row, by_label, judged, metric
from refl.evaluation.results import Results
from refl.evaluation.shards import Folder
from refl.evaluation.subject import Item, Subject
from refl.evaluation.workers import Pool
from refl.methods.random import Random
from refl.model import Model
from refl.question import Progress

SHARD = 16
"""Inputs of a shard: each is run hundreds of times."""


@dataclass(frozen=True)
class Judging:
    """What is asked of every input."""

    methods: Mapping[str, Any]
    metrics: tuple[str, ...]
    kind: str = "logit"
    contrast: bool = True
    batch_tokens: int = TOKENS

    def as_dict(self) -> dict[str, Any]:
        """By name, for a folder to tell it from another."""
        return {
            "methods": {label: _facts(one) for label, one in self.methods.items()},
            "metrics": list(self.metrics),
            "seed": self.kind,
            "contrast": self.contrast,
            "batch_tokens": self.batch_tokens,
        }


def _facts(method: Any) -> dict[str, Any]:
    found: dict[str, Any] = method.facts().as_dict()
    return found


def evaluate(
    model: Model,
    file: str | Path,
    folder: str | Path,
    methods: Mapping[str, Any] | Sequence[Any],
    metrics: Sequence[str],
    *,
    kind: str = "logit",
    contrast: bool = True,
    shard: int = SHARD,
    limit: int | None = None,
    batch_tokens: int = TOKENS,
    pool: Pool | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Results:
    """Judges methods on every line of a file (refl.evaluation.data).

    methods     names, methods of refl.methods, scores from elsewhere; a mapping names them anew.
                Random scores are judged beside them
    metrics     names, with options after colons (refl.evaluation.judging)
    kind        what is explained: logit, log-probability or probability
    contrast    False: of a contrast explain the target alone
    notes       what else the results say of the run: on what methods were tuned, say

    The others, and what is raised, as in `explain_corpus`.
    """
    if pool is not None and workers is not None:
        raise ReflError(f"give {argument('pool')} or {argument('workers')}, not both")
    asked = tuple(metric(one).name for one in metrics)
    if not asked or len(set(asked)) < len(asked):
        raise arguments.expected("metrics", "at least one, and none twice", list(asked))
    how = Judging(with_random(by_label(methods)), asked, kind, contrast, batch_tokens)
    _refuse_undefined(model, arguments.path("file", file), how)
    job = Job(
        model=model,
        file=Path(file),
        folder=Folder(arguments.path("folder", folder)),
        function=judged_lines,
        further=how,
        said=how.as_dict() | {"notes": dict(notes or {})},
        shard=arguments.positive("shard", shard),
        limit=None if limit is None else arguments.positive("limit", limit),
        phase="judging",
    )
    job.run(pool, workers, progress)
    return Results.read(job.folder)


def with_random(methods: dict[str, Any]) -> dict[str, Any]:
    """Random scores come first, where they are not among the methods already."""
    if any(isinstance(one, Random) for one in methods.values()):
        return methods
    if Random.name in methods:
        raise ReflError(f"{Random.name!r} is the name of random scores: name the others apart")
    return {Random.name: Random(), **methods}


def _refuse_undefined(model: Model, file: Path, how: Judging) -> None:
    """What the net or the first input shows already to be no use."""
    for method in how.methods.values():
        refuse = getattr(method, "refuse", None)
        if refuse is not None:
            refuse(model)
    for first in items(file, model, limit=1):
        subject = Subject.read(model, _asked(first, how), how.kind)
        for name in how.metrics:
            metric(name).refuse(subject)


def _asked(item: Item, how: Judging) -> Item:
    """The item, its contrast left out where the target alone is to be explained."""
    if how.contrast or item.contrast is None:
        return item
    return Item(**(vars(item) | {"target": item.contrast[0], "contrast": None}))


# -- a shard ---------------------------------------------------------------------------------------


def judged_lines(opened: Opened, how: Judging, part: list[Line]) -> bytes:
    """The bytes of a shard."""
    model = opened.model()
    found = [_asked(parsed(line).settled(model), how) for line in part]
    try:
        rows = _judged(model, found, how)
    except ReflError:
        for line, item in zip(part, found, strict=True):  # which of them it is
            with parsed(line).named():
                _judged(model, [item], how)
        raise
    each = len(rows) // len(part)
    said = (_row(part[n // each], row) for n, row in enumerate(rows))
    return b"".join(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in said)


def _judged(model: Model, found: list[Item], how: Judging) -> list[Row]:
    return judged(model, found, how.methods, how.metrics, how.kind, batch_tokens=how.batch_tokens)


def _row(line: Line, row: Row) -> dict[str, Any]:
    return {
        "name": row.item,
        "line": line.number,
        "method": row.method,
        "metric": row.metric,
        "numbers": {name: _or_null(v) for name, v in row.numbers.items()},
        "curves": {name: [_or_null(y) for y in curve] for name, curve in row.curves.items()},
    }


def _or_null(value: Any) -> float | None:
    """JSON has no nan."""
    with suppress(TypeError, ValueError):
        number = float(value)
        return number if math.isfinite(number) else None
    return None
