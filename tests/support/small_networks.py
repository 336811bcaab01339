"""Nets of a few operations, written on a trace, with everything a method may ask of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from refl.mask import Mask
from refl.model import Model
from refl.nets.batch import Batch
from refl.trace import Trace, Value

WIDTH, WORDS = 4, 7


def small_network(
    forward: Callable[[Trace, Batch], Value], weights: Mapping[str, Any], task: str = "next-token"
) -> Model:
    """A model of token ids 0 to WORDS - 1."""
    net = SimpleNamespace(
        MODEL_TYPE="small",
        PREFIX="",
        Config=None,
        task=lambda c: task,
        shapes=lambda c: iter(()),
        forward=lambda t, c, batch: forward(t, batch),
    )
    config = SimpleNamespace(vocab_size=WORDS, longest=64, labels=WORDS)
    place = lambda array: array
    return Model(net, config, weights, None, place, "float64", name="small")


def drawn(random: np.random.Generator, *shapes: tuple[str, tuple[int, ...]]) -> dict[str, Any]:
    return {f"{name}.weight": random.standard_normal(shape) for name, shape in shapes}


def value_attention(seed: int) -> Model:
    """One head of attention on the embeddings, no residual, and a linear head on its last token."""

    def forward(t: Trace, batch: Batch) -> Value:
        h = t.embedding("embed", batch.ids)
        q, k, v = (
            t.move(f"{name}.heads", "split_heads", t.linear(name, h), heads=1) for name in "qkv"
        )
        length = h.array.shape[1]
        with t.inside("attn"):
            context = t.attention(q, k, v, Mask(h.array, length, length, causal=True))
        return _logits(t, t.move("merged", "merge_heads", context), batch)

    square = [(name, (WIDTH, WIDTH)) for name in "qkv"]
    shapes = [("embed", (WORDS, WIDTH)), *square, ("head", (WORDS, WIDTH))]
    return small_network(forward, drawn(np.random.default_rng(seed), *shapes))


def linear_net(seed: int) -> Model:
    """Two linear blocks with a residual stream, the mean over tokens, a linear head."""

    def block(t: Trace, h: Value) -> Value:
        return t.add("", h, t.linear("mlp", h, role="mlp.down"), role="residual")

    def forward(t: Trace, batch: Batch) -> Value:
        h = t.embedding("embed", batch.ids)
        for n in range(2):
            h = t.block(f"layers.{n}", block, h)
        counted = np.ones((*h.array.shape[:2], 1))
        return t.linear("head", t.mean("pooled", h, counted), role="head")

    square = [(f"layers.{n}.mlp", (WIDTH, WIDTH)) for n in range(2)]
    shapes = [("embed", (WORDS, WIDTH)), *square, ("head", (WORDS, WIDTH))]
    return small_network(forward, drawn(np.random.default_rng(seed), *shapes))


def _logits(t: Trace, h: Value, batch: Batch) -> Value:
    if batch.rows is not None:
        h = t.move("head.row", "rows", h, index=batch.rows)
    return t.linear("head", h, role="head")
