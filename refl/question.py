"""What is asked of a net, whichever method answers: which output of which inputs, in which run.

question = Question(network, readings, targets)
forward = question.forward(readings)              a run; what is explained in it is forward.rows
seeds = question.seeds(forward, targets)          of each example the output that is meant
seed.value(z), seed.derivative(z)                 the explained number, and its gradient
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np

from refl import arguments
from refl.arrays import Array, asnumpy
from refl.batching import TOKENS, grouped
from refl.edits import Change, Edits, any_expert, applied, checked, edited_site, together, whole
from refl.errors import ReflError, argument, nearest, shown
from refl.ledger import DESTINATIONS
from refl.network import Network, Reading, refuse_overflow
from refl.rules.composites import Composite
from refl.seeds import AnySeed, Cosine, Seed, of_answer
from refl.sweep import Sweep, Swept
from refl.targets import Feature, Span, Special, best_spans
from refl.trace import Trace, Value

Progress = Callable[[str, int, int], object]
"""(phase, done, of)"""

Target = tuple[int | Special | None, int | None]
"""The output to explain, None for the largest; and the one it is contrasted with, or None."""

NO_SOFTMAX = {
    "sigmoid": "each of its classes is there or not by itself",
    "none": "its outputs are numbers, not classes",
}
"""What outputs are that are no alternatives."""


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
    """Site of a decoder's embeddings, where there is one; of the pixels beside texts."""
    positions: Sequence[int] | None
    """Of each example the token whose output is explained; None where it is no token's."""

    def input_sites(self) -> list[str]:
        """The input's, and the decoder's where there is one."""
        return [self.embedded, *self.decoder_embedded]

    def read_from(self, site: str) -> Any:  # -> NumPy (B, ...)
        """What everything after a site reads: its activation, once changed where it is edited."""
        values = self.trace.values
        return asnumpy(values.get(edited_site(site), values[site]).array)

    def leaf(self, site: str) -> Any:  # -> NumPy (B, T, D), or (B, C, H, W)
        """What the run started from, at one of the input sites."""
        return asnumpy(self.trace.values[site].array)


