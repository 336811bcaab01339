"""Nets of a few operations, whose attributions are known in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from refl.arrays import namespace
from refl.mask import Mask
from refl.model import Model
from refl.nets.batch import Batch
from refl.trace import Trace, Value

Forward = Callable[[Trace, Any, Batch], Value]


def _net(forward: Forward) -> Any:
    return SimpleNamespace(
        __name__="tiny", MODEL_TYPE="tiny", forward=forward, task=lambda config: "class"
    )


def _model(forward: Forward, weights: dict[str, Any]) -> Model:
    table = next(iter(weights.values()))
    config = SimpleNamespace(vocab_size=len(table), longest=100, pad_token_id=None)
    labels = {i: str(i) for i in range(9)}
    return Model(
        _net(forward), config, weights, None, lambda a: a, "float64", name="tiny", labels=labels
    )


def power(n: int, seed: int = 0) -> tuple[Model, Callable[[Sequence[int]], Any]]:
    """f(x) = s^n with s = sum_t a_t, a_t = w . x_t / T, and ids -> the a_t, (T,)."""
    random = np.random.default_rng(seed)
    table, w = random.standard_normal((7, 3)) + 1, random.standard_normal((1, 3))

    def forward(t: Trace, c: Any, batch: Batch) -> Value:
        h = t.embedding("embed", batch.ids)
        counted = namespace(h.array).ones_like(h.array[..., :1])
        if batch.attention_mask is not None:
            counted = counted * batch.attention_mask[..., None]
        z = t.linear("score", t.mean("pooled", h, counted))
        return z if n == 1 else t.multiply("power", *[z] * n)

    model = _model(forward, {"embed.weight": table, "score.weight": w})
    return model, lambda ids: table[list(ids)] @ w[0] / len(ids)


def attention(scores: Sequence[float]) -> Model:
    """Three tokens; the last one's attention to them is softmax(scores), and logit i is what token
    i gets of it.
    """
    table = np.eye(3)
    weights = {
        "embed.weight": table,
        "q.weight": np.ones((1, 3)),
        "k.weight": np.asarray([scores], dtype=np.float64),
        "v.weight": np.eye(3),
        "head.weight": np.eye(3),
    }

    def forward(t: Trace, c: Any, batch: Batch) -> Value:
        h = t.embedding("embed", batch.ids)
        q, k, v = (t.move(f"{n}.heads", "split_heads", t.linear(n, h), heads=1) for n in "qkv")
        mask = Mask(batch.ids, 3, 3, causal=True)
        with t.inside("attn"):
            z = t.move("context.merged", "merge_heads", t.attention(q, k, v, mask))
        return t.linear("head", t.move("row", "rows", z, index=(2,) * len(batch.ids)))

    return _model(forward, weights)
