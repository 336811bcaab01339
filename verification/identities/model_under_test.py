"""A model and the input on which the identities are measured."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from refl.arrays import asnumpy
from refl.errors import ReflError
from refl.explanation import Explanation
from refl.model import Model
from refl.rules.composites import Composite
from refl.rules.published import METHODS
from refl.trace import Record, Trace, Value
from refl.verification.identities.graph import NORMS, Graph
from refl.verification.identities.weights import cast

LENGTH = 8
"""Tokens of the text where none is given."""


@dataclass
class ModelUnderTest:
    """A model, one input, and the output that is explained.

    item       token ids, or a picture
    decoder    the ids a decoder has written so far
    at         of a net without a head, the neuron that is explained
    target     the explained output: a logit, or the neuron's number among the features
    progress   called with (done, of) on the way
    """

    model: Model
    item: Any
    decoder: list[int] | None = None
    at: tuple[str, tuple[int, ...]] | None = None
    target: int = 0
    progress: Callable[[int, int], object] = field(default=lambda done, of: None, repr=False)
    _explained: dict[str, Explanation] = field(default_factory=dict, init=False, repr=False)

    def explain(
        self, method: str | Composite, model: Model | None = None, **how: Any
    ) -> Explanation:
        """Audited, with every site; every option of `Model.explain` may be given."""
        what = {"at": self.at} if self.at else {} if "contrast" in how else {"target": self.target}
        options = {"audit": True, "keep": "*", "decoder": self.decoder, **what, **how}
        e: Explanation = (model or self.model).explain(self.item, self.composite(method), **options)
        return e

    def explained(self, method: str) -> Explanation:
        """The explanation with every site, computed once."""
        if method not in self._explained:
            self._explained[method] = self.explain(method)
        return self._explained[method]

    def composite(self, method: str | Composite) -> Composite:
        """A method; where it needs the bounds of a pixel and nobody
        has said them, those of this picture.
        """
        composite = METHODS[method] if isinstance(method, str) else method
        if not self.model.takes_images or self.model.preparation is not None:
            return composite
        pixels = self.model.read(self.item).pixels
        box = (("low", float(pixels.min())), ("high", float(pixels.max())))
        lines = tuple(
            replace(line, options=box) if line.rule == "z_box" and not line.options else line
            for line in composite.rules
        )
        return replace(composite, rules=lines)

    def within(self, dtype: str) -> ModelUnderTest:
        """The same in a dtype."""
        if dtype == self.model.dtype:
            return self
        model = replace(self.model, weights=cast(self.model.weights, dtype), dtype=dtype)
        return replace(self, model=model)

    @property
    def methods(self) -> list[str]:
        """The published methods; those tuned for pictures where there is one."""
        return [name for name in METHODS if self.model.takes_images or "-vit" not in name]

    @property
    def forward(self) -> dict[str, Any]:
        """How its forward pass is asked for: where a neuron is explained, at every token."""
        every = {"every": True} if self.at else {}
        return {"decoder": self.decoder} | every

    @cached_property
    def traced(self) -> tuple[Trace, Value]:
        """The recorded run, attention in its plain form, and the logits that are explained; of a
        net without a head all features.
        """
        if self.at is None:
            return self.model.trace([self.item], decoder=self.decoder)
        trace = Trace(self.model.weights)
        return trace, self.model.forward(trace, self.model.batch([self.item], every=True))

    @cached_property
    def graph(self) -> Graph:
        return Graph(self.traced[0].records, self.traced[1])

    @property
    def records_by_site(self) -> dict[str, Record]:
        return {r.output.site: r for r in self.traced[0].records}

    @property
    def embedded(self) -> list[Record]:
        """What an explanation hands out relevance to: embeddings of tokens, pixels."""
        return [r for r in self.graph.records if r.role in ("tokens", "pixels")]

    @cached_property
    def stages(self) -> list[str]:
        """The embeddings and what every block puts out."""
        blocks = [name for name in self.traced[0].values if re.search(r"\.\d+$", name)]
        return [r.output.site for r in self.embedded] + blocks

    @property
    def stages_without_norms(self) -> list[str]:
        """Those that no norm puts out: its weight belongs to what it puts out."""
        values, producer = self.traced[0].values, self.graph.producer
        return [name for name in self.stages if producer[values[name]].operation not in NORMS]


def input_scores(e: Explanation) -> Any:
    """Everything an explanation says of its input, in one row."""
    scores = (e.relevance, e.decoder_relevance)
    return np.concatenate([np.ravel(r) for r in scores if r is not None])


# -- making one ------------------------------------------------------------------------------------


def model_under_test(model: Model, item: Any = None, decoder: Any = None) -> ModelUnderTest:
    """A model ready to be measured on an input: a text, token ids, a picture; random ones where
    none is given.

    Raises ReflError for an input that the model does not take.
    """
    if model.task == "masked-token" and model.mask_id is None:
        model = replace(model, mask_id=model.config.vocab_size - 1)
    item = _random_input(model, LENGTH) if item is None else item
    item = item if model.takes_images else model.encode(item)
    m = ModelUnderTest(model, item, _decoder_ids(model, decoder))
    if model.task in ("features", "token-class", "answer-span"):
        at = _largest_feature(m)
        return replace(m, at=at, target=at[1][-1])
    return replace(m, target=int(asnumpy(m.traced[1].array)[0, 0].argmax()))


def _decoder_ids(model: Model, decoder: Any) -> list[int] | None:
    if model.task != "sequence-to-sequence":
        if decoder is not None:
            raise ReflError("decoder ids are given, and the model has no decoder: leave them out")
        return None
    if decoder is None:
        decoder = [model.decoder_start_id, *_random_input(model, 3, seed=1)]
    return model.decoder_prefix(decoder)


def _random_input(model: Model, length: int, seed: int = 0) -> Any:
    """Random token ids, one of them the mask where there has to be one; or a random picture."""
    random = np.random.default_rng(seed)
    if model.takes_images:
        return random.standard_normal((model.config.num_channels, *model.config.image))
    length = min(length, model.config.longest)
    return with_mask(model, [int(i) for i in random.integers(0, model.config.vocab_size, length)])


def with_mask(model: Model, ids: list[int]) -> list[int]:
    """For a model that guesses a masked token: exactly one stands in the ids."""
    if model.task != "masked-token" or ids.count(model.mask_id or 0) == 1:
        return ids
    mask, other = int(model.mask_id or 0), (int(model.mask_id or 0) + 1) % model.config.vocab_size
    masked = [other if i == mask else i for i in ids]
    masked[len(ids) // 2] = mask
    return masked


def _largest_feature(m: ModelUnderTest) -> tuple[str, tuple[int, ...]]:
    """Of the first token; of a head on every token the largest of its outputs there."""
    trace = Trace(m.model.weights)
    out = m.model.forward(trace, m.model.batch([m.model.read(m.item)], every=True))
    return out.site, (0, int(asnumpy(out.array)[0, 0].argmax()))
