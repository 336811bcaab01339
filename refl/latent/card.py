"""All that refl can say of one neuron, or of one head: its activations over a corpus, the inputs
where it is most active and most relevant, what it writes in words, what switching it off does; of a
head also which token asked which in one example.

    found = card(model, "L2.N17", file="corpus.jsonl")
    Path("card.html").write_text(refl.latent.card_page.html(found))

What there is nothing to say of is left out, and `missing` has a sentence that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np

from refl import arguments
from refl.anatomy import watched
from refl.components import Attention, Mlp, Part, site_of, size
from refl.errors import ReflError, argument, shown
from refl.evaluation.data import lines, parsed
from refl.evaluation.subject import Item, Subject
from refl.explanation import Explanation
from refl.io.shipped import SHIPPED, fingerprint
from refl.latent.effects import Effect, effect, table_of
from refl.latent.projection import Projection, project
from refl.latent.references import Reference, References, references, runs
from refl.latent.references.histograms import Histogram
from refl.methods import Table
from refl.model import Model
from refl.network import Reading
from refl.question import Progress, Question

CORPUS = SHIPPED / "evidence.jsonl"
"""The held-out sentences of the model that ships with refl."""

TOKENS = 10
"""Of a projection, at each end."""


@dataclass(frozen=True, eq=False)
class Colored:
    """A reference, the relevance of its tokens for the neuron, and its position in words."""

    reference: Reference
    explanation: Explanation
    place: str


@dataclass(frozen=True, eq=False)
class Scores:
    """Which token asked which: of one head in one input, (queries, keys) each.

    relevance        at the products of queries and keys; together they are what came through them
    probabilities    the attention of the same run
    """

    site: str
    queries: list[str]
    keys: list[str]
    relevance: Any
    probabilities: Any

    @property
    def total(self) -> float:
        """The sum of the relevance."""
        return float(np.asarray(self.relevance, dtype=np.float64).sum())


@dataclass(frozen=True, eq=False)
class Card:
    """Of one neuron or head. What is None has a sentence in `missing`, under the field's name.

    histogram      of its activation at every position of the corpus
    references     "activation" and "relevance" -> where it is largest
    projections    with the final norm, and without
    effects        what it is measured on, in words, and what switching it off does there
    example        one input explained; `scores`, of a head, are those of this run
    facts          what was asked, of which model
    """

    part: Part
    facts: dict[str, str]
    histogram: Histogram | None = None
    references: dict[str, list[Colored]] | None = None
    projections: tuple[Projection, ...] | None = None
    effects: list[tuple[str, Effect]] | None = None
    example: Explanation | None = None
    scores: Scores | None = None
    missing: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For a file."""
        return {
            "name": self.part.name,
            "kind": self.part.kind,
            "facts": self.facts,
            "histogram": None if self.histogram is None else self.histogram.as_dict(),
            "references": {
                by: [vars(one.reference) | _tokens(one.explanation) for one in some]
                for by, some in (self.references or {}).items()
            },
            "projections": [p.as_dict() for p in self.projections or ()],
            "effects": [{"over": over} | e.as_dict() for over, e in self.effects or ()],
            "scores": None if self.scores is None else _scores_said(self.scores),
            "missing": self.missing,
        }


def _tokens(e: Explanation) -> dict[str, Any]:
    relevance = np.asarray(e.relevance).tolist()
    return {"tokens": e.tokens, "relevance": relevance} if e.picture is None else {}


def _scores_said(s: Scores) -> dict[str, Any]:
    arrays = {name: getattr(s, name).tolist() for name in ("relevance", "probabilities")}
    return {"site": s.site, "queries": s.queries, "keys": s.keys, "sum": s.total} | arrays


