"""Metagame: second order attribution, what token j adds to the relevance of token i

    phi_{j->i} = Shapley value of j in the game  S -> phi_i(S + i; x)       (arXiv 2605.06295, 2026)
    phi_{i->i} = phi_i({i}; x),       sum_j phi_{j->i} = phi_i(x)           exactly

phi is any first-order method, phi_i(S; x) the relevance it gives to token i of the input in which
the tokens out of S are masked: by an embedding of zeros, by that of a token, or by deletion. The
first-order relevance is unchanged; the pairs say how it comes about, and they are not symmetric. An
embedding keeps its position, and what the net reads off the ids (padding, the token a classifier
reads) stays that of the input.

Up to EXACT tokens every coalition is asked for, 2^T - 1 explanations; above, orders of the tokens
and their reverses are drawn (refl/methods/shapley.py), about T^2 / 2 coalitions each. For a table
of rules the masked copies run in batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from refl import arguments
from refl.answer import Found
from refl.edits import Edit, Whole
from refl.errors import ReflError, argument
from refl.explanation import MethodFacts
from refl.methods import copies, shapley
from refl.methods.base import Attribution, Method, Table
from refl.network import Network, Reading
from refl.question import Forward, Question, Target
from refl.rules import published
from refl.seeds import AnySeed

EXACT = 12
"""So many tokens and fewer: every coalition."""

PERMUTATIONS = 8
"""Orders drawn above, each with its reverse."""


@dataclass(frozen=True)
class Metagame(Attribution):
    """inner          the first-order method: a Method, or the name of a table of rules (the
                   option `inner` of an explanation takes any method's name)
    fill           what stands for a masked token: "zero", "mean", a token as in refl.methods.copies
                   ("mask", "pad", a text, an id), or "delete"
    permutations   orders to draw; None for every coalition up to EXACT tokens, and PERMUTATIONS
                   orders above
    draw           another number gives other orders
    """

    inner: Any = field(default_factory=lambda: Table(published.ATTNLRP))
    fill: str | int = "zero"
    permutations: int | None = None
    draw: int = 0

    name: ClassVar[str] = "metagame"
    summary: ClassVar[str] = (
        "second order: what each token adds to the relevance that a first-order method gives to "
        "each (pairs); relevance is that method's"
    )
    source: ClassVar[str] = "Metagame 2026, arXiv 2605.06295"
    passes: ClassVar[str] = (
        f"2^T explanations by the inner method to {EXACT} tokens; above, T^2 for a drawn order "
        "and its reverse"
    )
    conserved: ClassVar[str] = (
        "the pairs of a token add up to its relevance; the ledger is the inner method's"
    )

    def __post_init__(self) -> None:
        if isinstance(self.inner, str):
            object.__setattr__(self, "inner", Table(published.method(self.inner)))
        if isinstance(self.inner, Metagame) or not callable(getattr(self.inner, "explain", None)):
            raise arguments.expected("inner", "a first-order method", self.inner)
        if getattr(self.inner, "fill", None) == "delete":
            raise ReflError(
                f"{argument('inner')} is {self.inner.name}, which deletes tokens of an input where "
                "others are masked: give it another fill"
            )
        if self.permutations is not None:
            arguments.positive("permutations", self.permutations)
        if arguments.whole("draw", self.draw) < 0:
            raise arguments.expected("draw", "a whole number of at least 0", self.draw)

    def facts(self) -> MethodFacts:
        """With the inner method's name, and its options; its scores are the inner method's."""
        inner, facts = self.inner.facts(), super().facts()
        options, unit = facts.options | {"inner": inner.title}, "linearized"
        if isinstance(self.inner, Table) and self.inner.conditions:
            options["conditions"] = self.inner.conditions.said
        if isinstance(inner, MethodFacts):
            options["inner_options"], unit = dict(inner.options), inner.unit
        return replace(facts, options=options, score=inner.score, unit=unit)

    def refuse(self, network: Network) -> None:
        """Raises ReflError for nets that take pictures: the players are tokens."""
        if network.takes_images:
            raise ReflError(
                f"method {self.name} is a game of tokens, and {network.name or 'the model'} takes "
                "pictures: expected a model of text"
            )
        self.inner.refuse(network)

    def found(self, question: Question, forward: Forward, seed: AnySeed) -> Found:
        reading, target = forward.readings[0], seed.asked
        quiet = replace(question, progress=None)
        first = self.inner.explain(quiet, [reading], [target], ())[0]
        masked = _Masked(quiet, self.inner, forward, seed, self.fill)
        return Found(
            first.relevance,
            first.decoder_relevance,
            first.explained,
            first.recorded,
            pairs=self._pairs(masked, len(reading.input)),
        )

    def _pairs(self, game: shapley.Game, tokens: int) -> Any:  # -> (T, T)
        if self.permutations is None and tokens <= EXACT:
            return shapley.pairs(game, tokens)
        drawn = PERMUTATIONS if self.permutations is None else self.permutations
        return shapley.sampled_pairs(game, tokens, drawn, self.draw)


@dataclass(frozen=True)
class _Masked:
    """The game: coalitions (C, T) -> relevance (C, T) of the input with the others masked."""

    question: Question
    inner: Method
    forward: Forward
    seed: AnySeed
    fill: str | int

    @property
    def reading(self) -> Reading:
        return self.forward.readings[0]

    @property
    def target(self) -> Target:
        return self.seed.asked

    def __call__(self, coalitions: Any) -> Any:  # (C, T) bool -> (C, T)
        if self.fill == "delete":
            self._refuse_moved()
            return self._by_deletion(coalitions)
        if isinstance(self.inner, Table):
            return self._in_batches(self.inner, coalitions)
        return np.stack([self._one(coalition) for coalition in coalitions])

    def _in_batches(self, table: Table, coalitions: Any) -> Any:
        """A sweep of many copies, from leaves."""
        some = [copies.Copy(self.reading, self._leaves(c)) for c in coalitions]
        found = np.empty(coalitions.shape)
        for asked, numbers in copies.batches(self.question, some):
            batch, explainer = [some[n] for n in numbers], table.explainer(asked, ())
            run = asked.forward(
                [c.reading for c in batch], plain=explainer.plain, leaves=copies.stacked(batch)
            )
            explained = explainer.of(run, [self.target] * len(batch))
            found[numbers] = [e.relevance for e in explained]
        return found

    def _leaves(self, coalition: Any) -> Any:
        site, x = self.forward.embedded, self.forward.leaf(self.forward.embedded)[0]
        filling = self._filling
        return lambda: {site: np.where(coalition[:, None], x, filling)}

    def _one(self, coalition: Any) -> Any:  # (T,) bool -> (T,)
        """By a method that runs the net itself, as often as it likes: an edit masks every run."""
        site = self.forward.embedded
        if site in self.question.edits:
            raise ReflError(
                f"the edit of {site} is in the way of method metagame, which masks tokens there: "
                f"leave it out, or take a table of rules as {argument('inner')}"
            )
        present = coalition[:, None]
        factor = np.where(present, 1.0, 0.0)
        edit = Edit(factor=factor, amount=np.where(present, 0.0, self._filling))
        asked = replace(self.question, edits=Whole({**self.question.edits, site: edit}))
        return self.inner.explain(asked, [self.reading], [self.target], ())[0].relevance

    @property
    def _filling(self) -> Any:  # -> (T, D)
        return copies.filling(self.question.network, self.forward, self.forward.embedded, self.fill)

    def _refuse_moved(self) -> None:
        """Raises ReflError for conditions, whose tokens would be others."""
        if isinstance(self.inner, Table) and self.inner.conditions:
            raise ReflError(
                f"deletion moves the tokens, and {argument('conditions')} of the inner method "
                "choose among them by their numbers: take another fill"
            )

    def _by_deletion(self, coalitions: Any) -> Any:
        found = np.zeros(coalitions.shape)
        for asked, numbers in copies.batches(self.question, some := self._shortened(coalitions)):
            readings, targets = [some[n].reading for n in numbers], [self.target] * len(numbers)
            for n, e in zip(numbers, self.inner.explain(asked, readings, targets, ()), strict=True):
                found[n, coalitions[n]] = e.relevance
        return found

    def _shortened(self, coalitions: Any) -> Sequence[copies.Copy]:
        return [
            copies.deleted(self.question, self.reading, np.flatnonzero(~coalition).tolist())
            for coalition in coalitions
        ]
