"""Activation patching on pairs of inputs, and what approximates it

    exact       e = m(corrupted run with a := a_clean) - m(corrupted run)
    approximate e' = (a_clean - a_corrupted) . c,     c of the corrupted run

        attribution patching   c = dm/da                        (Nanda 2023; table `gradient`)
        RelP                   c = the coefficients of an LRP table in gradient x input form
                               (Rezaei Jafari et al. 2025, arXiv 2508.21258; table `relp`)

m is the metric: the logit of the clean input's answer less that of the corrupted input's. So a
component has a positive effect where the clean activation brings the clean answer back. A component
is what one site holds at one token: a block's output, its attention's, its MLP's.

How good an approximation is: its Pearson correlation with the exact effects over the components of
one kind, for each pair; then the mean over pairs and its standard error. Patched copies of the
corrupted input run in batches, each component in a copy of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from warnings import catch_warnings

import numpy as np

from refl import anatomy
from refl.arguments import received
from refl.arrays import asnumpy
from refl.edits import Edit, Edits
from refl.errors import ReflError, UnknownWords, argument
from refl.evaluation.correlation import pearson
from refl.methods import copies
from refl.model import Model
from refl.network import Reading
from refl.question import Forward, Question
from refl.rules import published
from refl.rules.composites import Composite
from refl.seeds import Seed

TABLES: dict[str, Composite] = {
    "relp": published.RELP,
    "attribution patching": published.GRADIENT,
}
"""What is judged by default."""


@dataclass(frozen=True)
class Pair:
    """Two inputs of equal length, and the metric: logit of `answer` less logit of `against`."""

    question: Question
    clean: Reading
    corrupted: Reading
    answer: int
    against: int

    @classmethod
    def read(
        cls,
        model: Model,
        clean: Any,
        corrupted: Any,
        answer: str | int,
        against: str | int,
        **how: Any,
    ) -> Pair:
        """`how`: position and batch_tokens of the Question. Raises ReflError for inputs of two
        lengths, and for what the model cannot read.
        """
        model.refuse_features("patching")
        question = Question(model, **how)
        first, second = model.readings([clean, corrupted])
        lengths = [model.lengths(reading) for reading in (first, second)]
        if lengths[0] != lengths[1]:
            raise ReflError(
                f"the inputs of a pair have {lengths[0][0]} and {lengths[1][0]} tokens: expected "
                "as many, for what one has at a token is put in place at the other's"
            )
        ids = model.output_id(answer), model.output_id(against)
        question.refuse([[ids]])
        return cls(question, first, second, *ids)

    @property
    def seed(self) -> Seed:
        return Seed("logit", self.answer, self.against)

    def metric(self, reading: Reading) -> float:
        """m of a run in which nothing is patched."""
        return self.seed.value(self.question.rows([reading])[0])


def pairs(model: Model, lines: Sequence[Mapping[str, Any]], **how: Any) -> list[Pair]:
    """Of lines with clean_prefix, patch_prefix, clean_answer and patch_answer (the format of Marks
    et al. 2024, arXiv 2403.19647): those that the model can read, without unknown words, with
    answers of one token and prefixes of one length. Raises ReflError for a line without one of
    these.
    """
    unknown, found = None if model.text is None else model.text.unknown, []
    for number, line in enumerate(lines):
        said = _said(number, line)
        with suppress(ReflError), catch_warnings(action="ignore", category=UnknownWords):
            pair = Pair.read(model, *said, **how)
            if unknown not in (*pair.clean.input, *pair.corrupted.input):
                found.append(pair)
    return found


KEYS = ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer")


def _said(number: int, line: Any) -> list[Any]:
    """Of a line, in the order of KEYS."""
    if not isinstance(line, Mapping):
        raise ReflError(
            f"line {number} of the pairs is {received(line)}: expected a mapping with "
            f"{', '.join(KEYS)}"
        )
    for key in KEYS:
        if line.get(key) is None:
            raise ReflError(
                f"line {number} of the pairs has no {key}: expected {', '.join(KEYS)} on each"
            )
    return [line[key] for key in KEYS]


# -- effects ---------------------------------------------------------------------------------------

Effects = dict[str, Any]
"""Site -> the effect of its component at each token, NumPy (T,)."""


def exact(pair: Pair, sites: Sequence[str]) -> Effects:
    """By a run for each component. Raises ReflError for a site that there is none of."""
    clean, before = activations(pair, pair.clean, sites), pair.metric(pair.corrupted)
    places = [(site, t) for site in sites for t in range(len(clean[site]))]
    some = [copies.Copy(pair.corrupted)] * len(places)
    y = copies.values(pair.question, pair.seed, some, _Patches(places, clean).edits)
    return _by_site(places, y - before)


def patched(pair: Pair, sites: Sequence[str]) -> float:
    """m of the corrupted run with these sites of the clean one in place, whole."""
    clean = activations(pair, pair.clean, sites)
    edits = {site: Edit(factor=0.0, amount=a) for site, a in clean.items()}
    return pair.seed.value(pair.question.rows([pair.corrupted], further=edits)[0])


def approximate(pair: Pair, sites: Sequence[str], table: Composite) -> Effects:
    """(a_clean - a_corrupted) . c, with the coefficients of a table in gradient x input form.
    Raises ReflError for a table in relevance form, and for a site that there is none of.
    """
    if table.formulation != "gradient_x_input":
        raise ReflError(
            f"method {table.name} is in relevance form, which has no coefficients: take a table in "
            "gradient x input form, such as relp"
        )
    run = pair.question.forward([pair.corrupted])
    # c is that of what is computed at a site: an edit of the site comes after it, and is in c
    clean, corrupted = _computed(pair.question.forward([pair.clean]), sites), _computed(run, sites)
    c = pair.question.gradients(run, [pair.seed], sites, table)
    return {site: ((clean[site] - corrupted[site]) * c[site][0]).sum(axis=-1) for site in sites}


def activations(
    pair: Pair, reading: Reading, sites: Sequence[str]
) -> dict[str, Any]:  # site -> NumPy (T, D)
    """What is read of each, edits of the model made. Raises ReflError for a site that there is none
    of.
    """
    forward = pair.question.forward([reading])
    _refuse_strange(forward, sites)
    return {site: forward.read_from(site)[0].copy() for site in sites}


def _computed(forward: Forward, sites: Sequence[str]) -> dict[str, Any]:
    _refuse_strange(forward, sites)
    return {site: asnumpy(forward.trace.values[site].array)[0].copy() for site in sites}


def _refuse_strange(forward: Forward, sites: Sequence[str]) -> None:
    for site in sites:
        if site not in forward.trace.values:
            raise ReflError(
                f"{argument('sites')} names {site!r}, which is no site of this model (inside a "
                "block there are none with recompute)"
            )


def _by_site(places: Sequence[tuple[str, int]], y: Any) -> Effects:
    sites = dict.fromkeys(site for site, _ in places)
    return {s: y[[n for n, (site, _) in enumerate(places) if site == s]] for s in sites}


@dataclass(frozen=True)
class _Patches:
    """Edits that put the clean activation in place: of each copy at one token of one site."""

    places: Sequence[tuple[str, int]]
    clean: Mapping[str, Any]

    def edits(self, numbers: Sequence[int]) -> Edits:
        here = [self.places[n] for n in numbers]
        return {site: self._edit(site, here) for site in dict.fromkeys(s for s, _ in here)}

    def _edit(self, site: str, places: Sequence[tuple[str, int]]) -> Edit:
        a = self.clean[site]
        where = np.zeros((len(places), len(a), 1), dtype=bool)
        for b, (of, t) in enumerate(places):
            where[b, t] = of == site
        return Edit(factor=np.where(where, 0.0, 1.0), amount=np.where(where, a, 0.0))


# -- agreement -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """Pearson correlations with exact patching, one a pair (nan where one is undefined)."""

    kind: str
    table: str
    correlations: tuple[float, ...]

    @property
    def defined(self) -> list[float]:
        return [r for r in self.correlations if not math.isnan(r)]

    @property
    def mean(self) -> float:
        """Over the pairs that have one."""
        return float(np.mean(self.defined)) if self.defined else math.nan

    @property
    def error(self) -> float:
        """Standard error of the mean; nan for fewer than two pairs."""
        found = self.defined
        return float(np.std(found, ddof=1)) / math.sqrt(len(found)) if len(found) > 1 else math.nan


def agreement(
    some: Sequence[Pair],
    tables: Mapping[str, Composite] = TABLES,
    kinds: Sequence[str] = anatomy.KINDS,
) -> list[Agreement]:
    """Of each table, for each kind of component. Raises ReflError as `approximate` does."""
    found: dict[tuple[str, str], list[float]] = {(k, t): [] for k in kinds for t in tables}
    sites = {kind: anatomy.sites(some[0].question.network, kind) for kind in kinds if some}
    for pair in some:
        for kind in kinds:
            truth = _row(exact(pair, sites[kind]))
            for name, table in tables.items():
                scores = _row(approximate(pair, sites[kind], table))
                found[kind, name].append(pearson(scores, truth))
    return [Agreement(kind, name, tuple(r)) for (kind, name), r in found.items()]


def _row(effects: Effects) -> Any:
    return np.concatenate(list(effects.values()))
