"""Every input of a file explained, a shard at a time, by as many workers as there are.

    explain_corpus(model, "corpus.jsonl", "folder", "attnlrp", workers=2)

A row for each input, in the order of the file: what was explained, the relevance of each token, and
the sums of the conservation ledger, where the method keeps one:

    explained = sum of relevance + sum of absorbed + conservation_error

Inputs of about one length share a batch inside a shard, never across two: so a row has the same
bits whoever computes it, on machines with the same kernels.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from importlib import import_module
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from refl import arguments
from refl.batching import TOKENS
from refl.edits import said
from refl.errors import ReflError, argument, shown
from refl.evaluation.data import Line, Record, lines, parsed, survey
from refl.evaluation.shards import Folder
from refl.evaluation.workers import (
    InThisProcess,
    Packed,
    Pool,
    Processes,
    Work,
    ahead,
    not_both,
)
from refl.explanation import Explanation
from refl.extras import install
from refl.methods import Method, chosen
from refl.model import Model
from refl.network import Reading
from refl.question import Progress, Question, Target
from refl.rules.composites import Composite
from refl.show.numbers import total

SHARD = 64
"""Inputs of a shard: enough for full batches, few enough to lose."""

FORMATS = ("jsonl", "parquet")

T = TypeVar("T")


class Done(NamedTuple):
    """What a run came to."""

    inputs: int
    shards: int
    made: int
    """Shards that this run made; the others were there."""
    folder: Path

    def as_dict(self) -> dict[str, Any]:
        return self._asdict() | {"folder": str(self.folder)}


# -- a run in shards, whatever is done with an input -----------------------------------------------


class Here:
    """The model in this process, where nobody else has to open it."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def model(self) -> Model:
        return self._model


Opened = Here | Packed


