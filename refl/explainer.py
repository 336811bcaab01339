"""One forward pass and the sweeps asked of it.

inputs -> forward on a trace -> logits (or a neuron) -> seed -> sweep -> an Explanation each
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache, partial
from itertools import chain
from typing import Any

import numpy as np

from refl import arguments
from refl.arrays import asnumpy, namespace
from refl.batching import TOKENS, grouped
from refl.device import blas
from refl.errors import ReflError, argument, nearest, shown
from refl.explanation import Candidate, Explanation, Sites, SitesOnDemand
from refl.io.images import PREPARATION, Preparation
from refl.ledger import DESTINATIONS, Ledger
from refl.network import Network, Reading, refuse_overflow
from refl.rules.composites import Composite, Rule
from refl.seeds import Seed, probabilities
from refl.show.explanation import ShownExplanation
from refl.sweep import Sweep, Swept
from refl.trace import Trace, Value
from refl.version import __version__

Progress = Callable[[str, int, int], object]
"""(phase, done, of)"""

Target = tuple[int | None, int | None]
"""The output to explain, None for the largest; and the one it is contrasted with, or None."""

NO_SOFTMAX = {
    "sigmoid": "each of its classes is there or not by itself",
    "none": "its outputs are numbers, not classes",
}
"""What outputs are that are no alternatives."""

CANDIDATES = 5
"""How many of the likeliest outputs an explanation names."""


@dataclass(frozen=True)
class Forward:
    """What ran: the trace, what is explained in it, and where its inputs are."""

    trace: Trace
    explained: Value
    """The logits; or the value of a site, whose neurons are explained as logits are."""
    rows: Any
    """The same as NumPy (B, V)."""
    readings: Sequence[Reading]
    """Of each example."""
    embedded: str
    """Site of the input's embeddings, or of the pixels."""
    decoder_embedded: list[str]
    """Site of a decoder's embeddings, where there is one."""
    positions: Sequence[int] | None
    """Of each example the token whose output is explained; None where it is no token's."""

    def input_sites(self) -> set[str]:
        return {self.embedded, *self.decoder_embedded}


