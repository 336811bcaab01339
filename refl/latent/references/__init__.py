"""Reference inputs: where a neuron, or a head, is most active, and where it is most relevant

    ActMax    the k inputs, and positions, with the largest activation
    RelMax    those with the largest relevance for what is explained of each input

    Achtibat et al. 2024, AttnLRP, arXiv 2402.05602, section 4.3 and figures 9 to 11 (ActMax)
    Achtibat et al. 2023, From attribution maps to human-understandable explanations through concept
    relevance propagation, Nature Machine Intelligence 5, arXiv 2206.03208 (RelMax)

    found = references(model, "corpus.jsonl", "folder", ["L2", "L1.H*"])
    found.of("L2.N17").activation[0]          the line of the file, the position in it, the value
    found.heatmaps(model, "corpus.jsonl", "L2.N17")

One pass over the file for all of them. Of an input its best position counts, so that k references
are k inputs; of equal ones that which stands first in the file. The activation of a head is the
length of its row of the context at a position, its relevance there the sum over that row.

A shard of the folder (refl.evaluation.shards) has a line for each neuron or head: its own k best
and its own histogram. Merged in the order of the file, nothing depends on where the file was cut,
but for the rounding of an input's numbers, which may differ with those beside it in a batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from refl import arguments
from refl.batching import TOKENS
from refl.errors import ReflError, argument, nearest, shown
from refl.evaluation.corpus import Done, Job, Opened, by_position, reading_of
from refl.evaluation.data import Line, Record, parsed
from refl.evaluation.shards import Folder
from refl.evaluation.workers import Pool, not_both
from refl.explanation import Explanation
from refl.latent.references import runs
from refl.latent.references.best import Best
from refl.latent.references.heatmaps import Asked
from refl.latent.references.histograms import Histogram, Histograms
from refl.latent.references.runs import Ran, Rows
from refl.latent.references.selection import Group, selected
from refl.methods import Method, Table, chosen
from refl.model import Model
from refl.network import Reading
from refl.question import Progress, Question, Target
from refl.rules.composites import Composite
from refl.rules.published import identified

SHARD = 256
"""Inputs of a shard: each has k references of every neuron, so a few large ones are best."""

BY = ("activation", "relevance")


@dataclass(frozen=True)
class Reference:
    """One input: its line in the file, the position in it, and the value there. Positions of a
    picture count what the net makes of it: its patches, behind what stands before them.
    """

    line: int
    position: int
    value: float


@dataclass(frozen=True)
class PartReferences:
    """Of one neuron or head: references from the best down, and all its activations.

    activation, relevance                  where it is largest
    lowest_activation, lowest_relevance    where it is smallest (most negative), if asked for
    """

    name: str
    histogram: Histogram
    activation: tuple[Reference, ...] = ()
    relevance: tuple[Reference, ...] = ()
    lowest_activation: tuple[Reference, ...] = ()
    lowest_relevance: tuple[Reference, ...] = ()

    def by(self, what: str) -> tuple[Reference, ...]:
        """One of the four by its name. Raises ReflError for what is none."""
        return getattr(self, arguments.one_of("by", what, RANKINGS))  # type: ignore[no-any-return]

    def as_dict(self) -> dict[str, Any]:
        found = {what: [vars(one) for one in getattr(self, what)] for what in RANKINGS}
        return {"name": self.name, "histogram": self.histogram.as_dict(), **found}


RANKINGS: dict[str, int] = {
    "activation": 1,
    "relevance": 1,
    "lowest_activation": -1,
    "lowest_relevance": -1,
}
"""What references are ranked by, and the sign under which the largest is the first."""


@dataclass(frozen=True)
class How:
    """What is asked of every input; `method` is None where no relevance is."""

    groups: tuple[Group, ...]
    k: int
    rankings: tuple[str, ...]
    every_position: bool
    method: Composite | None
    seed: str
    batch_tokens: int


def references(
    model: Model,
    file: str | Path,
    folder: str | Path,
    parts: str | Sequence[str] | None = None,
    k: int = 10,
    by: str | Sequence[str] = BY,
    method: str | Path | Composite | Method = "attnlrp",
    *,
    lowest: bool = False,
    every_position: bool = False,
    seed: str = "logit",
    eps: float | None = None,
    stabilizer: str | None = None,
    options: Mapping[str, Any] | None = None,
    shard: int = SHARD,
    limit: int | None = None,
    batch_tokens: int = TOKENS,
    pool: Pool | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> References:
    """Goes once over every line of a file (refl.evaluation.data), into a folder.

    parts        names (`selection` beside this file): L2 for all neurons of a block, L2.N17, L2.H*;
                 by default every neuron of the net
    k            how many references each has
    by           "activation", "relevance", or both; activation alone takes no sweep
    method       a table of rules, with seed, eps, stabilizer and options as in Model.explain: what
                 finds relevance. What is explained says each line; else the most likely output
    lowest       also the k smallest
    every_position    every position for itself, in place of the best of each input
    shard, limit, batch_tokens, pool, workers    as in refl.evaluation.corpus.explain_corpus

    What is finished is not computed again. Raises ReflError for names that nothing has, for a line
    that cannot be used, a folder of another run, and a method that is no table of rules.
    """
    not_both(pool, workers)
    model.refuse_features("a search for the inputs of neurons and heads")
    rankings = _rankings(by, arguments.flag("lowest", lowest))
    asked = chosen(method, eps, stabilizer, options)
    how = How(
        groups=selected(model.components, parts),
        k=arguments.positive("k", k),
        rankings=rankings,
        every_position=arguments.flag("every_position", every_position),
        method=_table(model, asked, seed, batch_tokens) if "relevance" in rankings else None,
        seed=seed,
        batch_tokens=arguments.positive("batch_tokens", batch_tokens),
    )
    job = Job(
        model=model,
        file=arguments.path("file", file),
        folder=Folder(arguments.path("folder", folder)),
        function=found,
        further=how,
        said=_said(how),
        shard=arguments.positive("shard", shard),
        limit=None if limit is None else arguments.positive("limit", limit),
        phase="references",
    )
    done = job.run(pool, workers, progress)
    return References.read(done.folder, done)


def _rankings(by: Any, lowest: bool) -> tuple[str, ...]:
    names = [by] if isinstance(by, str) else arguments.names(by)
    if not names or not set(names) <= set(BY):
        raise arguments.expected("by", f"{BY[0]}, {BY[1]}, or both", by)
    signs = (1, -1) if lowest else (1,)
    return tuple(r for r, sign in RANKINGS.items() if sign in signs and _of(r) in names)


def _of(ranking: str) -> str:
    """activation, or relevance."""
    return ranking.removeprefix("lowest_")


def _table(model: Model, method: Method, seed: str, batch_tokens: int) -> Composite:
    """The rules of a method. Raises ReflError for one that has none, and for a seed that the net
    cannot have.
    """
    if not isinstance(method, Table):
        raise ReflError(
            f"method {method.name} is no table of rules, and neurons have no relevance with it: "
            f"take one such as attnlrp, or {argument('by')} activation"
        )
    if method.conditions:
        raise ReflError(
            f"references take no conditions, and {method.name} has some: leave them out"
        )
    question = Question(model, seed, batch_tokens=batch_tokens)
    question.refuse([[(0, None)]])
    return runs.fitted(question, method.composite)


def _said(how: How) -> dict[str, Any]:
    """By name what a folder may not mix."""
    table = how.method
    return {
        "parts": [f"{g.owner.label}: {_ranges(g)}" for g in how.groups],
        "k": how.k,
        "by": list(how.rankings),
        "every_position": how.every_position,
        "method": None if table is None else table.as_dict(),
        "seed": None if table is None else how.seed,
        "batch_tokens": how.batch_tokens,
    }


def _ranges(group: Group) -> str:
    """N0-171, or N3 N5-7."""
    letter, numbers = group.names[0].rpartition(".")[2][0], group.numbers
    every = set(numbers)
    firsts = [n for n in numbers if n - 1 not in every]
    lasts = [n for n in numbers if n + 1 not in every]
    ranges = (f"{a}-{b}" if a < b else f"{a}" for a, b in zip(firsts, lasts, strict=True))
    return " ".join(f"{letter}{one}" for one in ranges)


# -- a shard ---------------------------------------------------------------------------------------


class Kept:
    """The best and the histograms of one group so far."""

    def __init__(self, group: Group, how: How) -> None:
        size = len(group.numbers)
        self.how, self.histograms = how, Histograms.nothing(size)
        self.best = {ranking: Best.nothing(size) for ranking in how.rankings}

    def add(self, rows: Rows, lines: Any) -> None:  # lines (B,)
        self.histograms = self.histograms.and_(Histograms.of(rows.activation[rows.there]))
        for ranking, best in self.best.items():
            x = RANKINGS[ranking] * getattr(rows, _of(ranking))
            x = np.where(rows.there[..., None], x, -np.inf)
            further = Best.of(x, lines, rows.positions, self.how.every_position)
            self.best[ranking] = best.and_(further, self.how.k)

    def row(self, n: int, name: str) -> dict[str, Any]:
        best = {what: one.row(n, RANKINGS[what]) for what, one in self.best.items()}
        return {"part": name, **best, "histogram": self.histograms.row(n)}


def found(opened: Opened, how: How, part: list[Line]) -> bytes:
    """The bytes of a shard: a line for each neuron or head."""
    model = opened.model()
    records = [parsed(line) for line in part]
    read = [reading_of(model, record) for record in records]
    kept = [Kept(group, how) for group in how.groups]
    for members, run in _batches(model, how, records, read):
        readings = [read[n][0] for n in members]
        ran, lines = _named(records, members, run), np.array([part[n].number for n in members])
        for one, group in zip(kept, how.groups, strict=True):
            rows = runs.rows_of(group, ran, readings, model.dtype)
            if rows is not None:
                one.add(rows, lines)
    each = (
        one.row(n, name)
        for one, group in zip(kept, how.groups, strict=True)
        for n, name in enumerate(group.names)
    )
    return b"".join(json.dumps(row).encode() + b"\n" for row in each)


Run = Callable[[Sequence[int]], Ran]
"""Of some inputs by their numbers."""


def _batches(
    model: Model, how: How, records: Sequence[Record], read: Sequence[tuple[Reading, Target]]
) -> Iterator[tuple[list[int], Run]]:
    """Which inputs run together, and how."""
    readings = [reading for reading, _ in read]
    table = how.method
    if table is None:
        for members in runs.batches(model, readings, how.batch_tokens):
            yield (
                members,
                lambda some: runs.activations(model, [readings[n] for n in some], how.groups),
            )
        return
    for position, numbers in by_position(records).items():
        question = Question(model, how.seed, position=position, batch_tokens=how.batch_tokens)

        def run(some: Sequence[int], question: Question = question) -> Ran:
            targets = [read[n][1] for n in some]
            question.refuse([targets])
            return runs.swept(question, table, [readings[n] for n in some], targets, how.groups)

        for group in question.groups([readings[n] for n in numbers]):
            yield [numbers[i] for i in group], run


def _named(records: Sequence[Record], members: Sequence[int], run: Run) -> Ran:
    """What is refused is refused by its line."""
    try:
        return run(members)
    except ReflError:
        for n in members:
            with records[n].named():
                run([n])
        raise


# -- what was found --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class References:
    """A finished run.

    folder    where its shards are
    run       what was asked, of which model and data: its run.json
    names     of every neuron and head
    """

    folder: Path
    run: Mapping[str, Any]
    names: tuple[str, ...]
    histograms: Histograms
    best: Mapping[str, Best]
    done: Done | None = field(default=None)

    @classmethod
    def read(cls, folder: str | Path, done: Done | None = None) -> Self:
        """Merges the shards of a folder, one after the other. Raises ReflError for a folder that
        has no such run, and for one that is not finished.
        """
        place = Folder(arguments.path("folder", folder))
        run = place.run()
        try:
            data, options = run["data"], run["options"]
            k, rankings, count = options["k"], options["by"], -(-data["inputs"] // options["shard"])
        except (KeyError, TypeError):
            raise _strange(place.path) from None
        files = place.finished()
        if missing := [n for n in range(count) if n not in files]:
            raise ReflError(
                f"{shown(place.path)} is not finished: {len(missing)} of {count} shards are "
                "missing; run again what makes it, with the same options"
            )
        shards = (_shard(files[n], k, rankings) for n in range(count))
        return cls(place.path, run, *_merged(shards, k), done)

    def __repr__(self) -> str:
        count = self.run["data"]["inputs"]
        return f"<References: {len(self.names)} neurons and heads, {count} inputs>"

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: n for n, name in enumerate(self.names)}

    def of(self, name: str) -> PartReferences:
        """One neuron or head. Raises ReflError for one that was not asked for."""
        n = self._numbers.get(name) if isinstance(name, str) else None
        if n is None:
            near = ", ".join(nearest(str(name), self.names, 3)) or self.names[0]
            raise ReflError(
                f"{arguments.received(name)} is none of the {len(self.names)} neurons and heads of "
                f"{shown(self.folder)} (nearest: {near})"
            )
        ranked = {
            what: tuple(Reference(*one) for one in best.row(n, RANKINGS[what]))
            for what, best in self.best.items()
        }
        return PartReferences(name, self.histograms.histogram(n), **ranked)

    def heatmaps(
        self,
        model: Model,
        file: str | Path,
        name: str,
        k: int | None = None,
        by: str = "activation",
        method: str | Path | Composite | Method | None = None,
        seed: str | None = None,
    ) -> list[Explanation]:
        """The references of one neuron or head explained, on demand: one Explanation for each.

        Of a neuron its own activation at the position of the reference, down to the tokens. Of a
        head, whose row is no number, what is explained of the line, but that relevance alone which
        comes through the head at that position (refl.conditions).

        k         only the first so many
        by        "activation" or "relevance" (with "lowest_" before it: the smallest), of what was
                  asked for
        method, seed    by default those of the run; of one that had no sweep attnlrp, logit

        Raises ReflError for another file, or another model, than those of the run, and for a head
        where the method is no table of rules.
        """
        by = arguments.one_of("by", by, self.run["options"]["by"])
        some = self.of(name).by(by)[: None if k is None else arguments.positive("k", k)]
        if method is None:
            table = self.run["options"]["method"]
            method = "attnlrp" if table is None else identified(Composite.from_dict(table))
        places = [(one.line, one.position) for one in some]
        seed = seed or self.run["options"]["seed"] or "logit"
        asked = Asked(model, model.components.part(name), chosen(method), seed)
        return asked.of(arguments.path("file", file), self.run, places)


def _strange(path: Path) -> ReflError:
    return ReflError(f"{shown(path)} holds no references: give a folder of refl references")


Shard = tuple[tuple[str, ...], Histograms, dict[str, Best]]


def _shard(path: Path, k: int, rankings: Sequence[str]) -> Shard:
    try:
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        best = {
            what: Best.from_rows([row[what][:k] for row in rows], RANKINGS[what])
            for what in rankings
        }
        histograms = Histograms.from_rows([row["histogram"] for row in rows])
        return tuple(row["part"] for row in rows), histograms, best
    except (KeyError, TypeError, ValueError, IndexError):
        raise _strange(path.parent) from None


def _merged(shards: Iterable[Shard], k: int) -> Shard:
    iterator = iter(shards)
    names, histograms, best = next(iterator)
    for _, further, others in iterator:
        histograms = histograms.and_(further)
        best = {what: one.and_(others[what], k) for what, one in best.items()}
    return names, histograms, best
