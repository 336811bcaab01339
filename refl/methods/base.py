"""What a method of attribution is. A table of rules and a sweep is one kind (`Table`); every other
kind is a file beside this one, its equation and its source on top, and a class made of

    name, summary, source     as `refl methods` prints them
    passes                    what it costs, in forward and backward passes
    conserved                 what adds up to what; what its ledger books
    options                   the fields of its dataclass, each checked when it is made
    found(question, forward, seed) -> Found
                              the relevance of one input: `forward` is a recorded run of it, `seed`
                              the output that is explained

`question` runs the net again as often as a method needs: from leaves of its own, with edits
(refl.question).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol

import numpy as np

from refl import arguments
from refl.answer import Found, explanation
from refl.conditions import Conditions
from refl.errors import ReflError, argument
from refl.explainer import Explainer
from refl.explanation import Explanation, MethodFacts
from refl.network import Network, Reading
from refl.question import Forward, Question, Target, answered
from refl.rules.composites import Composite
from refl.seeds import AnySeed


def no_attention(network: Network) -> ReflError:
    """For a method that reads attention, where there is none."""
    return ReflError(
        f"no attention is below what is explained in {network.name or 'the model'}: "
        "take a method that reads none, such as attnlrp"
    )


class Method(Protocol):
    """Anything that makes an attribution."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def source(self) -> str: ...

    @property
    def passes(self) -> str:
        """What it costs."""

    @property
    def conserved(self) -> str:
        """What adds up to what."""

    def facts(self) -> Composite | MethodFacts:
        """What an Explanation says of it."""

    def refuse(self, network: Network) -> None:
        """Raises ReflError for a net that it is not defined for."""

    def explain(
        self,
        question: Question,
        readings: Sequence[Reading],
        targets: Sequence[Target],
        keep: str | Sequence[str] | None = None,
        audit: bool = False,
    ) -> list[Explanation]:
        """An Explanation for each reading and its target."""


@dataclass(frozen=True)
class Table:
    """A composite and a sweep. `conditions`: what of a site goes on, where not all of it does."""

    composite: Composite
    conditions: Conditions = field(default_factory=Conditions)

    passes: ClassVar[str] = "1 forward, 1 sweep (as much as a backward pass)"
    conserved: ClassVar[str] = "all of it: tokens and what each rule absorbs, in the ledger"

    @property
    def name(self) -> str:
        return self.composite.name

    @property
    def summary(self) -> str:
        return self.composite.summary

    @property
    def source(self) -> str:
        return self.composite.source

    def facts(self) -> Composite:
        return self.composite

    def refuse(self, network: Network) -> None:
        """Rules are there for every operation of every net."""

    def explain(
        self,
        question: Question,
        readings: Sequence[Reading],
        targets: Sequence[Target],
        keep: str | Sequence[str] | None = None,
        audit: bool = False,
    ) -> list[Explanation]:
        return self.explainer(question, keep, audit).run(readings, [targets])[0]

    def explainer(
        self, question: Question, keep: str | Sequence[str] | None = None, audit: bool = False
    ) -> Explainer:
        """What sweeps."""
        return Explainer(question, self.composite, keep, audit, self.conditions)


@dataclass(frozen=True)
class Attribution:
    """A method that is no table of rules: one input at a time, from a recorded run of it."""

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    passes: ClassVar[str]
    conserved: ClassVar[str]
    unit: ClassVar[str] = "explained"
    """Of its scores: see MethodFacts."""
    plain: ClassVar[bool] = False
    """Whether it reads attention's scores and probabilities."""
    of_features: ClassVar[bool] = False
    """Whether it is defined where a decoder writes about log-mel features."""
    of_answers: ClassVar[bool] = False
    """Whether it explains several outputs as one number."""

    def facts(self) -> MethodFacts:
        """What an Explanation says of it, every option with its value."""
        options = {one.name: _plain(getattr(self, one.name)) for one in fields(self)}
        return MethodFacts(
            self.name, "attribution", self.source, self.summary, options=options, unit=self.unit
        )

    def refuse(self, network: Network) -> None:
        """Raises ReflError for a net that it is not defined for. By default for none."""

    def found(self, question: Question, forward: Forward, seed: AnySeed) -> Found:
        """The relevance of the one input of this run."""
        raise NotImplementedError

    def explain(
        self,
        question: Question,
        readings: Sequence[Reading],
        targets: Sequence[Target],
        keep: str | Sequence[str] | None = None,
        audit: bool = False,
    ) -> list[Explanation]:
        self._refuse_options(keep, audit)
        self._refuse_compared(question.network)
        self._refuse_features(question.network)
        self.refuse(question.network)
        question.refuse([targets])
        question.refuse_lengths(readings)
        self._refuse_answers(readings)
        explained, facts = [], self.facts()
        for n, (reading, target) in enumerate(zip(readings, targets, strict=True)):
            forward = question.forward([reading], plain=self.plain)
            (seed,) = question.seeds(forward, [target])
            found = self.found(question, forward, seed)
            self._refuse_found(question, reading, found)
            explained.append(explanation(question, forward, 0, seed, found, facts))
            question.tell(self.name, n + 1, len(readings))
        return explained

    def _refuse_compared(self, network: Network) -> None:
        if network.compares:
            raise ReflError(
                f"method {self.name} has scores of one input, and {network.name or 'the model'} "
                "compares a picture with texts: take a table of rules, such as attnlrp"
            )

    def _refuse_answers(self, readings: Sequence[Reading]) -> None:
        """Raises ReflError for an answer, where the method explains one output at a time."""
        if answered(readings) and not self.of_answers:
            raise ReflError(
                f"method {self.name} explains one output at a time, and an answer has several: "
                "take a table of rules, or explain_answer (refl answer), which explains each of "
                "its tokens"
            )

    def _refuse_found(self, question: Question, reading: Reading, found: Found) -> None:
        """Raises ReflError for scores that are not one finite number for each token or pixel."""
        pictures = question.network.takes_images
        read = reading.input.pixels.shape[1:] if pictures else (len(reading.input),)
        written = None if reading.prefix is None else (len(reading.prefix),)
        for scores, shape in ((found.relevance, read), (found.decoder_relevance, written)):
            given = None if scores is None else np.shape(scores)
            if given != shape:
                raise ReflError(
                    f"method {self.name} has scores of shape {given}: expected {shape}, one for "
                    "each token or pixel"
                )
            if shape is not None and not np.isfinite(scores).all():
                raise ReflError(
                    f"the scores of method {self.name} are not all finite in "
                    f"{question.network.dtype}: use {argument('dtype')} float64"
                )

    def _refuse_features(self, network: Network) -> None:
        if network.takes_features and not self.of_features:
            raise ReflError(
                f"method {self.name} is not defined for log-mel features: take a table of rules "
                "such as attnlrp, integrated-gradients, smoothgrad or occlusion"
            )

    def _refuse_options(self, keep: str | Sequence[str] | None, audit: bool) -> None:
        kept = () if keep is None else arguments.patterns(keep)
        for what, asked in (("keep", kept), ("audit", arguments.flag("audit", audit))):
            if asked:
                raise ReflError(
                    f"method {self.name} is no table of rules and has no sweep: leave "
                    f"{argument(what)} out"
                )


def _plain(value: Any) -> Any:
    """An option's value as a file has it: numbers, texts, and lists of them; a method's name."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    name = getattr(value, "name", None)
    return name if isinstance(name, str) else str(value)