@dataclass
class Explainer:
    """What is asked of one forward pass; see Model.explain for each option."""

    network: Network
    composite: Composite
    keep: str | Sequence[str] | None = None
    recompute: bool = False
    audit: bool = False
    progress: Progress | None = None
    position: int | None = None
    at: tuple[str, Sequence[int]] | None = None
    batch_tokens: int = TOKENS

    def __post_init__(self) -> None:
        if self.network.takes_images:
            self.composite = with_pixel_bounds(
                self.composite, self.network.preparation, self.network.config.num_channels
            )
        refuse_beyond_dtype(self.composite, self.network.dtype)
        self.patterns = () if self.keep is None else arguments.patterns(self.keep)
        self.batch_tokens = arguments.positive("batch_tokens", self.batch_tokens)
        self.recompute = arguments.flag("recompute", self.recompute)
        self.audit = arguments.flag("audit", self.audit)
        if self.at is not None:
            self.at = arguments.neuron(self.at)
        if self.progress is not None and not callable(self.progress):
            raise arguments.expected("progress", "a function (phase, done, of)", self.progress)

    def run(
        self, readings: Sequence[Reading], wanted: Sequence[Sequence[Target]], kind: str
    ) -> list[list[Explanation]]:
        """An Explanation per input for each list of targets, which has one per input. Where a
        neuron is explained, it stands in their place.
        """
        self._refuse_seeds(wanted, kind)
        self._refuse_lengths(readings)
        lengths = [self.network.lengths(reading) for reading in readings]
        groups = grouped(lengths, self.batch_tokens, self.network.batch_dependent)
        found: list[list[Any]] = [[None] * len(readings) for _ in wanted]
        for number, group in enumerate(groups):
            members = [readings[b] for b in group]
            targets = [[row[b] for b in group] for row in wanted]
            part = (number * len(wanted), len(groups) * len(wanted))
            for row, explained in zip(
                found, self._batch(members, targets, kind, part), strict=True
            ):
                for b, e in zip(group, explained, strict=True):
                    row[b] = e
        return found

    def successive(
        self, readings: Sequence[Reading], targets: Sequence[int], kind: str
    ) -> list[Explanation]:
        """An Explanation for each beginning of one text, given in the order of their lengths, from
        one forward of the longest: what a decoder computes for a token stays the same however its
        text goes on. Where it does not (dynamic rotary positions beyond those of training), and
        where sites are kept, whose shapes are those of the beginning, each is run on its own.
        """
        wanted = [(target, None) for target in targets]
        longest = max((len(reading.explained) for reading in readings), default=0)
        if not readings or self.patterns or self.network.batch_dependent(longest):
            runs = [self.run([r], [[w]], kind) for r, w in zip(readings, wanted, strict=True)]
            return [explained for ((explained,),) in runs]
        self._refuse_seeds([wanted], kind)
        forward, count = self._forward(readings[-1:]), len(readings)
        return [
            self._explained(self._at(forward, reading), [target], kind, (n, count), n == count - 1)[
                0
            ]
            for n, (reading, target) in enumerate(zip(readings, wanted, strict=True))
        ]

    def _batch(
        self,
        readings: Sequence[Reading],
        wanted: Sequence[Sequence[Target]],
        kind: str,
        part: tuple[int, int],
    ) -> list[list[Explanation]]:
        """The same of one batch. `part`: how many sweeps there were before, and how many in all."""
        forward = self._forward(readings)
        if self.at is not None:
            wanted = [[(self._neuron(forward, *self.at), None)] * len(readings)]
        return [
            self._explained(forward, targets, kind, (part[0] + n, part[1]), n == len(wanted) - 1)
            for n, targets in enumerate(wanted)
        ]

    def _refuse_lengths(self, readings: Sequence[Reading]) -> None:
        if (
            self.at is not None
            and len({self.network.lengths(reading)[-1] for reading in readings}) > 1
        ):
            raise ReflError(
                f"{argument('at=')} explains one neuron in inputs of one length: give the others "
                "on their own"
            )

    def _refuse_seeds(self, wanted: Sequence[Sequence[Target]], kind: str) -> None:
        """What contradicts itself is refused before anything runs."""
        for target, against in chain.from_iterable(wanted):
            Seed(kind, -1 if target is None else target, against)
        if kind != "logit" and self.network.probability != "softmax":
            raise ReflError(
                f"the {argument('seed')} {kind!r} is that of a softmax, by which "
                f"{self.network.name or 'the model'} has no probabilities "
                f"({NO_SOFTMAX[self.network.probability]}): take 'logit'"
            )

    # -- the forward pass --------------------------------------------------------------------------

    def _forward(self, readings: Sequence[Reading]) -> Forward:
        network, (site, *_) = self.network, self.at or (None,)
        inputs = [reading.input for reading in readings]
        prefixes = [r.prefix for r in readings if r.prefix is not None] or None
        types = [r.types for r in readings if r.types is not None] or None
        if site is None:
            self._refuse_headless()
        plain = any(map(_fits_attention, self.patterns if site is None else (*self.patterns, site)))
        trace = Trace(network.weights, plain=plain, recompute=self.recompute)
        batch = network.batch(
            inputs,
            self.position,
            every=site is not None,
            decoder_prefix=prefixes,
            types=types,
        )
        logits = network.forward(trace, batch)
        self._refuse_strange_patterns(trace)
        explained = logits if site is None else self._value(trace, site)
        embedded = [r.output.site for r in trace.records if r.role in DESTINATIONS]
        return Forward(
            trace=trace,
            explained=explained,
            rows=asnumpy(explained.array).reshape(len(inputs), -1),
            readings=readings,
            embedded=embedded[0],
            decoder_embedded=embedded[1:],
            positions=batch.rows,
        )

    def _at(self, forward: Forward, reading: Reading) -> Forward:
        """The same forward, with the logits at the end of a beginning of its text: what comes after
        the choice of a row is recorded anew.
        """
        position = len(reading.explained) - 1
        with np.errstate(all="ignore"):
            trace = forward.trace.at_rows((position,))
        explained = trace.records[-1].output
        refuse_overflow(trace, explained, self.network.dtype)
        return replace(
            forward,
            trace=trace,
            explained=explained,
            rows=asnumpy(explained.array).reshape(1, -1),
            readings=[reading],
            positions=[position],
        )

    def _refuse_strange_patterns(self, trace: Trace) -> None:
        """A pattern that names no site would keep nothing, and say nothing."""
        if {"*"}.issuperset(self.patterns):
            return
        names = self.network.sites() if self.recompute else trace.values
        for pattern in self.patterns:
            if not fits_any(pattern, names):
                near = ", ".join(nearest_patterns(pattern, names)) or "none"
                raise ReflError(
                    f"{argument('keep')} names {shown(pattern)!r}, which is no site of this model; "
                    f"nearest: {near}"
                )

    def _refuse_headless(self) -> None:
        if self.network.task == "features":
            raise ReflError(
                f"{self.network.name or 'the model'} is a checkpoint without a head, so there is "
                "no output to explain: take one with a head, or explain a neuron with "
                f"{argument('at=')} (its site, and its index there)"
            )

    def _value(self, trace: Trace, site: str) -> Value:
        if site not in trace.values:
            near = ", ".join(nearest(site, trace.values, 3))
            inside = " (inside a block there are none with recompute)" if self.recompute else ""
            raise ReflError(
                f"{argument('at=')} names {shown(site)!r}, which is no site of this model{inside}; "
                f"nearest: {near}"
            )
        return trace.values[site]

    def _neuron(self, forward: Forward, site: str, index: Sequence[int]) -> int:
        """Which of the explained value's numbers, counted in one row, is meant."""
        shape = forward.explained.array.shape[1:]
        if len(index) != len(shape) or not all(
            -n <= i < n for i, n in zip(index, shape, strict=True)
        ):
            raise ReflError(
                f"{argument('at=')} has the index {tuple(index)} at {site}, "
                f"whose shape is {tuple(shape)}"
            )
        return int(np.ravel_multi_index([i % n for i, n in zip(index, shape, strict=True)], shape))

    # -- a sweep -----------------------------------------------------------------------------------

    def _explained(
        self,
        forward: Forward,
        targets: Sequence[Target],
        kind: str,
        part: tuple[int, int],
        last: bool,
    ) -> list[Explanation]:
        """An Explanation for each example, from one sweep."""
        seeds = [
            Seed(kind, int(z.argmax()) if target is None else target, against)
            for z, (target, against) in zip(forward.rows, targets, strict=True)
        ]
        with np.errstate(all="ignore"):  # what goes wrong is said in a sentence, by its site
            swept = self._sweep(forward, seeds, part, last)
            inputs = [self._input(forward, swept, b) for b in range(len(seeds))]
        ledgers = [swept.ledger.example(b) for b in range(len(seeds))]
        for fields, ledger in zip(inputs, ledgers, strict=True):
            self._refuse_not_finite(fields, ledger)
        sites = self._sites(forward, swept, seeds)
        return [
            self._explanation(forward.rows[b], seed, inputs[b], ledgers[b], sites[b])
            for b, seed in enumerate(seeds)
        ]

    def _sweep(
        self, forward: Forward, seeds: list[Seed], part: tuple[int, int], last: bool
    ) -> Swept:
        as_gradient = self.composite.formulation == "gradient_x_input"
        form = Seed.gradient if as_gradient else Seed.relevance
        rows = np.stack([form(seed, z) for seed, z in zip(seeds, forward.rows, strict=True)])
        start = self.network.place(rows.reshape(forward.explained.array.shape))
        needed = forward.input_sites()
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
            progress=lambda: (
                self.progress and self.progress("sweep", next(done, 0), part[1] * each)
            ),
        )
        self.network.refuse_changed()  # the sweep reads the weights again
        swept = sweep.run(forward.trace, forward.explained, start)
        lost = [seed.unpropagated(z) for seed, z in zip(seeds, forward.rows, strict=True)]
        if as_gradient and any(lost):
            site, amount = forward.explained.site, np.asarray(lost)
            swept.ledger = swept.ledger.absorbing(site, "stabilizer", amount)
        return swept

    def _refuse_not_finite(self, fields: dict[str, Any], ledger: Ledger) -> None:
        """Relevance that is infinite or no number explains nothing."""
        scores = [fields[key] for key in ("relevance", "decoder_relevance") if key in fields]
        if all(np.isfinite(r).all() for r in scores) and math.isfinite(ledger.conservation_error):
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

    def _sites(self, forward: Forward, swept: Swept, seeds: Sequence[Seed]) -> list[Sites]:
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

    def _every_site(self, reading: Reading, seed: Seed) -> Sites:
        """Of one input, from a run of its own."""
        again = replace(self, keep="*", progress=None)
        kind = "logit" if self.at is not None else seed.kind
        return again.run([reading], [[(seed.target, seed.against)]], kind)[0][0].sites

    def _explanation(
        self, z: Any, seed: Seed, fields: dict[str, Any], ledger: Ledger, sites: Sites
    ) -> Explanation:
        return ShownExplanation(
            **fields,
            **self._output(z, seed),
            explained=ledger.explained,
            method=self.composite,
            recorded=ledger,
            about=self._about(),
            fingerprint=self.network.fingerprint,
            sites=sites,
        )

    def _about(self) -> dict[str, str]:
        return {
            "refl": __version__,
            "model": self.network.name,
            "architecture": self.network.net.MODEL_TYPE,
            "dtype": self.network.dtype,
            "task": self.network.task,
            "computed by": _computed_by(self.network.device),
            **self._unusual_probability(),
            **self.network.ignored,
        }

    def _unusual_probability(self) -> dict[str, str]:
        kind = self.network.probability
        return {} if kind == "softmax" else {"probability": kind}

    def _output(self, z: Any, seed: Seed) -> dict[str, Any]:  # logits (V,)
        """What is explained, and the likeliest outputs."""
        if self.at is not None:
            return self._neuron_output(float(z[seed.target]), seed.target, *self.at)
        names, p = self.network.output_names, probabilities(z, self.network.probability)
        best = _likeliest(z)
        return {
            "target": names([seed.target])[0],
            "target_id": seed.target,
            "logit": float(z[seed.target]),
            "probability": float(p[seed.target]),
            "against": None if seed.against is None else names([seed.against])[0],
            "against_logit": None if seed.against is None else float(z[seed.against]),
            "seed": seed.kind,
            "candidates": [
                Candidate(name, i, float(z[i]), float(p[i]))
                for name, i in zip(names(best), best, strict=True)
            ],
        }

    @staticmethod
    def _neuron_output(x: float, number: int, site: str, index: Sequence[int]) -> dict[str, Any]:
        """The same of a neuron, which has no probability and no rivals."""
        return {
            "target": f"{site}[{', '.join(map(str, index))}]",
            "target_id": number,
            "logit": x,
            "probability": math.nan,
            "against": None,
            "seed": "activation",
            "candidates": [],
        }

    def _input(self, forward: Forward, swept: Swept, b: int) -> dict[str, Any]:
        """The input and its relevance: of tokens, of those a decoder has written, or of pixels."""
        reading = forward.readings[b]
        if self.network.takes_images:
            return self._picture(forward, swept, b)
        fields = self._tokens(swept, b, reading.input, forward.embedded)
        fields["types"] = None if reading.types is None else list(reading.types)
        fields["position"] = None if forward.positions is None else int(forward.positions[b])
        if reading.prefix is not None:
            decoder = self._tokens(swept, b, reading.prefix, forward.decoder_embedded[0])
            fields |= {f"decoder_{name}": value for name, value in decoder.items()}
        return {"input_ids" if name == "ids" else name: value for name, value in fields.items()}

    def _tokens(self, swept: Swept, b: int, ids: list[int], site: str) -> dict[str, Any]:
        scores = self._scores(*_example(swept, site, b))
        return {
            "tokens": self.network.tokens(ids),
            "ids": ids,
            "word_starts": None if self.network.text is None else self.network.text.starts(ids),
            "relevance": scores[: len(ids)].copy(),
        }

    def _picture(self, forward: Forward, swept: Swept, b: int) -> dict[str, Any]:
        channels_last = (np.moveaxis(a, 0, -1) for a in _example(swept, forward.embedded, b))
        return {
            "tokens": [],
            "input_ids": [],
            "relevance": self._scores(*channels_last),
            "picture": forward.readings[b].input.picture,
            "patch": self.network.config.patch,
        }

    def _scores(self, propagated: Any, x: Any) -> Any:  # (T, D), (T, D) -> (T,)
        if self.composite.score == "norm":
            return _lengths(propagated)
        return (
            propagated * x if self.composite.formulation == "gradient_x_input" else propagated
        ).sum(axis=-1)


