"""Which neurons an answer hangs on: the k that a method ranks first are switched, and how often the
answer flips is counted.

    f         the logit of the answer less that of the foil; of a classifier the foil is by default
              the class that comes next
    flips     the answer was the target (f > 0; the likeliest class), and is it no more. Inputs that
              are not answered so at first are left out, and counted
    change    f once switched, less f

Rankings, of all neurons of all MLPs at once, the largest first:

    a table of rules    the sum over positions of the relevance R of f: signed, for neurons that
                        speak for the answer are those that it should not do without. Where fewer
                        than k are positive the least negative follow
    activation          the sum over positions of |z|
    random              k neurons of the whole net, drawn `draws` times

to="off"      at every position z' = 0
to="other"    z' is what the neuron is for the other answer. Where the data has a counterpart (an
              input of as many tokens whose answer is the foil): its z there, position by position.
              Of pictures: the mean z at the same position over the pictures whose answer is the
              foil. Else, of texts: the mean z over the inputs whose answer is the foil, at the
              explained position; ranking and change are then at that position alone
rank="input"  each input has a ranking of its own (the default)
rank="corpus" one ranking for all, by the mean over one half of the inputs; the other half is
              switched. Halves are drawn by hashes of the inputs

Beside each ranking as many random neurons of the same MLPs (refl.latent.switching.pool), none of
those that it chose, `draws` times. Numbers are means over inputs, those of random neurons first
over the draws of an input; intervals are 95 % BCa bootstrap over inputs, differences are paired.
Where no input flips, or every one, the bootstrap gives an interval without width: of n inputs up to
3/n may still do otherwise.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refl import arguments
from refl.components import size
from refl.errors import ReflError, argument, shown
from refl.evaluation.subject import Item
from refl.evaluation.tuning import split
from refl.latent.switching.inputs import Asked, asked, correct
from refl.latent.switching.pool import MOST_DRAWS, Change, Pool, Set, each
from refl.latent.switching.results import Switching
from refl.latent.switching.scores import first, ranked
from refl.latent.switching.turned import Other, other, switched_off
from refl.methods import Table, chosen
from refl.model import Model
from refl.question import Progress

BY = ("attnlrp", "cp-lrp", "input-x-gradient", "activation")
"""Rankings, by default."""

K = (1, 2, 4, 8, 16, 32, 64)
"""By default, as far as there are as many others to draw from."""

TO, RANK = ("off", "other"), ("input", "corpus")

FEW = 8
"""Neurons of a ranking that are told by name."""

ACTIVATION, RANDOM = "activation", "random"
"""Names beside those of methods."""


def switching(
    model: Model,
    items: Sequence[Item],
    by: Any = BY,
    k: Any = None,
    *,
    to: str = "off",
    rank: str = "input",
    draws: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> Switching:
    """Neurons switched by each ranking, for each k.

    by          tables of rules, by name or as they are, and "activation"
    k           how many neurons are switched, a number or several; by default 1, 2, 4, ... 64, as
                far as an MLP has as many others
    to, rank    as above
    draws       of random neurons, of each input, ranking and k; 0 for none
    seed        another number draws others
    progress    told how far it is: (phase, done, of)

    Raises ReflError for an item without a foil, for a method that is no table, and for more neurons
    than can be switched beside others.
    """
    pool = Pool.neurons(model.components)
    most = min(map(size, pool.owners)) // 2
    experiment = _Experiment(
        pool=pool,
        by=_rankings(by),
        k=_ks([n for n in K if n <= most] or [1] if k is None else k),
        rank=arguments.one_of("rank", rank, RANK),
        draws=arguments.count("draws", draws, MOST_DRAWS),
        seed=arguments.count("seed", seed),
        progress=arguments.progress(progress) or (lambda *_: None),
    )
    to = arguments.one_of("to", to, TO)
    experiment.refuse_many()
    read = experiment.read(model, items)
    some, left_out = correct(read), {}
    left_out["not answered so at first"] = len(read) - len(some)
    what = switched_off(some) if to == "off" else other(model, some, pool)
    if to == "other":
        left_out["without an input of the other answer"] = what.missing
    some, what = what.known(some)
    found = experiment.run(some, what)
    return Switching(model=model.name, to=to, how=what.said, left_out=left_out, **found)


# -- arguments -------------------------------------------------------------------------------------


def _rankings(by: Any) -> dict[str, Any]:
    """Name -> a table, or the name. Random neurons stand beside the others anyway."""
    names = arguments.members(by) if isinstance(by, (list, tuple)) else [by]
    found: dict[str, Any] = {}
    for one in names or []:
        ranking = one if isinstance(one, str) and one in (ACTIVATION, RANDOM) else chosen(one)
        name = ranking if isinstance(ranking, str) else ranking.name
        if name in found:
            raise ReflError(f"{argument('by')} names {shown(name)} twice: name each once")
        if not isinstance(ranking, (str, Table)):
            raise ReflError(
                f"method {name} is no table of rules and gives neurons no relevance: take one, "
                f"such as attnlrp, or {ACTIVATION}"
            )
        found[name] = ranking
    found.pop(RANDOM, None)
    if not found:
        raise arguments.expected("by", f"methods that are tables of rules, or {ACTIVATION}", by)
    return found


def _ks(k: Any) -> tuple[int, ...]:
    one = arguments.as_whole(k)
    several = [one] if one is not None else arguments.members(k) or []
    numbers = [arguments.as_whole(n) for n in several]
    found = {n for n in numbers if n is not None and n > 0}
    if not numbers or len(found) < len(numbers):
        raise arguments.expected("k", "whole numbers above 0, each once", k)
    return tuple(sorted(found))


# -- the experiment --------------------------------------------------------------------------------


class _Trial(NamedTuple):
    """Sets of neurons that are switched in an input, and whose numbers are averaged."""

    ranking: str
    beside: bool
    """Whether they are the random ones beside it."""
    place: int
    """Of k among the ks."""
    sets: list[Set]


Found = dict[tuple[str, bool], Any]
"""Ranking, and whether it is what stands beside it -> flips and change, (inputs, ks, 2)."""


@dataclass(frozen=True)
class _Experiment:
    pool: Pool
    by: dict[str, Any]
    k: tuple[int, ...]
    rank: str
    draws: int
    seed: int
    progress: Progress

    def refuse_many(self) -> None:
        """A ranking may choose all of its neurons in one MLP."""
        narrowest = min(self.pool.owners, key=size)
        most = size(narrowest) // 2 if self.draws else self.pool.count
        if self.k[-1] > most:
            why = "the neurons of the model"
            if self.draws:
                why = (
                    f"for {narrowest.label} has {size(narrowest)} neurons, and as many others of "
                    "an MLP are drawn as are switched"
                )
            raise arguments.expected("k", f"at most {most}, {why}", self.k[-1])

    def read(self, model: Model, items: Any) -> list[Asked]:
        """Raises ReflError where there is none."""
        every = arguments.members(items)
        if not every or not all(isinstance(item, Item) for item in every):
            raise arguments.expected(
                "items", "a list of refl.evaluation's Items, one or more", items
            )
        found = []
        for item in every:
            found.append(asked(model, item))
            self.progress("reading", len(found), len(every))
        return found

    def run(self, some: Sequence[Asked], what: Other) -> dict[str, Any]:
        """Fields of the results."""
        ranked_on, judged = self._halves(some)
        scores = self._scores(some, what, ranked_on)
        found, every = self._nothing(len(judged)), list[dict[str, Any]]()
        for row, n in enumerate(judged):
            at = n if self.rank == "input" else ranked_on[0]
            orders = {by: first(known[at], self.k[-1]) for by, known in scores.items()}
            every.append(orders)
            for trial, numbers in self._outcome(some[n], what.changes[n], orders, row):
                found[trial.ranking, trial.beside][row, trial.place] = numbers
            self.progress("switching", row + 1, len(judged))
        return self._numbers(found) | {
            "by": tuple(self.by),
            "k": self.k,
            "rank": self.rank,
            "draws": self.draws,
            "seed": self.seed,
            "inputs": tuple(some[n].subject.item.name for n in judged),
            "before": np.array([some[n].subject.value for n in judged]),
            "ranked_on": len(ranked_on) if self.rank == "corpus" else 0,
            "neurons": self.pool.count,
            "often": {by: self._often([orders[by] for orders in every]) for by in self.by},
        }

    def _often(self, orders: Sequence[Set]) -> list[tuple[str, float]]:
        """The neurons that are most often among the first few of an input, and of how many."""
        few = min(FEW, self.k[-1])
        counts = Counter(int(n) for place in range(few) for n in (o[place] for o in orders))
        return [(self.pool.names[n], c / len(orders)) for n, c in counts.most_common(few)]

    def _nothing(self, inputs: int) -> Found:
        keys = [(by, False) for by in self.by]
        if self.draws:
            keys += [(RANDOM, False), *((by, True) for by in self.by)]
        return {key: np.empty((inputs, len(self.k), 2)) for key in keys}

    @staticmethod
    def _numbers(found: Found) -> dict[str, Any]:
        def of(number: int, beside: bool) -> dict[str, Any]:
            return {
                by: a[..., number] for (by, is_beside), a in found.items() if is_beside == beside
            }

        beside = {"flips": of(0, True), "change": of(1, True)}
        return {"flips": of(0, False), "change": of(1, False), "beside": beside}

    # -- which neurons -----------------------------------------------------------------------------

    def _halves(self, some: Sequence[Asked]) -> tuple[list[int], list[int]]:
        """Numbers of the inputs that are ranked on, and of those that are switched."""
        every = list(range(len(some)))
        if self.rank == "input":
            return every, every
        if len(some) < 2:
            raise ReflError(
                "one input is left: expected two or more, to rank on a half of them, or "
                f"{argument('rank')} input"
            )
        held, _ = split([one.subject.item for one in some], len(some) // 2)
        names = set(map(id, held))
        ranked_on = [n for n in every if id(some[n].subject.item) in names]
        return ranked_on, [n for n in every if n not in set(ranked_on)]

    def _scores(
        self, some: Sequence[Asked], what: Other, ranked_on: Sequence[int]
    ) -> dict[str, dict[int, Any]]:
        """Ranking -> number of the input -> scores of all neurons; the mean of all of them under
        the first.
        """
        found: dict[str, dict[int, Any]] = {}
        for label, by in self.by.items():
            found[label] = {}
            for n in ranked_on:
                found[label][n] = ranked(some[n], self.pool, by, what.tokens[n])
                self.progress(f"ranking by {label}", len(found[label]), len(ranked_on))
            if self.rank == "corpus":
                found[label] = {ranked_on[0]: np.mean(list(found[label].values()), axis=0)}
        return found

    # -- what comes of it --------------------------------------------------------------------------

    def _outcome(
        self, one: Asked, change: Change, orders: Mapping[str, Any], row: int
    ) -> Iterator[tuple[_Trial, Any]]:
        """Each trial of an input, and the means of flips and change over its sets, (2,)."""
        trials = [*self._trials(orders, row)]
        sets = [one_set for trial in trials for one_set in trial.sets]
        found = np.array(each(one.subject, self.pool, sets, change, one.flips_and_change))
        start = 0
        for trial in trials:
            yield trial, found[start : (start := start + len(trial.sets))].mean(axis=0)

    def _trials(self, orders: Mapping[str, Any], row: int) -> Iterator[_Trial]:
        for place, k in enumerate(self.k):
            for label, order in orders.items():
                yield _Trial(label, False, place, [order[:k]])
                if self.draws:
                    beside = self.pool.beside(order[:k], self.draws, self._lots(label, k, row))
                    yield _Trial(label, True, place, beside)
            if self.draws:
                anywhere = self.pool.anywhere(k, self.draws, self._lots(RANDOM, k, row))
                yield _Trial(RANDOM, False, place, anywhere)

    def _lots(self, label: str, k: int, row: int) -> np.random.Generator:
        """Those of a ranking do not depend on which others there are."""
        return np.random.default_rng([self.seed, zlib.crc32(label.encode()), k, row])
