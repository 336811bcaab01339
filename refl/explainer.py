"""One forward pass and the sweeps asked of it.

inputs -> forward on a trace -> logits (or a neuron) -> seed -> sweep -> an Explanation each
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from refl.arrays import asnumpy
from refl.errors import ReflError, nearest
from refl.explanation import Candidate, Explanation, Sites
from refl.io.images import PREPARATION, Preparation
from refl.ledger import DESTINATIONS
from refl.network import Network
from refl.rules.composites import Composite, Rule
from refl.seeds import Seed, softmax
from refl.show.explanation import Batch, ShownExplanation
from refl.sweep import Sweep, Swept
from refl.trace import Trace, Value
from refl.version import __version__

Progress = Callable[[str, int, int], object]
"""(phase, done, of)"""

Target = tuple[int | None, int | None]
"""The output to explain, None for the largest; and the one it is contrasted with, or None."""

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
    inputs: list[Any]
    """Token ids or an Image, per example."""
    prefixes: list[list[int]] | None
    """The ids that a decoder has written, per example."""
    embedded: str
    """Site of the input's embeddings, or of the pixels."""
    decoder_embedded: list[str]
    """Site of a decoder's embeddings, where there is one."""

    def input_sites(self) -> set[str]:
        return {self.embedded, *self.decoder_embedded}