def card(
    model: Model,
    name: str,
    references: str | Path | References | None = None,
    file: str | Path | None = None,
    example: Any = None,
    *,
    decoder: Any = None,
    target: Any = None,
    contrast: Any = None,
    method: Any = "attnlrp",
    k: int = 5,
    inputs: int = 20,
    draws: int = 20,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Card:
    """What there is to say of a neuron ("L2.N17") or a head ("L2.H1").

    references    a folder of refl.latent.references, read where it has been finished and else made
                  there; by default they are found anew and not kept
    file          a corpus as refl.evaluation.data reads it; by default, for the model that ships
                  with refl, its own held-out sentences, for any other none
    example       a text, token ids or a picture to look at it in, with decoder, target and contrast
                  as in `explain`; by default the line of the file where it is most relevant
    method        a table of rules
    k             references of each kind
    inputs, draws    it is switched off in so many lines, spread over the file, and as many random
                  others of its block are, `draws` times
    limit         only the first so many lines of the file

    Raises ReflError for what is no neuron or head, and for files that cannot be used.
    """
    part = _part(model, name)
    asked = _Asked(
        model,
        part,
        _corpus(model, file, references),
        table_of(method),
        arguments.positive("k", k),
        arguments.positive("inputs", inputs),
        draws,
        None if limit is None else arguments.positive("limit", limit),
        arguments.progress(progress),
    )
    own = None if example is None else Item("the example", example, target, contrast, decoder)
    _refuse_alone(own, decoder=decoder, target=target, contrast=contrast)
    return asked.card(asked.references(references), own)


def _refuse_alone(own: Item | None, **said: Any) -> None:
    """Raises ReflError for what says how an example is to be read where there is none."""
    for what, value in said.items():
        if own is None and value is not None:
            raise ReflError(f"{argument(what)} is of an example: give {argument('example')} too")


def _part(model: Model, name: str) -> Part:
    part = model.components.part(name)
    if part.number is None:
        raise ReflError(
            f"{part.name} is a block, and a card is of one neuron ({part.name}.N0) or one head "
            f"({part.name}.H0)"
        )
    return part


def _corpus(model: Model, file: Any, references: Any) -> Path | None:
    if file is not None:
        return arguments.path("file", file)
    if model.name == SHIPPED.name and model.fingerprint() == fingerprint():
        return CORPUS
    if references is not None:
        raise ReflError(
            f"references are places in a file: give the {argument('file')} that they were found in"
        )
    return None


T = TypeVar("T")

NO_FILE = "no corpus was named: give a file of inputs"


@dataclass(frozen=True)
class _Asked:
    """Of which neuron or head of which model, and how much."""

    model: Model
    part: Part
    corpus: Path | None
    method: Table
    k: int
    inputs: int
    draws: int
    limit: int | None
    progress: Progress | None

    def card(self, found: References | None, own: Item | None) -> Card:
        missing: dict[str, str] = {}
        example = own or self._example(found)
        run = None if example is None else self._run(example)
        if run is None:
            missing["example"] = f"{NO_FILE}, or an example"

        def tried(what: str, function: Callable[[], T]) -> T | None:
            """What one section is made of; where there is no such thing, why."""
            try:
                return function()
            except ReflError as error:
                missing[what] = str(error)
                return None

        e, subject = run or (None, None)
        if found is None:
            missing |= dict.fromkeys(("histogram", "references"), NO_FILE)
            missing |= {} if own is not None else {"effects": f"{NO_FILE}, or an example"}
        return Card(
            part=self.part,
            facts=self._facts(found, example),
            histogram=None if found is None else found.of(self.part.name).histogram,
            references=None if found is None else self._references(found),
            projections=tried("projections", lambda: self._projections(subject)),
            effects=tried("effects", lambda: self._effects(found, own)) or None,
            example=e,
            scores=None if e is None or subject is None else self._scores(e, subject.reading),
            missing=missing,
        )

    # -- references --------------------------------------------------------------------------------

    def references(self, folder: str | Path | References | None) -> References | None:
        """Those that there are, or else found now. Raises ReflError for those of another method,
        or of another number of lines.
        """
        if self.corpus is None:
            return None
        if isinstance(folder, References):
            return self._fitting(folder)
        if folder is None:
            with TemporaryDirectory() as temporary:
                return self._found(temporary)
        try:
            found = References.read(folder)
        except ReflError:  # there is none, or it has not been finished
            return self._found(folder)
        return self._fitting(found)

    def _fitting(self, found: References) -> References:
        method, inputs = found.run["options"]["method"], found.run["data"]["inputs"]
        mine = runs.fitted(Question(self.model), self.method.composite).as_dict()
        if method is not None and method["hash"] != mine["hash"]:
            raise ReflError(
                f"the references of {shown(found.folder)} were found by {shown(method['name'])}, "
                f"and {argument('method')} is {self.method.name}: give that one, or find them anew"
            )
        if self.limit is not None and sum(1 for _ in self._lines(self.limit)) != inputs:
            raise ReflError(
                f"the references of {shown(found.folder)} are those of {inputs} lines, and "
                f"{argument('limit')} is {self.limit}: leave it out, or find them anew"
            )
        return found

    def _found(self, folder: str | Path) -> References:
        assert self.corpus is not None
        return references(
            self.model,
            self.corpus,
            folder,
            [self.part.name],
            self.k,
            method=self.method,
            limit=self.limit,
            progress=self.progress,
        )

    def _references(self, found: References) -> dict[str, list[Colored]]:
        shown_by = {}
        for by in ("activation", "relevance"):
            some = found.of(self.part.name).by(by)[: self.k]
            self._tell(f"heatmaps by {by}")
            if some:
                file = self.corpus
                assert file is not None
                drawn = found.heatmaps(self.model, file, self.part.name, self.k, by)
                shown_by[by] = [
                    Colored(r, e, _place(self.model, r.position))
                    for r, e in zip(some, drawn, strict=True)
                ]
        return shown_by

    def _items(self, numbers: Iterable[int]) -> list[Item]:
        """Of lines of the corpus by their numbers, in that order."""
        wanted = list(numbers)
        found = {line.number: line for line in self._lines(None) if line.number in set(wanted)}
        return [parsed(found[n]).settled(self.model) for n in wanted]

    def _lines(self, limit: int | None) -> Iterator[Any]:
        assert self.corpus is not None
        return lines(self.corpus, limit)

    # -- the example -------------------------------------------------------------------------------

    def _example(self, found: References | None) -> Item | None:
        """The line where it is most relevant, or else most active."""
        if found is None:
            return None
        of = found.of(self.part.name)
        best = [*of.relevance[:1], *of.activation[:1]]
        return self._items([best[0].line])[0] if best else None

    def _run(self, example: Item) -> tuple[Explanation, Subject]:
        self._tell("the example")
        subject = Subject.read(self.model, example)
        sites: tuple[str, ...] = (self.part.site,)
        if self.part.kind == "head":
            sites = (*sites, *self._score_sites())
        (e,) = self.method.explain(subject.question, [subject.reading], [subject.target], sites)
        return e, subject

    def _score_sites(self) -> tuple[str, str]:
        path = self.part.site.removesuffix("context")
        return f"{path}scores", f"{path}probabilities"

    def _scores(self, e: Explanation, reading: Reading) -> Scores | None:
        if self.part.kind != "head":
            return None
        scores, probabilities = self._score_sites()
        owner = _owner(self.model, self.part)
        assert isinstance(owner, Attention)
        r = e[scores][self.part.number]
        queries, keys = _axes(self.model, owner, reading)
        p = e.activation(probabilities)[self.part.number]
        return Scores(scores, queries, keys, np.asarray(r), np.asarray(p))

    # -- what it writes, and what switching does ---------------------------------------------------

    def _projections(self, subject: Subject | None) -> tuple[Projection, ...]:
        how: dict[str, Any] = {}
        if self.part.kind == "head":
            if subject is None:
                raise ReflError("what a head gives depends on the input: give an example")
            how = {"item": subject.reading.input, "decoder": subject.reading.prefix}
        return tuple(project(self.model, self.part, norm, TOKENS, **how) for norm in (True, False))

    def _effects(self, found: References | None, own: Item | None) -> list[tuple[str, Effect]]:
        measured = []
        if found is not None:
            every = [line.number for line in self._lines(found.run["data"]["inputs"])]
            numbers = _spread(every, self.inputs)
            measured.append((f"{len(numbers)} lines, spread over the file", self._items(numbers)))
            ranked = found.of(self.part.name).relevance[: self.k]
            best = dict.fromkeys(r.line for r in ranked if r.value > 0)
            words = f"the {len(best)} lines where it is most relevant"
            measured += [(words, self._items(best))] if best else []
        if own is not None:
            measured.append(("the example", [own]))
        return [(words, self._effect(words, items)) for words, items in measured]

    def _effect(self, words: str, items: Sequence[Item]) -> Effect:
        self._tell(f"switching it off in {words}")
        draws = self.draws if size(_owner(self.model, self.part)) > 1 else 0
        return effect(self.model, items, self.part.name, method=self.method, draws=draws)

    # -- facts -------------------------------------------------------------------------------------

    def _tell(self, phase: str) -> None:
        if self.progress is not None:
            self.progress(phase, 0, 0)

    def _facts(self, found: References | None, example: Item | None) -> dict[str, str]:
        model = self.model
        said = {
            "model": model.name or "(unnamed)",
            "fingerprint": model.fingerprint(),
            "dtype": model.dtype,
            "site": self.part.site,
            "method": self.method.name,
        }
        if found is not None and self.corpus is not None:
            said["corpus"] = f"{shown(self.corpus.name)}, {found.run['data']['inputs']} lines"
            said["corpus hash"] = str(found.run["data"]["hash"])
        if example is not None:
            said["example"] = _said(example)
        return said


def _owner(model: Model, part: Part) -> Mlp | Attention:
    """The MLP, or the attention, that it belongs to."""
    owners: tuple[Mlp | Attention, ...] = (*model.components.mlps, *model.components.attentions)
    return next(owner for owner in owners if site_of(owner) == part.site)


def _said(example: Item) -> str:
    """Which it is: a line of the file, or the caller's."""
    number = example.name
    return f"line {number} of the corpus" if number.isdecimal() else number


def _spread(numbers: Sequence[int], count: int) -> list[int]:
    """So many of them, evenly spread, the first among them."""
    if len(numbers) <= count:
        return list(numbers)
    return [numbers[len(numbers) * n // count] for n in range(count)]


# -- names of tokens -------------------------------------------------------------------------------


def _axes(model: Model, owner: Attention, reading: Reading) -> tuple[list[str], list[str]]:
    """Of queries and of keys: those of a decoder, or of what is read."""
    if model.takes_images:
        return _patches(model), _patches(model)
    read = model.tokens(reading.input)
    if reading.prefix is None or owner.label.startswith("encoder."):
        return read, read
    said = model.tokens(reading.prefix)
    return said, read if owner.cross else said


def _patches(model: Model) -> list[str]:
    """Of a picture: learned tokens, then patches by row and column."""
    (height, width), (h, w) = model.config.image, model.config.patch
    places = [f"{i},{j}" for i in range(height // h) for j in range(width // w)]
    roles = [r.role for r in watched(model).records]
    learned = [name for name in ("class", "distillation") if f"{name}_token" in roles]
    return [*learned, *places]


def _place(model: Model, position: int) -> str:
    if not model.takes_images:
        return f"position {position}"
    name = _patches(model)[position]
    return f"patch {name}" if "," in name else f"the {name} token"
