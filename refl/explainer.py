"""One forward pass and the sweeps asked of it.

inputs -> forward on a trace -> logits (or a neuron) -> seed -> sweep -> an Explanation each
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np

from refl import arguments
from refl.anatomy import components
from refl.answer import Found, explanation
from refl.arrays import asnumpy, namespace
from refl.components import Part, is_name
from refl.conditions import Conditions
from refl.edits import INSIDE_ATTENTION, any_expert
from refl.errors import ReflError, argument, nearest_patterns, shown
from refl.explanation import Explanation, Sites, SitesOnDemand
from refl.io.images import PREPARATION, Preparation
from refl.network import Network, Reading
from refl.question import Forward, Question, Target
from refl.rules.composites import Composite, Rule
from refl.seeds import AnySeed
from refl.sweep import Sweep, Swept
from refl.trace import Trace


@dataclass
class Explainer:
    """A method that is a table of rules, asked of one forward pass; see Model.explain for each
    option.
    """

    question: Question
    composite: Composite
    keep: str | Sequence[str] | None = None
    audit: bool = False
    conditions: Conditions = field(default_factory=Conditions)

    def __post_init__(self) -> None:
        if self.network.takes_images:
            self.composite = with_pixel_bounds(
                self.composite, self.network.preparation, self.network.config.num_channels
            )
        refuse_beyond_dtype(self.composite, self.network.dtype)
        self.conditions = self.conditions.with_parts(is_name, self._part)
        self.patterns = () if self.keep is None else arguments.patterns(self.keep)
        self.audit = arguments.flag("audit", self.audit)

    @property
    def network(self) -> Network:
        return self.question.network

    def _part(self, name: str) -> Part:
        return components(self.network).part(name)

    def run(
        self, readings: Sequence[Reading], wanted: Sequence[Sequence[Target]]
    ) -> list[list[Explanation]]:
        """An Explanation per input for each list of targets, which has one per input. Where a
        neuron is explained, it stands in their place.
        """
        self.question.refuse(wanted)
        self.question.refuse_later("conditions", self.conditions.chosen)
        self.question.refuse_lengths(readings)
        if self.question.at is not None:
            wanted = wanted[:1]
        groups = self.question.groups(readings, alone=bool(self.conditions))
        found: list[list[Any]] = [[None] * len(readings) for _ in wanted]
        for number, group in enumerate(groups):
            members = [readings[b] for b in group]
            targets = [[row[b] for b in group] for row in wanted]
            part = (number * len(wanted), len(groups) * len(wanted))
            for row, explained in zip(found, self._batch(members, targets, part), strict=True):
                for b, e in zip(group, explained, strict=True):
                    row[b] = e
        return found

    def successive(self, readings: Sequence[Reading], targets: Sequence[int]) -> list[Explanation]:
        """An Explanation for each beginning of one text, given in the order of their lengths, from
        one forward of the longest: what a decoder computes for a token stays the same however its
        text goes on. Where it does not (dynamic rotary positions beyond those of training, edits),
        and where sites are kept or conditioned, whose shapes are those of the beginning, each is
        run on its own.
        """
        wanted: list[Target] = [(target, None) for target in targets]
        longest = max((len(reading.explained) for reading in readings), default=0)
        of_sites = self.patterns or self.conditions or self.question.edits
        if not readings or of_sites or self.network.batch_dependent(longest):
            runs = [self.run([r], [[w]]) for r, w in zip(readings, wanted, strict=True)]
            return [explained for ((explained,),) in runs]
        self.question.refuse([wanted])
        forward, count = self.forward(readings[-1:]), len(readings)
        return [
            self._explained(
                self.question.at_end_of(forward, reading), [target], (n, count), n == count - 1
            )[0]
            for n, (reading, target) in enumerate(zip(readings, wanted, strict=True))
        ]

    def _batch(
        self,
        readings: Sequence[Reading],
        wanted: Sequence[Sequence[Target]],
        part: tuple[int, int],
    ) -> list[list[Explanation]]:
        """The same of one batch. `part`: how many sweeps there were before, and how many in all."""
        forward = self.forward(readings)
        return [
            self._explained(forward, targets, (part[0] + n, part[1]), n == len(wanted) - 1)
            for n, targets in enumerate(wanted)
        ]

    def forward(self, readings: Sequence[Reading]) -> Forward:
        """A run of one batch. Raises ReflError for patterns and conditions that name nothing."""
        forward = self.question.forward(readings, plain=self.plain)
        self._refuse_strange(forward.trace)
        return forward

    @property
    def plain(self) -> bool:
        """Whether a site is named that only the plain form of attention has."""
        named = (*self.patterns, *self.conditions.chosen)
        at = () if self.question.at is None else (self.question.at[0],)
        return any(map(_fits_attention, (*named, *at)))

    def _refuse_strange(self, trace: Trace) -> None:
        """A pattern that names no site would keep nothing, and say nothing."""
        if {"*"}.issuperset(self.patterns) and not self.conditions:
            return
        names = self.network.sites() if self.question.recompute else trace.values
        self.conditions.refuse_strange(names)
        for pattern in self.patterns:
            if not fits_any(pattern, names):
                near = ", ".join(nearest_patterns(pattern, names)) or "none"
                raise ReflError(
                    f"{argument('keep')} names {shown(pattern)!r}, which is no site of this model; "
                    f"nearest: {near}"
                )

    # -- a sweep -----------------------------------------------------------------------------------

    def of(
        self, forward: Forward, targets: Sequence[Target], release: bool = True
    ) -> list[Explanation]:
        """An Explanation for each example of a run that is there already; its activations are let
        go of where they are not to be swept again. Raises ReflError where the relevance is not
        finite.
        """
        return self._explained(forward, targets, (0, 1), release)

    def _explained(
        self,
        forward: Forward,
        targets: Sequence[Target],
        part: tuple[int, int],
        last: bool,
    ) -> list[Explanation]:
        """An Explanation for each example, from one sweep."""
        seeds = self.question.seeds(forward, targets)
        swept = self._sweep(forward, seeds, part, last)
        with np.errstate(all="ignore"):  # what is not finite is refused below
            found = [self._found(forward, swept, b) for b in range(len(seeds))]
        for one in found:
            self._refuse_not_finite(one)
        sites = self._sites(forward, swept, seeds)
        explained = [
            explanation(
                self.question, forward, b, seed, replace(found[b], sites=sites[b]), self.composite
            )
            for b, seed in enumerate(seeds)
        ]
        for e in explained if self.conditions else ():
            e.about["conditions"] = self.conditions.said
        return explained

    def _sweep(
        self, forward: Forward, seeds: list[AnySeed], part: tuple[int, int], last: bool
    ) -> Swept:
        as_gradient = self.composite.formulation == "gradient_x_input"
        rows = self.question.starts(self.composite, forward, seeds)
        needed, tell = set(forward.input_sites()), self.question.tell
        each = len(forward.trace.records)
        done = iter(range(part[0] * each + 1, (part[0] + 1) * each + 1))
        sweep = Sweep(
            self.composite,
            keep=lambda names: (
                not needed.isdisjoint(names)
                or any(fnmatchcase(name, p) for p in self.patterns for name in names)
            ),
            release=last,
            audit=self.audit,
            progress=lambda: tell("sweep", next(done, 0), part[1] * each),
            conditions=self.conditions,
        )
        swept = self.question.sweep(forward, sweep, rows)
        lost = [seed.unpropagated(z) for seed, z in zip(seeds, forward.rows, strict=True)]
        if as_gradient and any(lost):
            site, amount = forward.explained.site, np.asarray(lost)
            swept.ledger = swept.ledger.absorbing(site, "stabilizer", amount)
        return swept

    def _refuse_not_finite(self, found: Found) -> None:
        """Relevance that is infinite or no number explains nothing."""
        scores, ledger = (found.relevance, found.decoder_relevance), found.ledger
        finite = all(np.isfinite(r).all() for r in scores if r is not None)
        if ledger is None or (finite and math.isfinite(ledger.conservation_error)):
            return
        where = next(
            (
                f"{e.site} (rule {e.rule})"
                for e in ledger
                if not math.isfinite(e.conservation_error)
            ),
            "the input",
        )
        raise ReflError(
            f"relevance is not finite in {self.network.dtype} from {where} down: use "
            f"{argument('dtype')} float64, or a larger stabilizer"
        )

    # -- what it found -----------------------------------------------------------------------------

    def _sites(self, forward: Forward, swept: Swept, seeds: Sequence[AnySeed]) -> list[Sites]:
        """What was kept of each example, as arrays of its own: an explanation of a batch does not
        hold the batch. Arrays of the batch are let go one by one.
        """
        form = self.composite.formulation
        if self.keep is None:
            return [
                SitesOnDemand(partial(self._every_site, reading, seed), form)
                for reading, seed in zip(forward.readings, seeds, strict=True)
            ]
        kept = {id(array) for array in swept.activations.values()}
        found: list[Sites] = [Sites({}, {}, swept.aliases, form) for _ in seeds]
        for group in ("propagated", "activations"):
            arrays = getattr(swept, group)
            for site in list(arrays):
                array = arrays.pop(site)
                for b, sites in enumerate(found):
                    getattr(sites, group)[site] = _own(array, b, kept if len(seeds) == 1 else set())
        return found

    def _every_site(self, reading: Reading, seed: AnySeed) -> Sites:
        """Of one input, from a run of its own."""
        again = replace(self, keep="*", question=replace(self.question, progress=None))
        return again.run([reading], [[seed.asked]])[0][0].sites

    def _found(self, forward: Forward, swept: Swept, b: int) -> Found:
        """Relevance and ledger of one example."""
        ledger, reading = swept.ledger.example(b), forward.readings[b]
        if self.network.takes_images:
            channels_last = (np.moveaxis(a, 0, -1) for a in _example(swept, forward.embedded, b))
            return Found(self._scores(*channels_last), ledger=ledger)
        written = None
        if reading.prefix is not None:
            written = self._tokens(swept, b, reading.prefix, forward.decoder_embedded[0])
        read = self._tokens(swept, b, reading.input, forward.embedded)
        return Found(read, written, ledger=ledger)

    def _tokens(self, swept: Swept, b: int, ids: list[int], site: str) -> Any:
        return self._scores(*_example(swept, site, b))[: len(ids)].copy()

    def _scores(self, propagated: Any, x: Any) -> Any:  # (T, D), (T, D) -> (T,)
        if self.composite.score == "norm":
            return lengths(propagated)
        return (
            propagated * x if self.composite.formulation == "gradient_x_input" else propagated
        ).sum(axis=-1)


def lengths(x: Any) -> Any:  # (T, D) -> (T,)
    """sqrt(sum_i x_i^2) of x over its largest: the squares of small numbers would be 0, those of
    large ones infinite.
    """
    largest = np.abs(x).max(axis=-1, keepdims=True)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1)
    return (scale * np.sqrt(np.square(x / scale).sum(axis=-1, keepdims=True)))[..., 0]


def _example(swept: Swept, site: str, b: int) -> tuple[Any, Any]:
    """What was propagated to a site, and its activation, of one example."""
    return asnumpy(swept.propagated[site][b, ...]), asnumpy(swept.activations[site][b, ...])


def refuse_beyond_dtype(composite: Composite, dtype: str) -> None:
    """Raises ReflError for an option that a dtype cannot hold: infinite there, or zero.

    A stabilizer is added as 2 eps [z >= 0] - eps, so twice an option has to be finite.
    """
    limits = np.finfo(dtype)
    for line in composite.rules:
        for key, value in line.options:
            for size in value if isinstance(value, (list, tuple)) else [value]:
                if _is_beyond(size, float(limits.max) / 2, float(limits.smallest_subnormal) / 2):
                    raise ReflError(
                        f"{argument(key)} is {arguments.received(size)}, which {dtype} cannot "
                        f"hold: expected a number from {float(limits.tiny):.1e} to "
                        f"{float(limits.max) / 2:.1e}, or {argument('dtype')} float64"
                    )


def _is_beyond(value: Any, largest: float, smallest: float) -> bool:
    if isinstance(value, (str, bool)) or value is None:
        return False
    return bool(abs(value) > largest or 0 < abs(value) <= smallest)


def fits_any(pattern: str, names: Iterable[str]) -> bool:
    """Whether a pattern names a site; which experts run is decided by the text."""
    plain = any_expert(pattern)
    return any(fnmatchcase(n, pattern) or fnmatchcase(any_expert(n), plain) for n in names)


def _own(array: Any, b: int, kept: set[int]) -> Any:
    """One example's part of an array; a copy where it would hold more than it is. `kept`: ids of
    arrays that are held anyway.
    """
    part = array[b if array.shape[0] > 1 else 0, ...]
    if not hasattr(part, "base"):  # a library that does not say what a part holds
        return part if array.shape[0] == 1 else namespace(part).asarray(part, copy=True)
    base = part
    while base.base is not None and id(base) not in kept:
        base = base.base
        if not hasattr(base, "base"):  # a mapped file
            return part.copy()
    return part if id(base) in kept or base.nbytes <= part.nbytes else part.copy()


def _fits_attention(pattern: str) -> bool:
    """Whether a pattern may name a site that only the plain form of attention has."""
    last = pattern.rpartition(".")[2]
    return not set("*?[]").isdisjoint(last) or last in INSIDE_ATTENTION


def with_pixel_bounds(
    composite: Composite, preparation: Preparation | None, channels: int
) -> Composite:
    """The composite with the bounds of pixels in every z_box line that has none of its own."""

    def filled(line: Rule) -> Rule:
        if line.rule != "z_box" or {"low", "high"} & {key for key, _ in line.options}:
            return line
        if preparation is None:
            raise ReflError(
                f"method {composite.name} needs the bounds of a pixel: there is no "
                f"{PREPARATION}, so give z_box low and high"
            )
        low, high = preparation.box(channels)
        return replace(line, options=(*line.options, ("low", low), ("high", high)))

    rules = tuple(map(filled, composite.rules))
    return composite if rules == composite.rules else replace(composite, rules=rules)