@dataclass
class Explainer:
    """What is asked of one forward pass; see Model.explain for each option."""

    network: Network
    items: list[Any]
    composite: Composite
    keep: str | Sequence[str] = "*"
    recompute: bool = False
    audit: bool = False
    progress: Progress | None = None
    position: int | None = None
    decoder: Any = None
    at: tuple[str, Sequence[int]] | None = None
    types: Any = None

    def __post_init__(self) -> None:
        if self.network.takes_images:
            self.composite = with_pixel_bounds(
                self.composite, self.network.preparation, self.network.config.num_channels
            )
        self.patterns = (self.keep,) if isinstance(self.keep, str) else tuple(self.keep)

    def run(self, wanted: Sequence[Sequence[Target]], kind: str) -> list[list[Explanation]]:
        """An Explanation per input for each list of targets, which has one per input. Where a
        neuron is explained, it stands in their place.
        """
        forward = self._forward()
        if self.at is not None:
            wanted = [[(self._neuron(forward, *self.at), None)] * len(forward.inputs)]
        return [
            self._explained(forward, targets, kind, last=number == len(wanted) - 1)
            for number, targets in enumerate(wanted)
        ]

    # -- the forward pass --------------------------------------------------------------------------

    def _forward(self) -> Forward:
        network, (site, *_) = self.network, self.at or (None,)
        inputs = [network.read(item) for item in self.items]
        prefixes = network.decoder_prefixes(len(inputs), self.decoder)
        if site is None:
            self._refuse_headless()
        plain = any(map(_fits_attention, self.patterns if site is None else (*self.patterns, site)))
        trace = Trace(network.weights, plain=plain, recompute=self.recompute)
        batch = network.batch(
            inputs,
            self.position,
            every=site is not None,
            decoder_prefix=prefixes,
            types=self.types,
        )
        logits = network.forward(trace, batch)
        explained = logits if site is None else self._value(trace, site)
        embedded = [r.output.site for r in trace.records if r.role in DESTINATIONS]
        return Forward(
            trace=trace,
            explained=explained,
            rows=asnumpy(explained.array).reshape(len(inputs), -1),
            inputs=inputs,
            prefixes=prefixes,
            embedded=embedded[0],
            decoder_embedded=embedded[1:],
        )

    def _refuse_headless(self) -> None:
        if self.network.task == "features":
            raise ReflError(
                f"{self.network.name or 'the model'} is a checkpoint without a head, so there is "
                "no output to explain: take one with a head, or explain a neuron with "
                "at=(site, index), on the command line --at SITE N ..."
            )

    def _value(self, trace: Trace, site: str) -> Value:
        if site not in trace.values:
            near = ", ".join(nearest(site, trace.values, 3))
            inside = " (inside a block there are none with recompute)" if self.recompute else ""
            raise ReflError(
                f"at= names {site!r}, which is no site of this model{inside}; nearest: {near}"
            )
        return trace.values[site]

    def _neuron(self, forward: Forward, site: str, index: Sequence[int]) -> int:
        """Which of the explained value's numbers, counted in one row, is meant."""
        shape = forward.explained.array.shape[1:]
        if len(index) != len(shape) or not all(
            -n <= i < n for i, n in zip(index, shape, strict=True)
        ):
            raise ReflError(
                f"at= has the index {tuple(index)} at {site}, whose shape is {tuple(shape)}"
            )
        ids = [] if self.network.takes_images else forward.prefixes or forward.inputs
        if len(set(map(len, ids))) > 1:
            raise ReflError(
                "at= explains one neuron in inputs of one length: give the others on their own"
            )
        return int(np.ravel_multi_index([i % n for i, n in zip(index, shape, strict=True)], shape))

    # -- a sweep -----------------------------------------------------------------------------------

    def _explained(
        self, forward: Forward, targets: Sequence[Target], kind: str, *, last: bool
    ) -> list[Explanation]:
        """An Explanation for each example, from one sweep."""
        seeds = [
            Seed(kind, int(z.argmax()) if target is None else target, against)
            for z, (target, against) in zip(forward.rows, targets, strict=True)
        ]
        swept = self._sweep(forward, seeds, last)
        return Batch(self._explanation(forward, swept, b, seed) for b, seed in enumerate(seeds))

    def _sweep(self, forward: Forward, seeds: list[Seed], last: bool) -> Swept:
        as_gradient = self.composite.formulation == "gradient_x_input"
        form = Seed.gradient if as_gradient else Seed.relevance
        rows = np.stack([form(seed, z) for seed, z in zip(seeds, forward.rows, strict=True)])
        start = self.network.place(rows.reshape(forward.explained.array.shape))
        needed = forward.input_sites()
        of = len(forward.trace.records)
        done = iter(range(1, of + 1))
        sweep = Sweep(
            self.composite,
            keep=lambda names: (
                not needed.isdisjoint(names)
                or any(fnmatchcase(name, p) for p in self.patterns for name in names)
            ),
            release=last,
            audit=self.audit,
            progress=lambda: self.progress and self.progress("sweep", next(done, 0), of),
        )
        swept = sweep.run(forward.trace, forward.explained, start)
        lost = [seed.unpropagated(z) for seed, z in zip(seeds, forward.rows, strict=True)]
        if as_gradient and any(lost):
            site, amount = forward.explained.site, np.asarray(lost)
            swept.ledger = swept.ledger.absorbing(site, "stabilizer", amount)
        return swept

    # -- what it found -----------------------------------------------------------------------------

    def _explanation(self, forward: Forward, swept: Swept, b: int, seed: Seed) -> Explanation:
        ledger = swept.ledger.example(b)
        return ShownExplanation(
            **self._input(forward, swept, b),
            **self._output(forward.rows[b], seed),
            explained=float(ledger.explained[0]),
            method=self.composite,
            recorded=ledger,
            about=self._about(),
            fingerprint=self.network.fingerprint,
            sites=Sites(
                swept.propagated, swept.activations, swept.aliases, self.composite.formulation, b
            ),
        )

    def _about(self) -> dict[str, str]:
        return {
            "refl": __version__,
            "model": self.network.name,
            "architecture": self.network.net.MODEL_TYPE,
            "dtype": self.network.dtype,
            "task": self.network.task,
        }

    def _output(self, z: Any, seed: Seed) -> dict[str, Any]:  # logits (V,)
        """What is explained, and the likeliest outputs."""
        if self.at is not None:
            return self._neuron_output(float(z[seed.target]), seed.target, *self.at)
        names, p = self.network.output_names, softmax(z.astype(np.float64))
        best = [int(i) for i in np.argsort(-z, kind="stable")[:CANDIDATES]]
        return {
            "target": names([seed.target])[0],
            "target_id": seed.target,
            "logit": float(z[seed.target]),
            "probability": float(p[seed.target]),
            "against": None if seed.against is None else names([seed.against])[0],
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
        if self.network.takes_images:
            return self._picture(forward, swept, b)
        fields = self._tokens(swept, b, forward.inputs[b], forward.embedded)
        if forward.prefixes is not None:
            decoder = self._tokens(swept, b, forward.prefixes[b], forward.decoder_embedded[0])
            fields |= {f"decoder_{name}": value for name, value in decoder.items()}
        return {"input_ids" if name == "ids" else name: value for name, value in fields.items()}

    def _tokens(self, swept: Swept, b: int, ids: list[int], site: str) -> dict[str, Any]:
        scores = self._scores(*_example(swept, site, b))
        return {"tokens": self.network.tokens(ids), "ids": ids, "relevance": scores[: len(ids)]}

    def _picture(self, forward: Forward, swept: Swept, b: int) -> dict[str, Any]:
        channels_last = (np.moveaxis(a, 0, -1) for a in _example(swept, forward.embedded, b))
        return {
            "tokens": [],
            "input_ids": [],
            "relevance": self._scores(*channels_last),
            "picture": forward.inputs[b].picture,
            "patch": self.network.config.patch,
        }

    def _scores(self, propagated: Any, x: Any) -> Any:  # (T, D), (T, D) -> (T,)
        if self.composite.score == "norm":
            return np.sqrt((propagated * propagated).sum(axis=-1))
        return (
            propagated * x if self.composite.formulation == "gradient_x_input" else propagated
        ).sum(axis=-1)


def _example(swept: Swept, site: str, b: int) -> tuple[Any, Any]:
    """What was propagated to a site, and its activation, of one example."""
    return asnumpy(swept.propagated[site])[b], asnumpy(swept.activations[site])[b]


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
