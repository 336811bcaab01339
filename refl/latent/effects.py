"""The effect of switching neurons or heads: predicted by relevance, and measured, beside as many
random ones.

    measured     f(x, z' in place of z) - f(x)
    predicted    sum_i c_i (z'_i - z_i),     z'_i = factor z_i + amount
                 = (factor - 1) sum_i R_i + amount sum_i c_i

over the entries i of the parts, at all positions or at those asked for; f is what is explained.
Both are the change of f: of a part that is switched off (factor 0) f is predicted to lose the
relevance, -R. R is what a table of rules gives the part, and c its coefficient,

    gradient x input form    c_i = g_i
    relevance form           c_i = R_i / z_i; at z_i = 0 there is none, and amount c_i is left out
                             there and counted (`undefined`); (factor - 1) R_i is not

A prediction is of first order, and exact where f is linear in what is switched (and the rules keep
what reaches it). Of parts in several blocks the relevance of one passes through another, and is
counted in both. Source: Achtibat et al. 2024 (arXiv 2402.05602), section 4.3, for switching; Nanda
2023 and Rezaei Jafari et al. 2025 (arXiv 2508.21258) for c (z' - z).

random      the same change of as many others of the same MLP (or attention), `draws` times: what
            a disturbance of that size does anyway. Of several inputs a draw is the same everywhere
intervals   BCa bootstrap (refl.evaluation.statistics), 95 %. Over inputs where there are two or
            more: what is random is first averaged over the draws of an input. Over draws where
            there is one input: then what is measured is one number, without an interval
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from refl import arguments
from refl.components import Components, Part
from refl.edits import Edit, Edits, constants, off
from refl.errors import ReflError, argument, shown
from refl.evaluation.statistics import interval, paired, summary
from refl.evaluation.subject import Item, Subject
from refl.explanation import Explanation
from refl.intervention import Positions, edits_of
from refl.io.images import is_one
from refl.latent.switching.pool import MOST_DRAWS, Change, Mean, Pool, each
from refl.ledger import UnknownSite
from refl.methods import Table, chosen
from refl.model import Model
from refl.show.lines import Line, grid, plain
from refl.show.numbers import decimals, strongest
from refl.show.text import printable

LEVEL = 0.95
"""Of the intervals."""


@dataclass(frozen=True, eq=False, repr=False)
class Effect:
    """What switching does to each input.

    parts        what is switched, by name, and change, how
    what         what is explained, in words, of each input
    before       f(x), NumPy (inputs,)
    predicted    by relevance, (inputs,), and measured, (inputs,)
    undefined    entries at which no coefficient is defined, (inputs,)
    random       measured of random parts, (inputs, draws)
    """

    parts: tuple[str, ...]
    change: str
    method: str
    positions: str
    inputs: tuple[str, ...]
    what: tuple[str, ...]
    before: Any
    predicted: Any
    undefined: Any
    measured: Any
    random: Any
    seed: int

    @property
    def over(self) -> str:
        """What the intervals are over: inputs or draws."""
        return "inputs" if len(self.inputs) > 1 else "draws"

    @cached_property
    def means(self) -> dict[str, Mean]:
        """Of predicted, measured and random, and of measured less random."""
        draws = self.random.shape[1]
        if self.over == "inputs":
            random = self.random.mean(axis=1) if draws else np.full(len(self.inputs), np.nan)
            measured = self.measured
        else:
            random, measured = self.random[0], np.full(draws, self.measured[0])
        less = paired(measured, random, LEVEL)
        return {
            "predicted": _mean(self.predicted),
            "measured": _mean(self.measured),
            "random": _mean(random),
            "measured less random": Mean(less.mean, less.low, less.high),
        }

    @property
    def as_large(self) -> float:
        """The fraction of draws whose mean change is as large as the measured, whatever the sign;
        nan without draws.
        """
        if not self.random.shape[1]:
            return float("nan")
        sizes = np.abs(self.random.mean(axis=0))
        return float(np.mean(sizes >= abs(self.measured.mean())))

    def __repr__(self) -> str:
        return (
            f"<Effect: {self._parts} {self.change}, predicted "
            f"{self.means['predicted'].mean:+.4g}, measured {self.means['measured'].mean:+.4g}, "
            f"random {self.means['random'].mean:+.4g}>"
        )

    def __str__(self) -> str:
        """The table."""
        return plain(self.lines())

    @property
    def _parts(self) -> str:
        names = ", ".join(self.parts[:4])
        return names if len(self.parts) <= 4 else f"{names} and {len(self.parts) - 4} more"

    def lines(self) -> list[Line]:
        """For a terminal."""
        places = decimals(strongest(m.mean for m in self.means.values()), 4)
        head = ["change of f", "mean", f"{LEVEL:.0%} interval"]
        table = [[(cell, "dim") for cell in head]]
        table += [[(cell, "") for cell in _row(n, m, places)] for n, m in self.means.items()]
        return [*self._said(), [], *grid(table, "lrr"), [], [(self._note(), "dim")]]

    def _said(self) -> list[Line]:
        where = "" if self.positions == "all" else f" at positions {self.positions}"
        several = f" (mean over {len(self.inputs)} inputs)" if self.over == "inputs" else ""
        what = self.what[0]
        if len(set(self.what)) > 1:
            what = f"what each input explains, such as {what}"
        return [
            [(printable(f"{self._parts}: {self.change}{where}"), "bold")],
            [(printable(f"f, {what}, is {self.before.mean():.6g}{several}"), "")],
        ]

    def _note(self) -> str:
        draws, without = self.random.shape[1], int(self.undefined.sum())
        said = f"predicted by {self.method}"
        if without:
            said += f", without {without} entries that are 0 and have no coefficient"
        if not draws:
            return f"{said}; no random draws"
        return (
            f"{said}; random: {draws} draws of as many others of the same MLP or attention, "
            f"{self.as_large:.0%} of them as large; intervals over {self.over}"
        )

    def as_dict(self) -> dict[str, Any]:
        """For a file: every number of every input and draw, and the means; None where there is no
        interval, or nothing random.
        """
        arrays = ("before", "predicted", "undefined", "measured", "random")
        plainly = ("change", "method", "positions", "seed", "over")
        means = {
            name: {end: _or_none(value) for end, value in vars(m).items()}
            for name, m in self.means.items()
        }
        return (
            {"parts": list(self.parts), "inputs": list(self.inputs), "what": list(self.what)}
            | {name: getattr(self, name) for name in plainly}
            | {name: getattr(self, name).tolist() for name in arrays}
            | {"level": LEVEL, "means": means, "as_large": _or_none(self.as_large)}
        )


def _mean(values: Any) -> Mean:  # (n,)
    known = np.asarray(values)[np.isfinite(values)]  # none without draws
    return Mean(summary(known).mean, *interval(known, LEVEL))


def _or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _row(name: str, m: Mean, places: int) -> list[str]:
    known = np.isfinite([m.low, m.high]).all()
    between = f"{m.low:+.{places}f} to {m.high:+.{places}f}" if known else "-"
    return [name, f"{m.mean:+.{places}f}" if np.isfinite(m.mean) else "-", between]


# -- asking ----------------------------------------------------------------------------------------


def effect(
    model: Model,
    items: Any,
    parts: str | Sequence[str],
    *,
    change: Edit = off,
    target: Any = None,
    contrast: Any = None,
    method: Any = "attnlrp",
    kind: str = "logit",
    draws: int = 20,
    seed: int = 0,
    positions: Positions = None,
) -> Effect:
    """What switching these parts together does to what is explained.

    items       an input (text, token ids, picture), a list of them, or refl.evaluation's Items,
                which have targets of their own
    parts       neurons or heads by name, L2.N17
    change      refl.off, refl.value(v) or refl.scale(f)
    target, contrast    as of model.explain; by default the likeliest output
    method      a table of rules, by name or as it is
    kind        logit or log-probability
    draws       of random parts; 0 for none. seed: another number draws others
    positions   the tokens at which; by default all of them

    Raises ReflError for names that nothing has, a change or a method that predicts nothing, and
    where a block has too few others to draw from.
    """
    names, table, seed = _names(parts), table_of(method), arguments.count("seed", seed)
    edits = edits_of(dict.fromkeys(names, _constant(change)), model.components, positions)
    asked, kind = _items(model, items, target, contrast), _kind(kind)
    pool = _pool(model.components, names)
    sets = _sets(pool, names, arguments.count("draws", draws, MOST_DRAWS), seed)
    subjects = [Subject.read(model, item, kind) for item in asked]
    explained = [_explained(table, subject, edits) for subject in subjects]
    told = np.array([predicted(e, edits) for e in explained]).reshape(-1, 2)
    how = Change(change.factor, change.amount, _tokens(positions))
    found = np.array([_changes(subject, pool, sets, how) for subject in subjects])
    return Effect(
        parts=tuple(names),
        change=_said(change),
        method=table.name,
        positions="all" if positions is None else arguments.received(positions),
        inputs=tuple(s.item.name for s in subjects),
        what=tuple(e.what for e in explained),
        before=np.array([s.value for s in subjects]),
        predicted=told[:, 0],
        undefined=told[:, 1].astype(np.int64),
        measured=found[:, 0],
        random=found[:, 1:],
        seed=seed,
    )


def _explained(table: Table, subject: Subject, edits: Edits) -> Explanation:
    """With the sites that are to be edited."""
    (e,) = table.explain(subject.question, [subject.reading], [subject.target], keep=list(edits))
    return e


def predicted(e: Explanation, edits: Edits) -> tuple[float, int]:
    """The change of what is explained by edits of these sites, which were kept; and the number of
    entries at which no coefficient is defined. An expert that did not run has nothing to change.
    Raises ReflError for an edit that does not fit.
    """
    change, undefined = 0.0, 0
    for site, edit in edits.items():
        with suppress(UnknownSite):
            z, r = e.activation(site), np.asarray(e[site], dtype=np.float64)
            factor, amount = constants(edit, z[None], site)  # type: ignore[arg-type]
            if factor is not None:
                change += float(((factor[0] - 1.0) * r).sum())
            if amount is not None:
                c = _coefficients(e, site, z, r)
                used = amount[0] != 0
                change += float((amount[0] * np.where(used & np.isfinite(c), c, 0.0)).sum())
                undefined += int((used & ~np.isfinite(c)).sum())
    return change, undefined


def _coefficients(e: Explanation, site: str, z: Any, r: Any) -> Any:  # nan where there is none
    if e.sites.formulation == "gradient_x_input":
        return np.asarray(e.gradient(site), dtype=np.float64)
    nowhere = np.full(r.shape, np.nan)
    with np.errstate(over="ignore"):  # infinite is no coefficient either
        return np.divide(r, z, out=nowhere, where=z != 0)


def _changes(subject: Subject, pool: Pool, sets: list[Any], change: Change) -> Any:  # -> (N,)
    """Of what is explained."""
    return np.array(each(subject, pool, sets, change, subject.seed.value)) - subject.value


# -- arguments -------------------------------------------------------------------------------------


def _names(parts: Any) -> list[str]:
    found = [parts] if isinstance(parts, str) else arguments.names(parts)
    if not found:
        raise arguments.expected(
            "parts", "the name of a neuron or a head, or a list of them", parts
        )
    for name in found:
        if found.count(name) > 1:
            raise ReflError(f"{argument('parts')} names {shown(name)} twice: name each once")
    return found


def table_of(method: Any) -> Table:
    """A method that gives neurons and heads relevance. Raises ReflError for any other."""
    table = chosen(method)
    if not isinstance(table, Table):
        raise ReflError(
            f"method {table.name} is no table of rules and gives neurons and heads no relevance: "
            "take one, such as attnlrp"
        )
    return table


def _constant(change: Any) -> Edit:
    plainly = isinstance(change, Edit) and change.index == (Ellipsis,)
    if not plainly or np.ndim(change.factor) or np.ndim(change.amount):
        raise arguments.expected(
            "change", "refl.off, refl.value(v) or refl.scale(f), with a number", change
        )
    return Edit(change.factor, change.amount)


def _kind(kind: Any) -> str:
    if isinstance(kind, str) and kind == "probability":
        raise ReflError(
            "the relevance of a probability is weighted by the softmax, so that it predicts no "
            f"change of it: {argument('kind')} has to be logit or log-probability"
        )
    return arguments.one_of("kind", kind, ("logit", "log-probability"))


def _tokens(positions: Positions) -> Any:
    if positions is None or isinstance(positions, slice):
        return positions
    one = arguments.as_whole(positions)
    return np.array([one] if one is not None else positions)


def _items(model: Model, items: Any, target: Any, contrast: Any) -> list[Item]:
    """Each with its target."""
    several = arguments.members(items) if not isinstance(items, Item) else [items]
    if several and all(isinstance(one, Item) for one in several):
        if target is not None or contrast is not None:
            raise ReflError(
                f"the items say what is explained: leave {argument('target')} and "
                f"{argument('contrast')} out"
            )
        return several
    single = is_one(items) if model.takes_images else arguments.is_single(items)
    inputs = [items] if single else list(items)
    wanted = model.targets(len(inputs), target, contrast)
    return [
        Item(str(n), one, a)
        if b is None or not isinstance(a, int)
        else Item(str(n), one, contrast=(a, b))
        for n, (one, (a, b)) in enumerate(zip(inputs, wanted, strict=True))
    ]


def _pool(components: Components, names: Sequence[str]) -> Pool:
    """Of the MLPs and attentions that the parts belong to."""
    parts: list[Part] = [components.part(name) for name in names]
    sites = {part.site for part in parts}
    owners = [m for m in components.mlps if m.neurons in sites]
    return Pool((*owners, *(a for a in components.attentions if a.context in sites)))


def _sets(pool: Pool, names: Sequence[str], draws: int, seed: int) -> list[Any]:
    """What is switched, then what is drawn beside it."""
    own = pool.numbers(names)
    beside = pool.beside(own, draws, np.random.default_rng(seed)) if draws else []
    return [own, *beside]


def _said(change: Edit) -> str:
    if change.factor == 0:
        return "off" if change.amount == 0 else f"at {change.amount:g}"
    return f"times {change.factor:g}" + (f" plus {change.amount:g}" if change.amount else "")
