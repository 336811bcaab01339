"""What explain() returns: the relevance of every token and every site, the conservation ledger, and
how they are saved. How they are drawn is refl.show's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar

import numpy as np

from refl import arguments, patches
from refl.arguments import received
from refl.arrays import Array, asnumpy
from refl.components import Components
from refl.errors import LONGEST_REPR, ReflError, sentence
from refl.io import ORACLE_FORMAT, oracle
from refl.ledger import Ledger, UnknownSite
from refl.paths import Paths, Sinks, paths, sinks
from refl.ranking import Over, Ranking, ranked
from refl.rules.composites import Composite
from refl.rules.published import identified
from refl.targets import Span


@dataclass(frozen=True)
class MethodFacts:
    """What made an attribution without one of refl's tables of rules: a method of refl.methods, or
    another library.
    """

    name: str
    formulation: str = "relevance"
    source: str = ""
    summary: str = ""
    score: str = "sum"
    """As for a composite: how a token's features become one number."""
    options: dict[str, Any] = field(default_factory=dict)
    """Every option by its name, defaults too."""
    unit: str = "explained"
    """Of the scores: `explained`, that of the explained number; `linearized`, that of sum z dy/dz,
    y the explained number, as a table's; `nat`; `own`, any other: no part of what is explained.
    """

    @property
    def title(self) -> str:
        """As of a composite: its name."""
        return self.name

    def as_dict(self) -> dict[str, Any]:
        """For the oracle file: as of a composite, without rules."""
        return dict(vars(self))


@dataclass(frozen=True)
class Candidate:
    """A next token the model considered, or a class; probability is nan for what has none. Of an
    answer from token s to token e, in a text of T tokens, the id is s T + e.
    """

    token: str
    id: int
    logit: float
    probability: float


class Word(NamedTuple):
    """A word of the input: one token, or several that belong together."""

    text: str
    relevance: float
    """The sum of its tokens'."""
    start: int
    stop: int
    """Its tokens are those from start to stop, stop excluded."""


@dataclass(frozen=True, eq=False)
class Sites:
    """Arrays of the kept sites, of one example and without a batch axis; on whatever device they
    were computed.
    """

    propagated: Mapping[str, Array] = field(default_factory=dict)
    activations: Mapping[str, Array] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    formulation: str = "relevance"

    def canonical(self, name: Any) -> str:
        """The site of a name. Raises ReflError for a name that none of the kept has."""
        site = self.aliases.get(name, name) if isinstance(name, str) else name
        if not self.activations:
            raise UnknownSite(
                f"no site {received(name)} was kept, nor any other: a table of rules has sites, "
                "other methods have none"
            )
        if not isinstance(site, str) or site not in self.activations:
            raise UnknownSite(
                f"no site {received(name)} was kept: there are {len(self.activations)}, such as "
                f"{', '.join(list(self.activations)[:3])}"
            )
        return site

    def __repr__(self) -> str:
        return f"<Sites: {len(self.activations)} in {self.formulation} form>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied on the host."""
        arrays = (
            {s: asnumpy(a) for s, a in group.items()}
            for group in (self.propagated, self.activations)
        )
        return Sites, (*arrays, dict(self.aliases), self.formulation)


class SitesOnDemand(Sites):
    """Every site, computed again when the first is asked for: nothing is held before."""

    def __init__(self, again: Callable[[], Sites], formulation: str) -> None:
        vars(self).update(_again=again, formulation=formulation)

    def __repr__(self) -> str:
        return f"<Sites: every site on demand, in {self.formulation} form>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Sites:
        return self

    @cached_property
    def made(self) -> Sites:
        """The sites, from the same input, target and options."""
        found: Sites = vars(self).pop("_again")()
        return found

    @property
    def propagated(self) -> Mapping[str, Array]:
        return self.made.propagated

    @property
    def activations(self) -> Mapping[str, Array]:
        return self.made.activations

    @property
    def aliases(self) -> Mapping[str, str]:
        return self.made.aliases


T = TypeVar("T")


@dataclass(frozen=True)
class Known(Generic[T]):
    """What was asked for already."""

    known: T

    def __call__(self) -> T:
        return self.known