@dataclass(frozen=True)
class Question:
    """Of which net, which output, in which run.

    kind         logit, log-probability or probability: see refl.seeds
    position     the token whose output is explained; None for the task's own
    at           (site, index) of a neuron that is explained in place of an output
    edits        site -> what is changed there in every run (refl.edits), beside the network's own
    recompute    hold one block's activations at a time
    every        the output is wanted at every token: the mean of their features is explained
    """

    network: Network
    kind: str = "logit"
    position: int | None = None
    at: tuple[str, Sequence[int]] | None = None
    edits: Edits = field(default_factory=dict)
    recompute: bool = False
    batch_tokens: int = TOKENS
    progress: Progress | None = None
    every: bool = False

    def __post_init__(self) -> None:
        vars(self).update(
            batch_tokens=arguments.positive("batch_tokens", self.batch_tokens),
            recompute=arguments.flag("recompute", self.recompute),
            at=None if self.at is None else arguments.neuron(self.at),
            edits=whole(self.network.edits, self.edits, recorded=True),
        )
        arguments.progress(self.progress)

    # -- what contradicts itself is refused before anything runs -----------------------------------

    def refuse(self, wanted: Sequence[Sequence[Target]]) -> None:
        """Raises ReflError for targets that cannot be explained by this kind of seed."""
        own = self.network.edits  # which stay, whatever is explained of it
        self.refuse_later("edits", [s for s, e in self.edits.items() if e is not own.get(s)])
        for target, against in chain.from_iterable(wanted):
            Seed(self.kind, target if isinstance(target, int) else -1, against)
            self._refuse_target(target, against)
        if self.kind != "logit" and self.network.probability != "softmax":
            raise ReflError(
                f"the {argument('seed')} {self.kind!r} is that of a softmax, by which "
                f"{self.network.name or 'the model'} has no probabilities "
                f"({NO_SOFTMAX[self.network.probability]}): take 'logit'"
            )

    def refuse_later(self, what: str, names: Collection[str]) -> None:
        """Where a neuron is explained: raises ReflError for a site that is computed after it."""
        if self.at is None or not names:
            return
        sites = {any_expert(name): any_expert(s) for name, s in self.network.sites().items()}
        order = {site: number for number, site in enumerate(dict.fromkeys(sites.values()))}
        at = any_expert(self.at[0]).removesuffix(edited_site(""))
        number = order.get(sites.get(at, at), len(order))
        for name in names:
            if order.get(sites.get(any_expert(name), name), -1) > number:
                raise ReflError(
                    f"{argument(what)} names {shown(name)!r}, which the neuron at "
                    f"{shown(self.at[0])} is not made of: it would change nothing"
                )

    def refuse_lengths(self, readings: Sequence[Reading]) -> None:
        """Raises ReflError where a neuron is explained in inputs of several lengths."""
        if (
            self.at is not None
            and len({self.network.lengths(reading)[-1] for reading in readings}) > 1
        ):
            raise ReflError(
                f"{argument('at=')} explains one neuron in inputs of one length: give the others "
                "on their own"
            )

    def _refuse_target(self, target: int | Special | None, against: int | None) -> None:
        """What a seed over tokens, or over features, is not defined for."""
        task = self.network.task
        if self.at is None and task == "features" and not isinstance(target, Feature):
            self.network.refuse_headless()
        if isinstance(target, Feature):
            if self.kind != "logit":
                raise ReflError(
                    f"features have no probabilities: leave {argument('seed')} out, or 'logit'"
                )
            if target.mean and self.position is not None:
                raise ReflError(
                    f"the mean is that of all tokens: leave {argument('position')} out, or the mean"
                )
            if target.mean and self.network.takes_images:
                raise ReflError("the mean is that of the tokens of a text, and a picture has none")
            if target.mean != self.every:
                raise ReflError(
                    "one run gives the features of a token, or those of all: explain the mean and "
                    "a token apart"
                )
        if task == "answer-span" and against is not None:
            raise ReflError(
                "answers are not contrasted: explain each, and subtract; relevance of a "
                "difference of logits is the difference"
            )
        if (isinstance(target, Span) and task != "answer-span") or (
            isinstance(target, int) and task == "answer-span"
        ):
            raise ReflError(
                f"{argument('target')} does not fit a model whose task is {task}: let "
                "Model.explain make it"
            )

    # -- a run -------------------------------------------------------------------------------------

    def groups(self, readings: Sequence[Reading], alone: bool = False) -> list[list[int]]:
        """Numbers of the readings that run together: batches of like lengths; with edits, or where
        lengths are to stand `alone`, of one length.
        """
        lengths = [self.network.lengths(reading) for reading in readings]
        alone = alone or bool(self.edits)  # an index is one of the text, never of padding behind it
        return grouped(
            lengths, self.batch_tokens, lambda n: alone or self.network.batch_dependent(n)
        )

    def forward(
        self,
        readings: Sequence[Reading],
        *,
        plain: bool = False,
        leaves: Mapping[str, Array] | None = None,
        further: Edits | None = None,
    ) -> Forward:
        """A recorded run of one batch.

        plain      attention as recorded operations: scores and probabilities have sites
        leaves     site of an embedding or of the pixels -> what to start from in its place, in the
                   shape of what is there: (B, T, D), (B, C, H, W). They are taken to the dtype and
                   the device of the net; where an embedding is scaled, they come before that
        further    edits of this run alone, made after those of the question. In a padded batch an
                   index counts the padding

        Raises ReflError for leaves and edits that do not fit the net.
        """
        network, (site, *_) = self.network, self.at or (None,)
        trace = Trace(
            network.weights,
            plain=plain,
            recompute=self.recompute,
            edits=together(self.edits, checked(further, recorded=True)),
            leaves=self._leaves(leaves),
        )
        batch = self._batch(readings)
        logits = network.forward(trace, batch)
        explained = logits if site is None else self._value(trace, site)
        embedded = [r.output.site for r in trace.records if r.role in DESTINATIONS]
        return Forward(
            trace=trace,
            explained=explained,
            rows=asnumpy(explained.array).reshape(len(readings), -1),
            readings=readings,
            embedded=embedded[0],
            decoder_embedded=embedded[1:],
            positions=None if answered(readings) else batch.rows,
        )

    def _batch(self, readings: Sequence[Reading]) -> Any:
        masks = [reading.attention_mask for reading in readings]
        return self.network.batch(
            [reading.input for reading in readings],
            self.position,
            every=self.at is not None or self.every,
            decoder_prefix=[r.prefix for r in readings if r.prefix is not None] or None,
            types=[r.types for r in readings if r.types is not None] or None,
            masks=masks if any(mask is not None for mask in masks) else None,
            answers=[r.answer for r in readings] if answered(readings) else None,
        )

    def position_of(self, reading: Reading) -> int | None:
        """The token whose output is explained; None where it is no token's."""
        rows = None if answered([reading]) else self._batch([reading]).rows
        return None if rows is None else int(rows[0])

    def rows(
        self,
        readings: Sequence[Reading],
        *,
        leaves: Mapping[str, Array] | None = None,
        further: Edits | None = None,
    ) -> Any:  # -> NumPy (B, V)
        """What is explained, of one batch that is not recorded; a function can be an edit. Leaves
        and further edits as in `forward`; raises ReflError as that does.
        """
        changed, found = together(self.edits, checked(further, recorded=False)), list[Array]()
        if self.at is not None:
            changed = _read_at(self.at[0], changed, found.append)
        trace = Trace(
            self.network.weights,
            record=False,
            plain=False,
            edits=changed,
            leaves=self._leaves(leaves),
        )
        logits = self.network.forward(trace, self._batch(readings)).array
        if self.at is not None and not found:
            raise ReflError(
                f"{argument('at=')} names {shown(self.at[0])!r}, which a changed copy of the input "
                "does not come to (an expert that its router does not choose): explain another "
                "neuron, or take a method that runs the input as it is, such as attnlrp"
            )
        return asnumpy(logits if self.at is None else found[-1]).reshape(len(readings), -1)

    def _leaves(self, leaves: Any) -> dict[str, Array]:
        """Arrays in the dtype of the net, on its device. Raises ReflError for what are none."""
        if leaves is not None and not isinstance(leaves, Mapping):
            raise arguments.expected("leaves", "a mapping of sites to arrays", leaves)
        return {site: self._leaf(site, leaf) for site, leaf in (leaves or {}).items()}

    def _leaf(self, site: Any, leaf: Any) -> Array:
        array = np.asarray(leaf) if isinstance(leaf, (list, np.generic)) else leaf
        if not isinstance(site, str) or not hasattr(array, "dtype"):
            raise arguments.expected("leaves", "a mapping of sites to arrays", {site: leaf})
        if not isinstance(array, np.ndarray):  # it lies on the device
            return array
        if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
            raise ReflError(
                f"the leaf of {shown(site)} holds what is no finite number: expected an array of "
                f"{self.network.dtype}"
            )
        return self.network.place(array.astype(self.network.dtype, copy=False))

    def at_end_of(self, forward: Forward, reading: Reading) -> Forward:
        """The same run, with the logits at the end of a beginning of its text: what comes after
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

    # -- what is explained in it -------------------------------------------------------------------

    def seeds(self, forward: Forward, targets: Sequence[Target]) -> list[AnySeed]:
        """Of each example: the target asked for, or the largest output; the neuron, where one is
        explained; the answer behind an input that has one.
        """
        if self.at is not None:
            return [Seed(self.kind, self._neuron(forward, *self.at))] * len(forward.rows)
        if answered(forward.readings):
            outputs = forward.explained.array.shape[-1]
            return [
                of_answer(self.kind, r.explained[-r.answer :], outputs) for r in forward.readings
            ]
        rows = int(forward.explained.array.shape[1])
        return [
            self.seed(z, reading, target, rows)
            for z, reading, target in zip(forward.rows, forward.readings, targets, strict=True)
        ]

    def seed(self, z: Any, reading: Reading, target: Target, rows: int) -> AnySeed:  # z: (V,)
        """Of one example, of whose outputs there are so many rows, padding counted."""
        what, against = target
        if what is None:
            what = self.likeliest(z, reading)
        if not isinstance(what, Special):
            return Seed(self.kind, what, against)
        tokens = 1 if self.network.takes_images else len(reading.explained)
        hidden = reading.attention_mask
        if what.mean and hidden is not None and hidden.ndim == 1 and not hidden.all():
            raise ReflError(
                f"the mean is that of all tokens, and {argument('attention_mask')} hides some: "
                "give the text without them"
            )
        return what.seed(self.kind, z, rows, tokens)

    def likeliest(self, z: Any, reading: Reading) -> int | Special:  # z: (V,)
        """The largest output; the best answer."""
        if self.network.task == "features":
            self.network.refuse_headless()
        if self.network.task != "answer-span":
            return int(z.argmax())
        return self.answers(z, reading, 1)[0]

    def answers(self, z: Any, reading: Reading, most: int) -> list[Span]:  # z: (rows 2,)
        """The best answers: of a pair, those in the second text (where nothing is known of texts,
        in tokens of type 1, if there are both types); of one text, those in all of it, less its
        special tokens.
        """
        tokens = len(reading.input)
        start, end = z[0 : 2 * tokens : 2], z[1 : 2 * tokens : 2]
        return best_spans(start, end, self._inside(reading), most)

    def _inside(self, reading: Reading) -> list[bool]:
        """Which tokens an answer may be of."""
        text, ids = self.network.text, reading.input
        plain = [True if text is None else i not in text.special for i in ids]
        kinds = reading.types or []
        second = reading.second or [k == 1 and 0 in kinds for k in kinds] or plain
        chosen = [a and b for a, b in zip(second, plain, strict=True)]
        return next((some for some in (chosen, plain) if any(some)), [True] * len(ids))

    def starts(self, composite: Composite, forward: Forward, seeds: Sequence[AnySeed]) -> Any:
        """What a sweep by this table starts from at the output, NumPy (B, V)."""
        return np.stack(
            [started(composite, s, z) for s, z in zip(seeds, forward.rows, strict=True)]
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

    def sweep(self, forward: Forward, sweep: Sweep, rows: Any) -> Swept:  # rows: NumPy (B, V)
        """A sweep of this run, from `rows` at what is explained."""
        start = self.network.place(
            np.asarray(rows, dtype=forward.rows.dtype).reshape(forward.explained.array.shape)
        )
        self.network.refuse_changed()  # the sweep reads the weights again
        with np.errstate(all="ignore"):  # what goes wrong is said in a sentence, by its site
            return sweep.run(forward.trace, forward.explained, start)

    def gradients(
        self, forward: Forward, seeds: Sequence[AnySeed], sites: Sequence[str], table: Composite
    ) -> dict[str, Any]:  # -> NumPy, in the shape of each activation
        """The gradient of what is explained, at these sites. `table`: a composite in gradient x
        input form, of which `gradient` has the true derivatives.
        """
        keep = set(sites)
        rows = np.stack([s.derivative(z) for s, z in zip(seeds, forward.rows, strict=True)])
        swept = self.sweep(forward, Sweep(table, keep=lambda n: not keep.isdisjoint(n)), rows)
        return {site: asnumpy(swept.propagated[swept.aliases.get(site, site)]) for site in sites}

    def tell(self, phase: str, done: int, of: int) -> None:
        """Progress, where somebody wants to hear of it."""
        if self.progress is not None:
            self.progress(phase, done, of)


def answered(readings: Sequence[Reading]) -> bool:
    """Whether what is explained is the answer behind each input, all of its tokens together."""
    return any(reading.answer for reading in readings)


def started(composite: Composite, seed: AnySeed, z: Any) -> Any:  # z: (V,) -> (V,), NumPy
    """What a sweep by this table starts from: a cosine's norm is a constant to rules, and none to
    derivatives.
    """
    if composite.formulation != "gradient_x_input":
        return seed.relevance(z)
    exact = isinstance(seed, Cosine) and composite.differentiates
    return seed.derivative(z) if exact else seed.gradient(z)


def _read_at(
    site: str, changed: Mapping[str, Change], found: Callable[[Array], object]
) -> dict[str, Change]:
    """Edits by which a run that is not recorded hands out the activation at a site."""
    source = site.removesuffix(edited_site(""))
    after = source != site and source in changed
    where = source if after else site

    def read(z: Array) -> Array:
        changed_to = applied(changed[where], z, where) if where in changed else z
        found(changed_to if after else z)
        return changed_to

    return dict(changed) | {where: read}
