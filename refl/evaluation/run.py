"""Methods judged on every input of a file, in shards: interrupted work goes on where it was, and
the numbers have the same bits whoever computes them (refl.evaluation.corpus).

    found = evaluate(model, "data.jsonl", "folder", ["attnlrp", "cp-lrp"], ["flip", "evidence"])

A row of a shard is what one metric says of one method's scores of one input. Random scores stand
beside every method: a metric that prefers nothing to them has found nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from refl import arguments
from refl.batching import TOKENS
from refl.errors import ReflError, shown
from refl.evaluation.corpus import Job, Opened
from refl.evaluation.data import Line, lines, parsed
from refl.evaluation.evidence import Evidence
from refl.evaluation.judging import METRICS, Row, by_label, by_method, judged, metric
from refl.evaluation.results import Results
from refl.evaluation.sanity import Sanity
from refl.evaluation.scores import Scores
from refl.evaluation.shards import Folder
from refl.evaluation.subject import Item, Metric, Subject, asked
from refl.evaluation.workers import Pool, not_both
from refl.methods.random import Random
from refl.model import Model
from refl.question import Progress

SHARD = 16
"""Inputs of a shard: each is run hundreds of times."""


@dataclass(frozen=True)
class Judging:
    """What is asked of every input."""

    methods: Mapping[str, Any]
    metrics: tuple[Metric, ...]
    kind: str = "logit"
    contrast: bool = True
    batch_tokens: int = TOKENS

    def as_dict(self) -> dict[str, Any]:
        """By name, for a folder to tell it from another."""
        return {
            "methods": {label: _facts(one) for label, one in self.methods.items()},
            "metrics": [one.name for one in self.metrics],
            **self._methods_asked(),
            "seed": self.kind,
            "contrast": self.contrast,
            "batch_tokens": self.batch_tokens,
        }

    def _methods_asked(self) -> dict[str, Any]:
        """Of metrics that ask a method of their own: a file may say another one tomorrow."""
        named = {one.name: one.settled for one in self.metrics if isinstance(one, Sanity)}
        found = {name: _facts(method) for name, method in named.items() if method is not None}
        return {"methods of metrics": found} if found else {}

    def narrowed(self, part: list[Line]) -> Judging:
        """With the scores from elsewhere of these lines alone."""
        names = {parsed(line).item.name for line in part}
        return replace(self, methods={n: _of(one, names) for n, one in self.methods.items()})


def _of(method: Any, names: set[str]) -> Any:
    if not isinstance(method, Scores):
        return method
    kept = {name: found for name, found in method.by_name.items() if name in names}
    return Scores(method.name, kept, place=method.place)


def _facts(method: Any) -> dict[str, Any]:
    if isinstance(method, Scores):
        return {"scores": method.place, "hash": _hash(method)}
    found: dict[str, Any] = method.facts().as_dict()
    return found


def _hash(scores: Scores) -> str:
    """Of every number."""
    digest = hashlib.sha256()
    for name, found in sorted(scores.by_name.items()):
        digest.update(repr(name).encode())
        for one in (found.scores, found.decoder_scores):
            digest.update(b"-" if one is None else np.ascontiguousarray(one).tobytes())
    return digest.hexdigest()


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
    skip: Collection[int] = (),
    notes: Mapping[str, Any] | None = None,
) -> Results:
    """Judges methods on every line of a file (refl.evaluation.data).

    methods     names, methods of refl.methods, scores from elsewhere; a mapping names them anew.
                Random scores are judged beside them
    metrics     names, with options after colons (refl.evaluation.judging)
    kind        what is explained: logit, log-probability or probability
    contrast    False: of a contrast explain the target alone
    skip        numbers of lines that are left out: those that were tuned on
    notes       what else the results say of the run: on what methods were tuned, say

    The others, and what is raised, as in `explain_corpus`.
    """
    not_both(pool, workers)
    asked_of = tuple(map(_said_by_name, metrics))
    names = [one.name for one in asked_of]
    if not names or len(set(names)) < len(names):
        raise arguments.expected("metrics", "at least one, and none twice", names)
    limit = None if limit is None else arguments.positive("limit", limit)
    file, skipped = arguments.path("file", file), frozenset(skip)
    found = _matched(with_random(by_label(methods)), file, limit, skipped)
    how = Judging(found, asked_of, kind, contrast, batch_tokens)
    _refuse_undefined(model, file, limit, how)
    job = Job(
        model=model,
        file=file,
        folder=Folder(arguments.path("folder", folder)),
        function=judged_lines,
        further=how,
        said=how.as_dict() | {"notes": dict(notes or {})},
        shard=arguments.positive("shard", shard),
        limit=limit,
        skip=skipped,
        narrowed=Judging.narrowed,
        phase="judging",
    )
    job.run(pool, workers, progress)
    return Results.read(job.folder)


def _said_by_name(which: str | Metric) -> Metric:
    """A metric. Raises ReflError where its name, by which tables know it, says another or none."""
    found = metric(which)
    with suppress(ReflError):
        if metric(found.name) == found:
            return found
    raise ReflError(
        f"metric {shown(found.name)} is not what its name says, by which tables know it: expected "
        f"one of {', '.join(METRICS)}, its options texts and numbers, and of a composite the path "
        "of its .toml file"
    )


def _matched(
    methods: Mapping[str, Any], file: Path, limit: int | None, skip: frozenset[int]
) -> dict[str, Any]:
    """Scores from elsewhere with the names of the inputs they are of. Those without names are of
    all inputs, in their order: whoever made them does not know which are left out.
    """
    if not any(isinstance(one, Scores) for one in methods.values()):
        return dict(methods)
    every = {line.number: parsed(line).item.name for line in lines(file, limit)}
    judged = [name for number, name in every.items() if number not in skip]

    def named(one: Scores) -> Scores:
        in_order = one.in_order and not one.by_name.keys() >= set(judged)
        return one.matched([*every.values()] if in_order else judged)

    return {label: named(one) if isinstance(one, Scores) else one for label, one in methods.items()}


def with_random(methods: dict[str, Any]) -> dict[str, Any]:
    """Random scores come first, where they are not among the methods already."""
    if any(isinstance(one, Random) for one in methods.values()):
        return methods
    if Random.name in methods:
        raise ReflError(f"{Random.name!r} is the name of random scores: name the others apart")
    return {Random.name: Random(), **methods}


def _refuse_undefined(model: Model, file: Path, limit: int | None, how: Judging) -> None:
    """What the net or the first input shows already to be no use."""
    for method in how.methods.values():
        refuse = getattr(method, "refuse", None)
        if refuse is not None:
            refuse(model)
    for one in how.metrics:
        by_method(one, how.methods)
    _refuse_unknown(file, limit, how)
    for first in lines(file, limit=1):
        subject = _subject(model, first, how)
        for one in how.metrics:
            one.refuse(subject)


def _refuse_unknown(file: Path, limit: int | None, how: Judging) -> None:
    """Evidence is judged where there is some: a column without a number would look like work."""
    asked = [one.name for one in how.metrics if isinstance(one, Evidence)]
    if asked and not any(parsed(line).has_evidence for line in lines(file, limit)):
        raise ReflError(
            f"metric {asked[0]} judges what is known to decide, and no line of {shown(file)} says "
            "so: give evidence on the lines where it is known, or leave the metric out"
        )


def _subject(model: Model, line: Line, how: Judging) -> Subject:
    """What is refused of it names the line."""
    item = parsed(line).settled(model)
    with parsed(line).named():
        return Subject.read(model, asked(item, how.contrast), how.kind)


# -- a shard ---------------------------------------------------------------------------------------


def judged_lines(opened: Opened, how: Judging, part: list[Line]) -> bytes:
    """The bytes of a shard."""
    model = opened.model()
    found = [asked(parsed(line).settled(model), how.contrast) for line in part]
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