@cache
def _computed_by(device: str) -> str:
    """What multiplies the matrices: another library or kernel rounds in another order."""
    about = f"NumPy {np.__version__}"
    if device != "cpu":
        return f"{about}, {device}"
    return " ".join([f"{about},", *filter(None, blas().values())])


def _lengths(x: Any) -> Any:  # (T, D) -> (T,)
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
    plain = _any_expert(pattern)
    return any(fnmatchcase(n, pattern) or fnmatchcase(_any_expert(n), plain) for n in names)


def _any_expert(name: str) -> str:
    return re.sub(r"\.experts\.\d+", ".experts.0", name)


def nearest_patterns(pattern: str, names: Iterable[str]) -> list[str]:
    """Names, or for a pattern that begins with * ends of names, that are like the pattern."""
    if not pattern.startswith("*"):
        return nearest(pattern, names, 3)
    wanted = pattern.strip("*.?")
    parts = wanted.count(".") + 1
    ends = {".".join(name.split(".")[-parts:]) for name in names}
    return [f"*.{end}" for end in nearest(wanted, sorted(ends), 3)]


def _likeliest(z: Any) -> list[int]:  # logits (V,)
    """The outputs of the CANDIDATES largest logits, and of equal ones the first. Only those are
    sorted: a vocabulary may take as long as a block.
    """
    k = min(CANDIDATES, len(z))
    least = -np.partition(-z, k - 1)[k - 1]
    some = np.flatnonzero(~(z < least))  # all of them where `least` is no number
    return [int(i) for i in some[np.argsort(-z[some], kind="stable")[:k]]]


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
    return not set("*?[]").isdisjoint(last) or last in ("scores", "probabilities", "transposed")


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