@dataclass(frozen=True)
class Job:
    """Inputs of a file through a function, into the shards of a folder.

    function    (model, further, lines) -> the bytes of a shard; importable by its name, as are its
                further arguments
    said        what is computed, by name: what a folder may not mix
    skip        numbers of lines that are left out
    narrowed    what of `further` a shard needs
    """

    model: Model
    file: Path
    folder: Folder
    function: Callable[[Opened, Any, list[Line]], bytes]
    further: Any
    said: Mapping[str, Any]
    shard: int = SHARD
    limit: int | None = None
    skip: frozenset[int] = frozenset()
    narrowed: Callable[[Any, list[Line]], Any] | None = None
    phase: str = "explaining"

    def run(self, pool: Pool | None, workers: int | None, progress: Progress | None) -> Done:
        """Raises ReflError for data, a folder or a worker that cannot be used."""
        if workers is not None:
            arguments.positive("workers", workers)
        tell = arguments.progress(progress) or _silent
        tell("reading", 0, 0)
        found = survey(self._lines(), self.model, self.file)
        data = {"hash": found.hash, "inputs": found.count}
        options = {**self.said, "shard": self.shard}
        self.folder.begin({"model": self._model(), "data": data, "options": options})
        finished, count = self.folder.finished(), -(-found.count // self.shard)
        missing = [n for n in range(count) if n not in finished]
        with ExitStack() as stack:
            asked = pool or stack.enter_context(_workers(workers, len(missing)))
            opened = Here(self.model) if isinstance(asked, InThisProcess) else Packed.of(self.model)
            work = Work(asked, _bytes_of, ahead(asked))
            tasks = self._tasks(opened, set(missing), _parts(found.digests, self.shard))
            done = found.count - sum(self._size(n, found.count) for n in missing)
            tell(self.phase, done, found.count)
            for number, content in zip(missing, work.answers(tasks), strict=True):
                self.folder.write(number, content)
                done += self._size(number, found.count)
                tell(self.phase, done, found.count)
        return Done(found.count, count, len(missing), self.folder.path)

    def _size(self, number: int, count: int) -> int:
        return min(self.shard, count - number * self.shard)

    def _tasks(
        self, opened: Opened, missing: set[int], digests: Iterable[list[bytes]]
    ) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """The lines of each shard that is not there yet, read as they are asked for. Raises
        ReflError where they are no longer those that were read first.
        """
        parts = chain(_parts(self._lines(), self.shard), repeat(list[Line]()))
        for number, (known, part) in enumerate(zip(digests, parts, strict=False)):
            if number not in missing:
                continue
            if not _are(part, known):
                raise _changed(self.file)
            name = f"{shown(self.file)}, lines {part[0].number} to {part[-1].number}"
            narrowed = self.narrowed or _as_it_is
            yield name, (self.function, opened, narrowed(self.further, part), part, known)

    def _lines(self) -> Iterator[Line]:
        return (line for line in lines(self.file, self.limit) if line.number not in self.skip)

    def _model(self) -> dict[str, Any]:
        return {
            "name": self.model.name,
            "fingerprint": self.model.fingerprint(),
            "dtype": self.model.dtype,
            "device": self.model.device,
            **self.model.ignored,
            **({"edits": said(self.model.edits)} if self.model.edits else {}),
        }


def _bytes_of(
    function: Callable[[Opened, Any, list[Line]], bytes],
    opened: Opened,
    further: Any,
    part: list[Line],
    known: list[bytes],
) -> bytes:
    """Of a shard. Raises ReflError where a picture has changed by the time it is explained."""
    found = function(opened, further, part)
    if not _are(part, known):
        raise _changed(part[0].file)
    return found


def _are(part: list[Line], known: list[bytes]) -> bool:
    """Whether lines, and the pictures that they name, have these digests."""
    return [parsed(line).digest() for line in part] == known


def _changed(file: str | Path) -> ReflError:
    return ReflError(
        f"{shown(file)} changed while it was read, or a picture that it names: what is finished is "
        "kept; wait until nobody writes there, and run again"
    )


def _as_it_is(further: Any, part: list[Line]) -> Any:
    return further


def _silent(*_: object) -> None:
    """Nobody wants to hear."""


def _parts(found: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(found)
    while part := list(islice(iterator, size)):
        yield part


def _workers(workers: int | None, tasks: int) -> AbstractContextManager[Pool]:
    """Processes where they are asked for, no more than there are tasks; else this one."""
    if workers is None or not tasks:
        return nullcontext(InThisProcess())
    return Processes(min(workers, tasks))


# -- a corpus explained ----------------------------------------------------------------------------


@dataclass(frozen=True)
class How:
    """What is asked of every input."""

    method: Method
    seed: str = "logit"
    format: str = "jsonl"
    batch_tokens: int = TOKENS


def explain_corpus(
    model: Model,
    file: str | Path,
    folder: str | Path,
    method: str | Path | Composite | Method = "attnlrp",
    *,
    seed: str = "logit",
    eps: float | None = None,
    stabilizer: str | None = None,
    options: Mapping[str, Any] | None = None,
    format: str = "jsonl",
    shard: int = SHARD,
    limit: int | None = None,
    batch_tokens: int = TOKENS,
    pool: Pool | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Done:
    """Explains every line of a file (refl.evaluation.data), into a folder (refl.evaluation.shards).

    method ... options    as in Model.explain
    format       "jsonl" or "parquet" (needs pyarrow)
    shard        inputs of a file of the folder
    limit        only so many inputs, from the first
    pool         anything with submit(function, *arguments) whose answer has result(): a dask
                 Client, an MPIPoolExecutor, a process pool
    workers      in its place so many processes of this machine; by default this process alone

    What is finished is not computed again. Raises ReflError for a line that cannot be used, for a
    folder of another run, and where a shard cannot be written or a worker dies again and again.
    """
    not_both(pool, workers)
    how = How(
        chosen(method, eps, stabilizer, options), seed, _format(format), batch_tokens=batch_tokens
    )
    how.method.refuse(model)
    Question(model, seed, batch_tokens=batch_tokens).refuse([[(0, None)]])
    job = Job(
        model=model,
        file=arguments.path("file", file),
        folder=Folder(arguments.path("folder", folder), how.format),
        function=explained,
        further=how,
        said={
            "method": how.method.facts().as_dict(),
            "seed": seed,
            "format": how.format,
            "batch_tokens": batch_tokens,
        },
        shard=arguments.positive("shard", shard),
        limit=None if limit is None else arguments.positive("limit", limit),
    )
    return job.run(pool, workers, progress)


def _format(name: str) -> str:
    if name not in FORMATS:
        raise arguments.expected("format", " or ".join(FORMATS), name)
    if name == "parquet":
        _pyarrow()
    return name


def explained(opened: Opened, how: How, part: list[Line]) -> bytes:
    """The bytes of a shard."""
    model = opened.model()
    records = [parsed(line) for line in part]
    rows = map(row, part, explanations(model, how, records))
    return parquet(rows) if how.format == "parquet" else _jsonl(rows)


def explanations(model: Model, how: How, records: Sequence[Record]) -> list[Explanation]:
    """Of each input; those whose output is explained at one position together."""
    read = [reading_of(model, record) for record in records]
    found: dict[int, Explanation] = {}
    for position, members in by_position(records).items():
        question = Question(model, how.seed, position=position, batch_tokens=how.batch_tokens)
        try:
            explained = _explained(question, how, [read[n] for n in members])
        except ReflError:
            for n in members:  # which of them it is
                with records[n].named():
                    _explained(question, how, [read[n]])
            raise
        found.update(zip(members, explained, strict=True))
    return [found[n] for n in range(len(records))]


def _explained(
    question: Question, how: How, read: Sequence[tuple[Reading, Target]]
) -> list[Explanation]:
    readings, targets = [one for one, _ in read], [target for _, target in read]
    return how.method.explain(question, readings, targets, keep=())


def by_position(records: Sequence[Record]) -> dict[int | None, list[int]]:
    """Numbers of the inputs whose output is explained at one position."""
    found = defaultdict(list)
    for n, record in enumerate(records):
        found[record.item.position].append(n)
    return found


def reading_of(model: Model, record: Record) -> tuple[Reading, Target]:
    """A line as the net takes it, and what it says is explained. Raises ReflError, by the line."""
    item = record.item
    with record.named():
        model.refuse_features("a corpus")
        types = None if item.types is None else [list(item.types)]
        pair = None if item.pair is None else [item.pair]
        (reading,) = model.readings([item.input], item.decoder, types, pair)
        (target,) = model.targets(1, item.target, item.contrast)
    return reading, target


# -- a row -----------------------------------------------------------------------------------------


def row(line: Line, e: Explanation) -> dict[str, Any]:
    """What a shard says of one input; relevance of a picture row by row, its size as `shape`."""
    found = {
        "name": parsed(line).item.name,
        "line": line.number,
        "tokens": e.tokens,
        "input_ids": e.input_ids,
        "relevance": _numbers(e.relevance),
        "shape": None if e.picture is None else list(e.relevance.shape),
        "decoder_tokens": e.decoder_tokens,
        "decoder_relevance": _numbers(e.decoder_relevance),
        "target": e.target,
        "target_id": e.target_id,
        "against": e.against,
        "logit": e.logit,
        "against_logit": e.against_logit,
        "explained": e.explained,
    }
    return found | _ledger(e)


def _numbers(scores: Any) -> list[float] | None:
    return None if scores is None else [float(r) for r in scores.ravel()]


def _ledger(e: Explanation) -> dict[str, Any]:
    """The sums of the conservation ledger; null where the method keeps none."""
    if e.recorded is None:
        return {"on_input": None, "absorbed": None, "conservation_error": None}
    return {
        "on_input": total(e.recorded.tokens),
        "absorbed": {cause: total(amount) for cause, amount in e.recorded.absorbed.items()},
        "conservation_error": total(e.recorded.conservation_error),
    }


def _jsonl(rows: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in rows)


def _pyarrow() -> Any:
    try:
        import_module("pyarrow.parquet")
        return import_module("pyarrow")
    except ImportError:
        raise ReflError(
            f"Parquet needs pyarrow: {install('parquet')}, or take {argument('format')} jsonl"
        ) from None


def parquet(rows: Iterable[dict[str, Any]]) -> bytes:
    """The rows as a Parquet file; what was absorbed is a map from cause to amount."""
    pa = _pyarrow()
    absorbed = pa.map_(pa.string(), pa.float64())
    columns = _columns(pa) | {"absorbed": absorbed, "conservation_error": pa.float64()}
    table = [
        one | {"absorbed": None if one["absorbed"] is None else list(one["absorbed"].items())}
        for one in rows
    ]
    sink = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(table, schema=pa.schema(columns)), sink)
    return sink.getvalue()


def _columns(pa: Any) -> dict[str, Any]:
    """Name -> type."""
    kinds = {
        pa.string(): ("name", "target", "against"),
        pa.int64(): ("line", "target_id"),
        pa.float64(): ("logit", "against_logit", "explained", "on_input"),
        pa.list_(pa.string()): ("tokens", "decoder_tokens"),
        pa.list_(pa.int64()): ("input_ids", "shape"),
        pa.list_(pa.float64()): ("relevance", "decoder_relevance"),
    }
    types = {name: kind for kind, names in kinds.items() for name in names}
    return {name: types[name] for name in ROW if name in types}


ROW = (
    "name", "line", "tokens", "input_ids", "relevance", "shape", "decoder_tokens",
    "decoder_relevance", "target", "target_id", "against", "logit", "against_logit", "explained",
    "on_input", "absorbed", "conservation_error",
)  # fmt: skip
"""The columns, in their order."""
