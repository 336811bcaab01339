"""The steps of causal self-attention with grouped queries (Ainslie et al. 2023, arXiv 2305.13245)
and rotary positions.

A net puts them together:  q, k, v = project(x);  q, k = turn(q, k), normed before where it does so;
                           out = o(attend(q, k, v)).
"""

from __future__ import annotations

from typing import Protocol

from refl.arrays import Array
from refl.nets import tensors
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value


class Heads(Protocol):
    """What a config says about its heads."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def width(self) -> int:
        """Features per head."""


def project(
    t: Trace, x: Value, c: Heads, *, bias: bool = False
) -> tuple[Value, Value, Value]:  # (B, T, D) -> (B, H, T, d), (B, K, T, d) x 2
    q = t.move(
        "query", "split_heads", t.linear("q_proj", x, bias=bias), heads=c.num_attention_heads
    )
    k = t.move("key", "split_heads", t.linear("k_proj", x, bias=bias), heads=c.kv_heads)
    v = t.move("value", "split_heads", t.linear("v_proj", x, bias=bias), heads=c.kv_heads)
    return q, k, v


def turn(
    t: Trace, q: Value, k: Value, cos: Array, sin: Array, scale: float
) -> tuple[Value, Value]:  # (B, H, T, d), (B, K, T, d) -> alike
    """Queries and keys at their positions, queries scaled."""
    return t.scale("query.scaled", rotate(t, "query", q, cos, sin), scale), rotate(
        t, "key", k, cos, sin
    )


def rotate(
    t: Trace, name: str, x: Value, cos: Array, sin: Array
) -> Value:  # (B, H, T, d) -> (B, H, T, d)
    """Rotary positions on the first features of each head, as many as cos and sin have; the others
    stay as they are.
    """
    turned, width = cos.shape[-1], x.array.shape[-1]
    if turned == width:
        return t.rotary(f"{name}.rotated", x, cos, sin)
    first = t.rotary(
        f"{name}.turned", t.move(f"{name}.first", "slice", x, start=0, stop=turned), cos, sin
    )
    return t.move(
        f"{name}.rotated",
        "concat",
        first,
        t.move(f"{name}.rest", "slice", x, start=turned, stop=width),
        axis=-1,
    )


def attend(
    t: Trace, q: Value, k: Value, v: Value, mask: Array, cap: float | None = None
) -> Value:  # -> (B, T, H d)
    """softmax(q k^T) v, q scaled already; each key and value head serves a group of queries. With a
    cap c the scores are c tanh(s/c).
    """
    times = q.array.shape[1] // k.array.shape[1]
    if times > 1:
        k = t.move("key.repeated", "repeat_heads", k, times=times)
        v = t.move("value.repeated", "repeat_heads", v, times=times)
    context = (
        t.attention(q, k, v, mask, causal=True) if cap is None else _capped(t, q, k, v, mask, cap)
    )
    return t.move("context.merged", "merge_heads", context)


def _capped(t: Trace, q: Value, k: Value, v: Value, mask: Array, cap: float) -> Value:
    scores = soft_cap(
        t, "scores", t.matmul("scores", q, t.move("key.transposed", "transpose", k)), cap
    )
    return t.matmul("context", t.softmax("probabilities", scores, mask), v)


def soft_cap(t: Trace, name: str, x: Value, cap: float) -> Value:  # (...) -> (...)
    """cap tanh(x / cap)"""
    return t.scale(
        f"{name}.capped",
        t.activation(f"{name}.tanh", t.scale(f"{name}.divided", x, 1 / cap), "tanh"),
        cap,
    )


def tensors_of(
    path: str, c: Heads, *, bias: bool = False, out: str = "o_proj", out_bias: bool = False
) -> Tensors:
    hidden, q, kv = c.hidden_size, c.num_attention_heads * c.width, c.kv_heads * c.width
    why = "hidden_size, num_attention_heads, num_key_value_heads and head_dim"
    for name, width in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
        yield from tensors.linear(f"{path}.{name}", width, hidden, why, bias=bias)
    yield from tensors.linear(f"{path}.{out}", hidden, q, why, bias=out_bias)