@dataclass(repr=False, eq=False)
class Explanation:
    """One explained output. Two are equal only if they are one: what they say is in `as_dict()`.

    tokens         the input's tokens, T strings
    input_ids      their ids
    relevance      float array (T,): each token's, in the unit of what is explained (a logit, say)
    target         the explained token; target_id, logit and probability are its own
    against        the token it is contrasted with, or None; against_logit is its logit
    word_starts    for each token whether a word starts there, None where nobody knows; `words()`
                   puts tokens together by them. decoder_word_starts: of what a decoder has written
    picture        for a net that takes images: uint8 (H, W, C), what it was given; then tokens is
                   empty and relevance (H, W), summed over channels
    patch          height and width of a patch of it; `patches` has the sums over each
    pixels, image  for a net that compares a picture with texts: relevance (H, W) of the picture's
                   pixels, and the picture as `picture`; tokens and relevance are those of the texts
    texts          how many tokens each of these texts has: they stand one behind the other
    types          token type ids, where somebody has said them
    attention_mask which tokens may be looked at (T,), or which query at which key (T, T), bool,
                   where somebody has said it
    position       which token's output is explained, counted from 0; None where that is no token's
    decoder_tokens, decoder_ids, decoder_relevance
                   the same three of what a decoder has written; None where there is none
    seed           logit, log-probability or probability; activation where a neuron is explained,
                   which has no probability (nan). Nor has an output that is no class: a number of
                   a regression, a feature. Classes that do not exclude each other have sigmoids
    explained      what the conservation ledger adds up to: sum of tokens + everything absorbed
    candidates     the most likely next tokens
    answer         the tokens of the answer where a whole one is explained, each with its logit and
                   its probability, None elsewhere: the last of `tokens` (of `decoder_tokens`).
                   `target` is its text, target_id its first token's, logit the sum of theirs,
                   probability their product
    method         what made it: a composite with every parameter; `composite` is the same
    recorded       the conservation ledger, None where the method keeps none; `ledger` is the same
    span           of a model that finds answers the first and the last token of the explained one,
                   counted from 0; None for the other where one is explained alone. `logit` is then
                   start and end logit together, `probability` that of both
    mean           of features: whether they are the mean over all tokens; vector: what their cosine
                   to is explained. The seed is then `coordinate` or `cosine`, `logit` the number
    pairs          float array (T, T) of a second-order method: pairs[i, j] is what token j adds to
                   the relevance of token i; a row adds up to it. None for any other

    `e[site]` is the relevance at a site, in the shape of its activation without the batch axis.
    """

    tokens: list[str]
    input_ids: list[int]
    relevance: Any
    target: str
    target_id: int
    logit: float
    probability: float
    against: str | None
    seed: str
    explained: float
    candidates: list[Candidate]
    method: Composite | MethodFacts
    recorded: Ledger | None
    about: dict[str, str] = field(default_factory=dict)
    sites: Sites = field(default_factory=Sites, repr=False)
    decoder_tokens: list[str] | None = None
    decoder_ids: list[int] | None = None
    decoder_relevance: Any = None
    against_logit: float | None = None
    word_starts: list[bool] | None = None
    decoder_word_starts: list[bool] | None = None
    picture: Any = None
    patch: tuple[int, int] | None = None
    types: list[int] | None = None
    position: int | None = None
    pairs: Any = None
    attention_mask: Any = None
    pixels: Any = None
    image: Any = None
    texts: list[int] | None = None
    answer: list[Candidate] | None = None
    span: tuple[int | None, int | None] | None = None
    mean: bool | None = None
    vector: Any = None
    fingerprint: Callable[[], str] = field(default=Known(""), repr=False)
    """Of the checkpoint: a hash of all its bytes, so it is formed only when it is asked for."""
    parts: Callable[[], Components | None] = field(default=Known(None), repr=False)
    """Of the net, as `components` has them: they take a run, so they wait to be asked for too."""

    def __repr__(self) -> str:
        """One line."""
        size = f"{len(self.tokens)} tokens"
        if self.picture is not None:
            size = f"a picture of {' x '.join(map(str, self.picture.shape[:2]))}"
        if self.image is not None:
            size = f"{size} and a picture of {' x '.join(map(str, self.image.shape[:2]))}"
        about = " ".join(filter(None, (self.about.get("model"), self.about.get("dtype"))))
        return sentence(
            f"<Explanation: {self.what} = {self.explained:.6g}, {self.method.title} on {size}"
            f"{about and f', {about}'}>",
            LONGEST_REPR,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Pickled with all that it offers: every site that is kept (by default every site there is,
        so give keep=() where that is too much), the net's components, and the fingerprint as it
        is now.
        """
        return vars(self) | {
            "fingerprint": Known(self.fingerprint()),
            "parts": Known(self.parts()),
        }

    @property
    def components(self) -> Components:
        """The blocks, neurons and heads of the net (refl.components). Raises ReflError where they
        are not known: in files of refl 0.3 and before, and of other libraries.
        """
        found = self.parts()
        if found is None:
            raise ReflError(
                "nothing is known of the net's blocks, neurons and heads: explain again, or ask "
                "for sites by their names"
            )
        return found

    @property
    def composite(self) -> Composite:
        """The table of rules. Raises ReflError where the method has none."""
        if isinstance(self.method, Composite):
            return self.method
        raise ReflError(
            f"method {self.method.name} is no table of rules: it is {self.method.source}"
        )

    @property
    def ledger(self) -> Ledger:
        """The conservation ledger. Raises ReflError where the method keeps none."""
        if self.recorded is None:
            raise ReflError(
                f"method {self.method.name} keeps no conservation ledger: its sites and the "
                "relevance of the input are all there is"
            )
        return self.recorded

    @property
    def provenance(self) -> dict[str, str]:
        """What this was computed by: versions, model, dtype, and the checkpoint's fingerprint."""
        return {"fingerprint": self.fingerprint()} | self.about

    @property
    def what(self) -> str:
        """The explained quantity in words."""
        if self.texts is not None and self.seed == "logit":
            return self._similarity
        if self.against is not None:
            return f"logit of {self.target!r} minus logit of {self.against!r}"
        if self.answer is not None and self.seed == "logit":
            return f"sum of the logits of {self.target!r}"
        if self.span is not None:
            return Span(*self.span).what(self.seed, self.target)
        if self.mean is not None:
            return self._of_features()
        return f"{self.seed} of {self.target!r}"

    def _of_features(self) -> str:
        """Features of what, in words."""
        of = "the picture's features" if self.picture is not None else "the mean of all features"
        if not self.mean and self.position is not None:
            at = self.position
            name = f" {self.tokens[at]!r}" if at < len(self.tokens) else ""
            of = f"the features of token {at}{name}"
        if self.seed == "coordinate":
            return f"coordinate {self.target_id} of {of}"
        return f"cosine of {of} to the vector"

    @property
    def _similarity(self) -> str:
        less = "" if self.against is None else f" minus that of {self.against!r}"
        return f"similarity of {self.target!r}{less} to the picture"

    @property
    def patches(self) -> Any:
        """The relevance of each patch of a picture, in rows and columns; pixels beyond the last
        whole patch are in none.
        """
        if self.patch is None:
            raise ReflError("the input is no picture: it has tokens and no patches")
        return patches.sums(self.relevance if self.pixels is None else self.pixels, self.patch)

    @property
    def of_picture(self) -> Self:
        """Where texts are compared with a picture: the same of the picture alone, as a net that
        takes images has it, to be drawn as its explanations are. Raises ReflError elsewhere.
        """
        if self.image is None:
            raise ReflError("no text is compared with a picture here: there is one input")
        alone: dict[str, Any] = {"tokens": [], "input_ids": [], "word_starts": None, "texts": None}
        both = {"picture": self.image, "relevance": self.pixels, "pixels": None, "image": None}
        return replace(self, **(alone | both))

    @property
    def of_texts(self) -> list[Self]:
        """The same of each text alone: its tokens and their relevance, to be drawn as those of a
        text are. Raises ReflError where none is compared with a picture.
        """
        if self.texts is None:
            raise ReflError("no text is compared with a picture here: there is one input")
        stops = list(accumulate(self.texts))
        return [
            self._of_tokens(slice(end - n, end)) for n, end in zip(self.texts, stops, strict=True)
        ]

    def _of_tokens(self, some: slice) -> Self:
        starts = None if self.word_starts is None else self.word_starts[some]
        tokens, ids = self.tokens[some], self.input_ids[some]
        part = {"tokens": tokens, "input_ids": ids, "relevance": self.relevance[some]}
        alone: dict[str, Any] = {"texts": [len(ids)], "pixels": None, "image": None}
        return replace(self, **part, word_starts=starts, **alone)

    def __getitem__(self, site: str) -> Any:
        """Relevance at a site. Raises ReflError for a site that was not kept or does not exist."""
        name = self.sites.canonical(site)
        propagated = asnumpy(self.sites.propagated[name])
        return (
            propagated * self.activation(site)
            if self.sites.formulation == "gradient_x_input"
            else propagated
        )

    def __iter__(self) -> Iterator[str]:
        """The kept sites, from the output down."""
        return iter(self.sites.activations)

    def activation(self, site: str) -> Any:
        """What the forward pass computed at a site."""
        return asnumpy(self.sites.activations[self.sites.canonical(site)])

    def gradient(self, site: str) -> Any:
        """The g of R = x g at a site; only for methods in gradient x input form."""
        if self.sites.formulation != "gradient_x_input":
            raise ReflError(
                f"method {self.method.name} is in relevance form, which has no gradients: take "
                "one in gradient x input form, such as attnlrp-gradient"
            )
        return asnumpy(self.sites.propagated[self.sites.canonical(site)])

    def words(self, decoder: bool = False) -> list[Word]:
        """The words of the input, or of what a decoder has written: pieces of one word together,
        the relevance of each the sum of its tokens'. Raises ReflError where nothing is known of
        words: for pictures, and in files of refl 0.2 and before.
        """
        decoder = arguments.flag("decoder", decoder)
        tokens, starts, scores = (
            (self.decoder_tokens, self.decoder_word_starts, self.decoder_relevance)
            if decoder
            else (self.tokens, self.word_starts, self.relevance)
        )
        if tokens is None or starts is None:
            raise ReflError(
                f"nothing is known of words in {'what a decoder wrote' if decoder else 'the input'}"
                ": explain a text, or token ids with a tokenizer"
            )
        first = [t for t, starting in enumerate(starts) if starting or t == 0]
        return [
            Word(_joined(tokens[a:b]), math.fsum(float(r) for r in scores[a:b]), a, b)
            for a, b in zip(first, [*first[1:], len(tokens)], strict=True)
        ]

    def top(
        self,
        pattern: str | None = None,
        k: int = 10,
        over: Over = "positions",
        by: str = "neuron",
        sign: str = "both",
    ) -> Ranking:
        """The k neurons, heads or blocks of the most relevance, by |R|, across the whole net at
        once (refl.ranking). `print` it for a table.

        pattern   of sites, with * and ?; None for all neurons of MLPs (heads of attentions, blocks)
        over      "positions": summed over them; a whole number: at that token, from the end if
                  negative; "each": each (neuron, position) by itself
        by        "neuron": an entry of a site's last axis; "head": one of the first of three axes,
                  its features summed; "block": all of a site
        sign      "positive" or "negative": only those

        It reads sites: by default every one is there, and refl.ranking.needed says which are enough
        for `keep`. Raises ReflError for arguments that are none of these, and for sites that were
        not kept.
        """
        return ranked(self, pattern, k, over, by, sign)

    def paths(self) -> Paths:
        """For every block what went through queries, keys, values, MLP and the residual stream, and
        what was absorbed, from the conservation ledger: no site has to be kept (refl.paths has the
        equations). Raises ReflError where there is no ledger, or nothing is known of blocks.
        """
        return paths(self)

    def sinks(self) -> Sinks:
        """For every block how much relevance lies on the first token at its output (attention
        sinks), beside the attention that this token receives. Raises ReflError where outputs of
        blocks were not kept.
        """
        return sinks(self)

    def experts(self) -> dict[str, float]:
        """Module path of each expert that ran -> the relevance of its term in the sum over experts,
        output times gate weight; in the order of the net.
        """
        return {
            site: float(amount)
            for site, amount in sorted(self.ledger.experts.items(), key=_numbered)
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything but the arrays of the sites, as plain numbers and strings."""
        return (
            {
                "format": ORACLE_FORMAT,
                "about": self.provenance,
                "method": self.method.as_dict(),
                "tokens": self.tokens,
                "input_ids": self.input_ids,
                "relevance": np.asarray(self.relevance).tolist(),
                "target": self.target,
                "target_id": self.target_id,
                "against": self.against,
                "seed": self.seed,
                "explained": self.explained,
                "logit": self.logit,
                "probability": _or_null(self.probability),
                "candidates": [
                    vars(c) | {"probability": _or_null(c.probability)} for c in self.candidates
                ],
                "ledger": None if self.recorded is None else self.recorded.as_dict(),
            }
            | self._decoder_dict()
            | self._known_dict()
        )

    def _known_dict(self) -> dict[str, Any]:
        """What not every explanation knows."""
        words = ("word_starts", "decoder_word_starts")
        known = ("against_logit", *words, "position", "types", "patch", "texts", "mean")
        names = ("pixels", *_FURTHER)
        arrays = {name: getattr(self, name) for name in names}
        found = {key: np.asarray(a).tolist() for key, a in arrays.items() if a is not None}
        found |= {} if self.span is None else {"span": list(self.span)}
        if self.answer is not None:
            found["answer"] = [vars(token) for token in self.answer]
        return found | {key: getattr(self, key) for key in known if getattr(self, key) is not None}

    def _decoder_dict(self) -> dict[str, Any]:
        if self.decoder_tokens is None:
            return {}
        return {
            "decoder_tokens": self.decoder_tokens,
            "decoder_ids": self.decoder_ids,
            "decoder_relevance": [float(r) for r in self.decoder_relevance],
        }

    def save(self, path: str | Path) -> None:
        """Write the oracle file (refl/io/oracle.py says what is in it). Raises ReflError where it
        cannot be written.
        """
        path = arguments.path("path", path)
        sites = {"activation": {s: self.activation(s) for s in self}}
        sites["relevance"] = {s: self[s] for s in self}
        if self.sites.formulation == "gradient_x_input":
            sites["gradient"] = {s: self.gradient(s) for s in self}
        arrays = self._arrays()
        facts = {key: value for key, value in self.as_dict().items() if key not in arrays}
        facts |= {"aliases": dict(self.sites.aliases), "patch": self.patch}
        facts |= {"types": self.types, "position": self.position}
        facts |= {} if self.texts is None else {"texts": self.texts}
        parts = self.parts()
        facts |= {} if parts is None else {"components": parts.as_dict()}
        oracle.save(path, oracle.Oracle(facts, arrays, sites))

    def _arrays(self) -> dict[str, Any]:
        """Those of the input, and of what a decoder has written."""
        arrays = {
            "input_ids": np.asarray(self.input_ids, dtype=np.int64),
            "relevance": np.asarray(self.relevance),
        }
        if self.picture is not None:
            arrays["picture"] = self.picture
        for name in _FURTHER:
            if getattr(self, name) is not None:
                arrays[name] = np.asarray(getattr(self, name))
        if self.image is not None:
            arrays |= {"pixels": np.asarray(self.pixels), "image": self.image}
        if self.decoder_ids is not None:
            arrays["decoder_ids"] = np.asarray(self.decoder_ids, dtype=np.int64)
            arrays["decoder_relevance"] = np.asarray(self.decoder_relevance)
        return arrays

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """An oracle file as it was saved: every number, site and entry of the conservation ledger.
        Raises ReflError for a file that is none.
        """
        path = arguments.path("path", path)
        content = oracle.load(path)
        try:
            return cls(**_fields(content))
        except (KeyError, TypeError, ValueError, AttributeError) as reason:
            raise oracle.refused(path, reason) from reason


_FURTHER = ("pairs", "vector", "attention_mask")
"""Arrays that not every explanation has."""

_PLAIN = ("tokens", "target", "target_id", "logit", "against", "seed", "explained", "about")


def _fields(content: oracle.Oracle) -> dict[str, Any]:
    """The fields of an Explanation from an oracle file."""
    facts, arrays = content.facts, content.arrays
    method, ledger = _method(facts["method"]), facts["ledger"]
    return {key: facts[key] for key in _PLAIN} | {
        "input_ids": [int(i) for i in arrays["input_ids"]],
        "relevance": arrays["relevance"],
        "probability": _or_nan(facts["probability"]),
        "candidates": _candidates(facts["candidates"]),
        "answer": _candidates(facts["answer"]) if facts.get("answer") else None,
        "method": method,
        "recorded": None if ledger is None else Ledger.from_dict(ledger),
        "sites": _sites(content, method.formulation),
        "decoder_tokens": facts.get("decoder_tokens"),
        "against_logit": facts.get("against_logit"),
        "word_starts": facts.get("word_starts"),
        "decoder_word_starts": facts.get("decoder_word_starts"),
        "decoder_ids": [int(i) for i in arrays["decoder_ids"]] if "decoder_ids" in arrays else None,
        "decoder_relevance": arrays.get("decoder_relevance"),
        "picture": arrays.get("picture"),
        "pairs": arrays.get("pairs"),
        "attention_mask": arrays.get("attention_mask"),
        "pixels": arrays.get("pixels"),
        "image": arrays.get("image"),
        "texts": facts.get("texts"),
        "span": None if facts.get("span") is None else tuple(facts["span"]),
        "mean": facts.get("mean"),
        "vector": arrays.get("vector"),
        "patch": None if facts["patch"] is None else tuple(facts["patch"]),
        "types": facts.get("types"),
        "position": facts.get("position"),
        "parts": Known(_components(facts.get("components"))),
    }


def _candidates(said: list[dict[str, Any]]) -> list[Candidate]:
    return [Candidate(c["token"], c["id"], c["logit"], _or_nan(c["probability"])) for c in said]


def _components(said: dict[str, Any] | None) -> Components | None:
    return None if said is None else Components.from_dict(said)


def _or_null(p: float) -> float | None:
    """JSON has no nan."""
    return None if math.isnan(p) else p


def _or_nan(p: float | None) -> float:
    return math.nan if p is None else p


_LONE_BYTES = re.compile("(?:<0x[0-9A-F]{2}>)+")


def _joined(tokens: Sequence[str]) -> str:
    """The text of a word: pieces without their marks, bytes of one character put together."""
    text = tokens[0] + "".join(t.removeprefix("##") for t in tokens[1:])
    return _LONE_BYTES.sub(_character, text).removesuffix("</w>").strip() or text


def text_of(tokens: Sequence[str], starts: Sequence[bool] | None) -> str:
    """The text of some tokens, a blank between its words."""
    first = [t for t in range(len(tokens)) if t == 0 or starts is None or starts[t]]
    ends = [*first[1:], len(tokens)]
    return " ".join(_joined(tokens[a:b]) for a, b in zip(first, ends, strict=True))


def _character(found: re.Match[str]) -> str:
    raw = bytes.fromhex(found[0].replace("<0x", "").replace(">", ""))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return found[0]


def _method(said: dict[str, Any]) -> Composite | MethodFacts:
    if "rules" in said:
        return identified(Composite.from_dict(said))
    return MethodFacts(**{key: said[key] for key in vars(MethodFacts("")) if key in said})


def _sites(content: oracle.Oracle, formulation: str) -> Sites:
    group = "gradient" if formulation == "gradient_x_input" else "relevance"
    sites = content.sites
    return Sites(sites[group], sites["activation"], content.facts["aliases"], formulation)


def _numbered(item: tuple[str, Any]) -> list[tuple[int, str]]:
    """A key that sorts `layers.2` before `layers.10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in item[0].split(".")]
