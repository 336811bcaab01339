"""Known mistakes, each as what an implementation that makes it would answer.

`Right` is every rule once more, in plain float64 NumPy: slow, short, and cut into parts. A mistake replaces one part, or calls the rule
with something other than what was asked, or spoils the answer afterwards. So a wrong answer can be laid beside the answers that the
known mistakes give, and the one that reproduces it is named. `MISTAKES` is the table; it stands at the end.

Where a mistake makes no difference beyond rounding, or is not defined, asking for its answer raises `Inapplicable`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import reduce
from typing import Any, Literal, TypeAlias

import numpy as np

from refl.arrays import Array
from refl.verification.case import SIGNATURES, Case

Answer: TypeAlias = tuple[Array | None, ...]
"""One array for each name in `case.returns`; None where nothing is passed."""
Way: TypeAlias = Callable[[Case], Answer]
Layer: TypeAlias = dict[str, Any]

GREATEST = {dtype: float(np.finfo(dtype).max) for dtype in ("float64", "float32", "float16")} | {"bfloat16": float.fromhex("0x1.fep127")}


class Inapplicable(Exception):
    """The mistake makes no difference on this case, or is not defined there."""


# -- the rules, right ---------------------------------------------------------------------------------------------------------------


class Right:
    """The rules, and below each group the parts it is made of. All arrays are float64; `dtype` says which format they came in."""

    def __init__(self, dtype: str = "float64") -> None:
        self.dtype = dtype
        self.lowest = -GREATEST[dtype]

    def answer(self, case: Case) -> Answer:
        with np.errstate(all="ignore"):
            got = getattr(self, case.rule)(*_wide(case.arguments), **_wide(dict(case.options)))
        return tuple(got) if isinstance(got, (tuple, list)) else (got,)

    # the division that the rules of the epsilon family share

    def stabilised(self, z: Array, eps: float, kind: str) -> Array:
        up = (z >= 0) | (kind == "plain")
        return z if kind == "none" else z + np.where(up, eps, -eps)

    def divided(self, r: Array, d: Array) -> Array:
        return np.where(d == 0, 0.0, r / np.where(d == 0, 1.0, d))

    def share(self, z: Array, r: Array, eps: float, kind: str) -> Array:
        return self.divided(r, self.stabilised(z, eps, kind))

    # linear layers: c_ji = W_ji x_i, (..., O, I)

    def linear_epsilon(self, x: Array, w: Array, b: Array | None, r: Array, *, eps: float, stabilizer: str = "sign") -> Array:
        return x * (self.share(self.linear_sum(x, w, b), r, eps, stabilizer) @ w)

    def linear_gradient(self, x: Array, w: Array, b: Array | None, g: Array) -> Array:
        return g @ w

    def linear_gamma(self, x: Array, w: Array, b: Array | None, r: Array, *, gamma: float) -> Array:
        z = self.linear_sum(x, w, b)
        c = _contributions(x, w)
        bias = np.zeros(len(w)) if b is None else b
        c = c + gamma * self.amplified(c, z[..., None], x, w)
        return _handed_on(c, self.divided(r, c.sum(-1) + bias + gamma * self.amplified_bias(bias, z)))

    def amplified(self, c: Array, z: Array, x: Array, w: Array) -> Array:
        return np.where(z > 0, _plus(c), _minus(c))

    def amplified_bias(self, b: Array, z: Array) -> Array:
        return np.where(z > 0, _plus(b), _minus(b))

    def linear_z_plus(self, x: Array, w: Array, b: Array | None, r: Array) -> Array:
        return self.linear_alpha_beta(x, w, b, r, alpha=1.0, beta=0.0)

    def linear_alpha_beta(self, x: Array, w: Array, b: Array | None, r: Array, *, alpha: float, beta: float) -> Array:
        bias = np.zeros(len(w)) if b is None else b
        plus, minus = self.signed(x, w)
        up = _handed_on(plus, self.divided(alpha * r, plus.sum(-1) + self.signed_bias(bias, 1)))
        return up if beta == 0 else up + _handed_on(minus, self.divided(-beta * r, minus.sum(-1) + self.signed_bias(bias, -1)))

    def signed(self, x: Array, w: Array) -> tuple[Array, Array]:
        c = _contributions(x, w)
        return _plus(c), _minus(c)

    def signed_bias(self, b: Array, sign: int) -> Array:
        return _plus(b) if sign > 0 else _minus(b)

    def linear_flat(self, x: Array, w: Array, b: Array | None, r: Array) -> Array:
        return np.broadcast_to(r.sum(-1, keepdims=True) / x.shape[-1], x.shape).copy()

    def linear_w_square(self, x: Array, w: Array, b: Array | None, r: Array) -> Array:
        return self.divided(r, (w * w).sum(-1)) @ (w * w)

    def linear_z_box(self, x: Array, w: Array, b: Array | None, r: Array, *, low: float, high: float) -> Array:
        c = _plus(w) * (x - low)[..., None, :] + _minus(w) * (x - high)[..., None, :]
        return _handed_on(c, self.divided(r, c.sum(-1)))

    def linear_sum(self, x: Array, w: Array, b: Array | None) -> Array:
        """The z that a rule divides by."""
        return x @ w.T if b is None else x @ w.T + b

    # convolutions whose stride is their kernel: linear layers on patches

    def convolution_epsilon(self, x: Array, w: Array, b: Array | None, r: Array, *, eps: float, stabilizer: str = "sign") -> Array:
        return self.on_patches(lambda p, k, g: self.linear_epsilon(p, k, b, g, eps=eps, stabilizer=stabilizer), x, w, r)

    def convolution_z_plus(self, x: Array, w: Array, b: Array | None, r: Array) -> Array:
        return self.on_patches(lambda p, k, g: self.linear_z_plus(p, k, b, g), x, w, r)

    def convolution_gradient(self, x: Array, w: Array, b: Array | None, g: Array) -> Array:
        return self.on_patches(lambda p, k, g: self.linear_gradient(p, k, b, g), x, w, g)

    def on_patches(self, rule: Callable[[Array, Array, Array], Array], x: Array, w: Array, r: Array) -> Array:
        outputs = r.reshape(*r.shape[:2], -1).swapaxes(1, 2)  # (B, O, H/h, W/w) -> (B, N, O)
        return _image(rule(_patches(x, w.shape[2:]), w.reshape(len(w), -1), outputs), x.shape, w.shape[2:])

    # sums

    def add_epsilon(self, a: Array, b: Array, r: Array, *, eps: float, stabilizer: str = "sign") -> Answer:
        return self.sum_epsilon([a, b], r, eps=eps, stabilizer=stabilizer)

    def sum_epsilon(self, operands: Sequence[Array], r: Array, *, eps: float, stabilizer: str = "sign") -> Answer:
        s = self.share(_sum(operands), r, eps, stabilizer)
        return tuple(_fold(a * s, a) for a in operands)

    def add_gradient(self, a: Array, b: Array, g: Array) -> Answer:
        return _fold(g, a), _fold(g, b)

    def fan_out_epsilon(self, x: Array, w1: Array, w2: Array, r: Array, *, eps: float, stabilizer: str = "sign") -> Array:
        r1, r2 = self.add_epsilon(x @ w1.T, x @ w2.T, r, eps=eps, stabilizer=stabilizer)
        first = self.linear_epsilon(x, w1, None, r1, eps=eps, stabilizer=stabilizer)
        return self.met(first, self.linear_epsilon(x, w2, None, r2, eps=eps, stabilizer=stabilizer))

    def met(self, first: Array, second: Array) -> Array:
        return first + second

    # products

    def multiply_uniform(self, operands: Sequence[Array], r: Array, *, constant: Sequence[bool] | None = None) -> Answer:
        fixed = constant or [False] * len(operands)
        return tuple(None if c else _fold(part * r, a) for a, c, part in zip(operands, fixed, self.parts(operands, fixed), strict=True))

    def multiply_half(self, operands: Sequence[Array], g: Array, *, constant: Sequence[bool] | None = None) -> Answer:
        fixed = constant or [False] * len(operands)
        full = self.multiply_gradient(operands, g, constant=None)
        return tuple(None if c else part * d for d, c, part in zip(full, fixed, self.parts(operands, fixed), strict=True))

    def parts(self, operands: Sequence[Array], fixed: Sequence[bool]) -> list[Any]:
        """Which part of R each operand gets."""
        return [1 / list(fixed).count(False) if not all(fixed) else 0.0] * len(operands)

    def multiply_gradient(self, operands: Sequence[Array], g: Array, *, constant: Sequence[bool] | None = None) -> Answer:
        fixed = constant or [False] * len(operands)
        return tuple(None if c else _fold(_others(operands, k) * g, operands[k]) for k, c in enumerate(fixed))

    def multiply_second(self, a: Array, b: Array, r: Array) -> Array:
        return _fold(r, b)

    def multiply_second_gradient(self, a: Array, b: Array, g: Array) -> Array:
        return _fold(a * g, b)

    def matmul_uniform(
        self, a: Array, v: Array, r: Array, *, eps: float, stabilizer: str = "sign", denominator: str = "2z+eps"
    ) -> Answer:
        o = a @ v
        s = self.share(2 * o, r, eps, stabilizer) if denominator == "2z+eps" else self.share(o, r, eps, stabilizer) / 2
        return a * (s @ _swap(v)), v * (_swap(a) @ s)

    def matmul_second(self, a: Array, v: Array, r: Array, *, eps: float, stabilizer: str = "sign") -> Array:
        return v * (_swap(a) @ self.share(a @ v, r, eps, stabilizer))

    def matmul_half(self, a: Array, v: Array, g: Array) -> Answer:
        return g @ _swap(v) / 2, _swap(a) @ g / 2

    def matmul_second_gradient(self, a: Array, v: Array, g: Array) -> Array:
        return _swap(a) @ g

    def matmul_gradient(self, a: Array, v: Array, g: Array) -> Answer:
        return g @ _swap(v), _swap(a) @ g

    # softmax

    def softmax_taylor(self, x: Array, r: Array, *, mask: Array | None = None, axis: int = -1) -> Array:
        filled = self.filled(x, mask)
        r, p = r * self.seen(filled), self.probabilities(filled, axis)
        return self.logits(filled, axis) * (r - p * self.along(r, axis))

    def softmax_gradient(self, x: Array, g: Array, *, mask: Array | None = None, axis: int = -1) -> Array:
        p = self.probabilities(self.filled(x, mask), axis)
        return p * (g - self.along(p * g, axis))

    def softmax_spread(self, x: Array, r: Array, *, mask: Array | None = None, axis: int = -1) -> Array:
        filled = self.filled(x, mask)
        seen, p, logits = self.seen(filled), self.probabilities(filled, axis), self.logits(filled, axis)
        offset = self.along(r * seen * (1 - logits + self.along(p * logits, axis)), axis)
        return self.softmax_taylor(x, r, mask=mask, axis=axis) + seen * offset / np.maximum(seen.sum(axis, keepdims=True), 1)

    def softmax_z_plus(self, x: Array, r: Array, *, mask: Array | None = None, axis: int = -1) -> Array:
        filled = np.moveaxis(self.filled(x, mask), axis, -1)
        r = np.moveaxis(r, axis, -1) * self.seen(filled)
        c = _plus(self.expansion(self.logits(filled, -1), self.probabilities(filled, -1)))
        return np.moveaxis(_handed_on(c, self.divided(r, c.sum(-1))), -1, axis)

    def expansion(self, x: Array, p: Array) -> Array:  # (..., I) -> (..., J, I)
        """x_i (delta_ij - p_i); 1 - p_i as the sum of the others, for the difference would cancel."""
        own = np.eye(p.shape[-1])
        return x[..., None, :] * (own * (p @ (1 - own))[..., None, :] - (1 - own) * p[..., None, :])

    def softmax_identity(self, x: Array, r: Array, *, mask: Array | None = None, axis: int = -1) -> Array:
        return r * self.seen(self.filled(x, mask))

    def filled(self, x: Array, mask: Array | None) -> Array:
        """The logits with -inf wherever they are masked, by whichever means."""
        hidden = x <= self.lowest / 2
        return np.where(hidden if mask is None else hidden | ~mask, -np.inf, x)

    def seen(self, filled: Array) -> Array:
        return ~np.isneginf(filled)

    def logits(self, filled: Array, axis: int) -> Array:
        return np.where(np.isneginf(filled), 0.0, filled)

    def probabilities(self, filled: Array, axis: int) -> Array:
        top = filled.max(axis, keepdims=True)
        e = np.exp(filled - np.where(np.isneginf(top), 0.0, top))
        total = e.sum(axis, keepdims=True)
        return e / np.where(total == 0, 1.0, total)

    def along(self, r: Array, axis: int) -> Array:
        return r.sum(axis, keepdims=True)

    # norms

    def rms_norm_identity(self, x: Array, w: Array, r: Array, *, norm_eps: float) -> Array:
        return r

    def rms_norm_frozen(self, x: Array, w: Array, g: Array, *, norm_eps: float) -> Array:
        return w * g / self.root(_mean_square(x), norm_eps)

    def rms_norm_gradient(self, x: Array, w: Array, g: Array, *, norm_eps: float) -> Array:
        square = _mean_square(x)
        along = (w * g * x).sum(-1, keepdims=True) / self.root(square, norm_eps) ** 2
        return w * g / self.root(square, norm_eps) - along * self.root_slope(square, norm_eps) * 2 * x / x.shape[-1]

    def layer_norm_epsilon(
        self, x: Array, w: Array, b: Array | None, r: Array, *, norm_eps: float, eps: float, stabilizer: str = "sign"
    ) -> Array:
        z = _centred(x) / self.std(x, norm_eps) * w
        s = self.share(z if b is None else z + b, r, eps, stabilizer)
        return x * self.layer_norm_frozen(x, w, b, s, norm_eps=norm_eps)

    def layer_norm_identity(self, x: Array, w: Array, b: Array | None, r: Array, *, norm_eps: float) -> Array:
        return r

    def layer_norm_frozen(self, x: Array, w: Array, b: Array | None, g: Array, *, norm_eps: float) -> Array:
        return self.pulled_through_mean(w * g / self.std(x, norm_eps))

    def layer_norm_gradient(self, x: Array, w: Array, b: Array | None, g: Array, *, norm_eps: float) -> Array:
        c, std = _centred(x), self.std(x, norm_eps)
        along = (w * g * c).sum(-1, keepdims=True) / std**2
        return self.pulled_through_mean(w * g / std) - along * self.root_slope(self.variance(x), norm_eps) * 2 * c / self.degrees(x)

    def pulled_through_mean(self, c: Array) -> Array:
        return _centred(c)

    def std(self, x: Array, norm_eps: float) -> Array:
        return self.root(self.variance(x), norm_eps)

    def variance(self, x: Array) -> Array:
        return (_centred(x) ** 2).sum(-1, keepdims=True) / self.degrees(x)

    def degrees(self, x: Array) -> int:
        return int(x.shape[-1])

    def root(self, square: Array, norm_eps: float) -> Array:
        return np.sqrt(square + norm_eps)

    def root_slope(self, square: Array, norm_eps: float) -> Array:
        """Its derivative."""
        return 0.5 / self.root(square, norm_eps)

    # activations

    def activation_identity(self, x: Array, r: Array, *, kind: str) -> Array:
        return r

    def activation_ratio(self, x: Array, g: Array, *, kind: str) -> Array:
        return g * ratio(x, kind)

    def activation_gradient(self, x: Array, g: Array, *, kind: str) -> Array:
        return g * slope(x, kind)

    # rotation, pooling, scale, movement

    def rotary_epsilon(self, x: Array, cos: Array, sin: Array, r: Array, *, eps: float, stabilizer: str = "sign") -> Array:
        z = x * cos + self.turned(x, -1) * sin
        return x * self.rotary_gradient(x, cos, sin, self.share(z, r, eps, stabilizer))

    def rotary_gradient(self, x: Array, cos: Array, sin: Array, g: Array) -> Array:
        return g * cos + self.turned(g * sin, 1)

    def turned(self, x: Array, sign: int) -> Array:
        """[-x2, x1] for sign -1, and its transpose for sign +1."""
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([sign * second, -sign * first], axis=-1)

    def pooling_epsilon(self, x: Array, r: Array, *, counted: Array | None = None, eps: float, stabilizer: str = "sign") -> Array:
        m = np.ones_like(x[..., :1]) if counted is None else counted
        return m * x * self.share((m * x).sum(-2, keepdims=True), r, eps, stabilizer)

    def pooling_gradient(self, x: Array, g: Array, *, counted: Array | None = None) -> Array:
        m = np.ones_like(x) if counted is None else np.broadcast_to(counted, x.shape)
        return m * g / m.sum(-2, keepdims=True)

    def scale_follow(self, x: Array, r: Array, *, factor: float) -> Array:
        return r

    def scale_gradient(self, x: Array, g: Array, *, factor: float) -> Array:
        return factor * g

    def repeat_heads_follow(self, x: Array, r: Array, *, times: int) -> Array:
        return r.reshape(r.shape[0], -1, times, *r.shape[2:]).sum(2)

    def gather_follow(self, x: Array, r: Array, *, index: Sequence[Sequence[int]]) -> Array:
        relevance = np.zeros_like(x)
        for b, rows in enumerate(index):
            for n, row in enumerate(rows):
                self.arrived(relevance[b], row, r[b, n])
        return relevance

    def arrived(self, relevance: Array, row: int, r: Array) -> None:
        relevance[row] += r

    def top_k_follow(self, x: Array, r: Array, *, k: int) -> Array:
        relevance = np.zeros_like(x)
        np.put_along_axis(relevance, self.chosen(x, k), r, axis=-1)
        return relevance

    def chosen(self, x: Array, k: int) -> Array:
        return np.argsort(-x, axis=-1, kind="stable")[..., :k]

    def renormalise_identity(self, x: Array, r: Array) -> Array:
        return r

    def renormalise_epsilon(self, x: Array, r: Array, *, eps: float, stabilizer: str = "sign") -> Array:
        z = x / x.sum(-1, keepdims=True)
        s = self.share(z, r, eps, stabilizer)
        return z * (s - (z * s).sum(-1, keepdims=True))

    def renormalise_frozen(self, x: Array, g: Array) -> Array:
        return g / x.sum(-1, keepdims=True)

    def renormalise_gradient(self, x: Array, g: Array) -> Array:
        total = x.sum(-1, keepdims=True)
        return (g - (x / total * g).sum(-1, keepdims=True)) / total

    # attention, of the rules above

    def attention_attnlrp(
        self, q: Array, k: Array, v: Array, r: Array, *, scale: float, causal: bool = False, mask: Array | None = None,
        eps: float, stabilizer: str = "sign", denominator: str = "2z+eps",
    ) -> Answer:  # fmt: skip
        q, keys, values, scores, visible, p = self.attended(q, k, v, scale, causal, mask)
        r_p, r_v = self.context_product(p, values, r, eps=eps, stabilizer=stabilizer, denominator=denominator)
        r_s = self.softmax_taylor(scores, r_p, mask=visible)
        r_q, r_k = self.score_product(q, _swap(keys), r_s, eps=eps, stabilizer=stabilizer, denominator=denominator)
        return self.scale_follow(q, r_q, factor=scale), self.summed_back(k, _swap(r_k)), self.summed_back(v, r_v)

    def context_product(self, a: Array, v: Array, r: Array, **options: Any) -> Any:
        return self.matmul_uniform(a, v, r, **options)

    def score_product(self, a: Array, v: Array, r: Array, **options: Any) -> Any:
        return self.matmul_uniform(a, v, r, **options)

    def attention_cp(
        self, q: Array, k: Array, v: Array, r: Array, *, scale: float, causal: bool = False, mask: Array | None = None,
        eps: float, stabilizer: str = "sign",
    ) -> Answer:  # fmt: skip
        _, _, values, _, _, p = self.attended(q, k, v, scale, causal, mask)
        return None, None, self.summed_back(v, self.matmul_second(p, values, r, eps=eps, stabilizer=stabilizer))

    def attention_gradient(
        self, q: Array, k: Array, v: Array, g: Array, *, scale: float, causal: bool = False, mask: Array | None = None
    ) -> Answer:
        q, keys, values, scores, visible, p = self.attended(q, k, v, scale, causal, mask)
        g_p, g_v = self.matmul_half(p, values, g)
        g_s = self.softmax_gradient(scores, g_p, mask=visible)
        g_q, g_k = self.matmul_half(q, _swap(keys), g_s)
        return self.scale_gradient(q, g_q, factor=scale), self.summed_back(k, _swap(g_k)), self.summed_back(v, g_v)

    def attention_cp_gradient(
        self, q: Array, k: Array, v: Array, g: Array, *, scale: float, causal: bool = False, mask: Array | None = None
    ) -> Answer:
        _, _, values, _, _, p = self.attended(q, k, v, scale, causal, mask)
        return None, None, self.summed_back(v, self.matmul_second_gradient(p, values, g))

    def attended(self, q: Array, k: Array, v: Array, scale: float, causal: bool, mask: Array | None) -> tuple[Array, ...]:
        """The forward: queries scaled, keys and values repeated, scores, what is visible, probabilities."""
        times = q.shape[1] // k.shape[1]
        q, keys, values = q * scale, self.repeated(k, times), self.repeated(v, times)
        scores = q @ _swap(keys)
        visible = self.visible(scores, causal, mask)
        return q, keys, values, scores, visible, self.probabilities(self.filled(scores, visible), -1)

    def visible(self, scores: Array, causal: bool, mask: Array | None) -> Array:
        seen = np.ones_like(scores, dtype=bool) if mask is None else np.broadcast_to(mask, scores.shape)
        return np.tril(seen) if causal else seen

    def repeated(self, x: Array, times: int) -> Array:
        return np.repeat(x, times, axis=1)

    def summed_back(self, x: Array, r: Array) -> Array:
        return self.repeat_heads_follow(x, r, times=r.shape[1] // x.shape[1])

    # small networks

    def network(self, layers: Sequence[Layer], x: Array, seeds: Sequence[Array]) -> Answer:
        xs = reduce(lambda done, layer: [*done, self.forward(layer, done[-1])], layers, [x])
        return xs[-1], *(self.swept(layers, xs, r) for r in seeds)

    def forward(self, layer: Layer, x: Array) -> Array:
        if layer["operation"] == "activation":
            return activation(x, layer["kind"])
        return x @ layer["w"].T if layer["b"] is None else x @ layer["w"].T + layer["b"]

    def swept(self, layers: Sequence[Layer], xs: Sequence[Array], r: Array) -> Array:
        for layer, x in zip(reversed(layers), reversed(xs[:-1]), strict=True):
            r = self.undone(layer, x, r)
        return r

    def undone(self, layer: Layer, x: Array, r: Array) -> Array:
        if layer["operation"] == "activation":
            return self.activation_identity(x, r, kind=layer["kind"])
        options = {name: value for name, value in layer.items() if name not in ("operation", "rule", "w", "b")}
        rule = getattr(self, f"linear_{layer['rule']}")
        relevance: Array = rule(x, layer["w"], layer["b"], r, **options)
        return relevance


# -- small pieces ---------------------------------------------------------------------------------------------------------------------


def _wide(value: Any) -> Any:
    """Every array of floats in float64, within lists and dicts too."""
    if isinstance(value, np.ndarray):
        return value.astype(np.float64) if value.dtype.kind == "f" else value
    if isinstance(value, (list, tuple)):
        return [_wide(each) for each in value]
    return {key: _wide(each) for key, each in value.items()} if isinstance(value, dict) else value


def _plus(c: Array) -> Array:
    return np.maximum(c, 0.0)


def _minus(c: Array) -> Array:
    return np.minimum(c, 0.0)


def _swap(a: Array) -> Array:
    return a.swapaxes(-1, -2)


def _centred(x: Array) -> Array:
    return x - x.mean(-1, keepdims=True)


def _mean_square(x: Array) -> Array:
    return (x * x).mean(-1, keepdims=True)


def _sum(operands: Sequence[Array]) -> Array:
    return reduce(lambda a, b: a + b, operands)


def _others(operands: Sequence[Array], k: int) -> Array:
    return reduce(lambda a, b: a * b, [a for i, a in enumerate(operands) if i != k], np.ones(()))


def _fold(r: Array, like: Array) -> Array:
    """Summed over the axes along which `like` was broadcast."""
    r = r.sum(tuple(range(r.ndim - like.ndim)))
    return r.sum(tuple(i for i, n in enumerate(like.shape) if n == 1 and r.shape[i] != 1), keepdims=True).reshape(like.shape)


def _contributions(x: Array, w: Array) -> Array:  # (..., I), (O, I) -> (..., O, I)
    return x[..., None, :] * w


def _handed_on(c: Array, s: Array) -> Array:  # (..., O, I), (..., O) -> (..., I)
    return (c * s[..., None]).sum(-2)


def _patches(x: Array, size: Sequence[int]) -> Array:  # (B, C, H, W) -> (B, N, C h w)
    (b, c, *_), (h, w) = x.shape, size
    rows, columns = x.shape[2] // h, x.shape[3] // w
    cut = x[:, :, : rows * h, : columns * w].reshape(b, c, rows, h, columns, w)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(b, rows * columns, c * h * w)


def _image(p: Array, shape: Sequence[int], size: Sequence[int]) -> Array:  # (B, N, C h w) -> (B, C, H, W)
    (b, c, *_), (h, w) = shape, size
    rows, columns = shape[2] // h, shape[3] // w
    image = np.zeros(shape)
    image[:, :, : rows * h, : columns * w] = (
        p.reshape(b, rows, columns, c, h, w).transpose(0, 3, 1, 4, 2, 5).reshape(b, c, rows * h, columns * w)
    )
    return image


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1 + e)


def _inner(x: Array) -> Array:
    return math.sqrt(8 / math.pi) * (x + 0.044715 * x**3)


def _cut(x: Array) -> Array:
    """The gates of gelu are 0 or 1 beyond this, and x^3 stays finite."""
    return np.clip(x, -100.0, 100.0)


_normal = np.vectorize(lambda x: math.erfc(-x / math.sqrt(2)) / 2, otypes=[np.float64])

GATES: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: np.asarray(_normal(_cut(x))),
    "gelu_tanh": lambda x: _sigmoid(_inner(_cut(x))),
    "silu": _sigmoid,
    "quick_gelu": lambda x: _sigmoid(1.702 * x),
    "relu": lambda x: np.where(x > 0, 1.0, 0.0),
}
"""All but tanh are x times a gate."""

GATE_SLOPES: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: np.exp(-_cut(x) ** 2 / 2) / math.sqrt(2 * math.pi),
    "gelu_tanh": lambda x: _bell(_inner(_cut(x))) * math.sqrt(8 / math.pi) * (1 + 3 * 0.044715 * _cut(x) ** 2),
    "silu": lambda x: _bell(x),
    "quick_gelu": lambda x: 1.702 * _bell(1.702 * x),
    "relu": lambda x: np.zeros_like(x),
}


def _bell(x: Array) -> Array:
    return _sigmoid(x) * _sigmoid(-x)


def activation(x: Array, kind: str) -> Array:
    return np.tanh(x) if kind == "tanh" else x * GATES[kind](x)


def ratio(x: Array, kind: str) -> Array:
    """f(x)/x, and its limit at 0."""
    return np.where(x == 0, 1.0, np.tanh(x) / np.where(x == 0, 1.0, x)) if kind == "tanh" else GATES[kind](x)


def slope(x: Array, kind: str) -> Array:
    """f'(x)."""
    if kind == "tanh":
        return 4 * _bell(2 * x)
    return GATES[kind](x) + _cut(x) * GATE_SLOPES[kind](x)


def rounded(x: Array, dtype: str) -> Array:
    """To the nearest number of a 16-bit format, held in float64."""
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float64)
    bits = np.asarray(x, dtype=np.float32).view(np.uint32)
    near = (bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), np.nan, near.astype(np.uint32).view(np.float32).astype(np.float64))


# -- ways to be wrong ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mistake:
    id: str
    where: str
    """Libraries in which it was found, or "common mistake"."""
    says: str
    """What goes wrong, and its effect."""
    rules: tuple[str, ...]
    """Rules that can show it; `network` for small networks."""
    kind: Literal["fault", "convention"]
    wrong: Way | None
    """What an implementation with this mistake answers; Inapplicable where it is no different. None: only behaviour shows it."""
    also: tuple[Way, ...] = ()
    """Other forms in which the same mistake is met."""
    behaviour: str = ""
    """For networks, what shows it: `again` (a second call differs), `targets` (several seeds), `forward` (z is changed)."""

    @property
    def ways(self) -> tuple[Way, ...]:
        return ((self.wrong,) if self.wrong else ()) + self.also


def planted(**parts: Any) -> Way:
    """The right rules with some of their functions replaced."""
    kind = type("Planted", (Right,), parts)
    return lambda case: kind(case.dtype).answer(case)


def called(change: Callable[[Case], dict[str, Any]]) -> Way:
    """The right rule, called with other operands or options than it was asked for."""
    return lambda case: Right(case.dtype).answer(_changed(case, change(case)))


def spoilt(change: Callable[[Case, Array, Array], Array | None]) -> Way:
    """The right answer, each array changed: change(case, the operand it belongs to, the array)."""

    def way(case: Case) -> Answer:
        right = Right(case.dtype).answer(case)
        return tuple(
            got if name == "z" or got is None else change(case, _operand(case, name), got)
            for name, got in zip(case.returns, right, strict=True)
        )

    return way


def _changed(case: Case, new: dict[str, Any]) -> Case:
    inputs = {name: value for name, value in new.items() if name in case.inputs}
    known = {name: value for name, value in new.items() if name in case.signature.options}
    return replace(case, inputs={**case.inputs, **inputs}, options={**case.options, **known})


def _operand(case: Case, name: str) -> Array:
    name, _, member = name.partition(".")
    held = _wide(case.inputs[name])
    return held[int(member)] if member and isinstance(held, list) else held


def _carried(case: Case, name: str) -> Array:
    """The relevance that arrived: of the seed, where a network answers several."""
    _, _, member = name.partition(".")
    held = _wide(case.inputs[case.seed])
    return held[int(member)] if case.rule == "network" else held


def _checked(way: Way, rules: tuple[str, ...]) -> Way:
    """Without the answers that do not differ, and with numbers beyond the case's format as infinities."""

    def wrong(case: Case) -> Answer:
        if case.rule not in rules:
            raise Inapplicable(f"it is not a mistake of {case.rule}")
        right = Right(case.dtype).answer(case)
        with np.errstate(all="ignore"):
            got = tuple(None if a is None else _overflowed(a, case.dtype) for a in way(case))
        if not any(_differs(case, *each) for each in zip(case.returns, right, got, strict=True)):
            raise Inapplicable("it makes no difference here")
        return got

    return wrong


def _overflowed(a: Array, dtype: str) -> Array:
    return np.where(np.abs(a) > GREATEST[dtype], np.copysign(np.inf, a), a)


def _differs(case: Case, name: str, right: Array | None, got: Array | None) -> bool:
    """By more than the case's tolerance where it has one, and than rounding in float64."""
    if right is None or got is None:
        return bool(np.any(got if right is None else right)) and (right is None) != (got is None)
    if right.shape != got.shape:
        return True
    condition = case.condition.get(name)
    allowed = 1e-12 * np.abs(right) + (0.0 if condition is None else case.units * case.u * condition)
    with np.errstate(all="ignore"):
        return not bool(np.all((np.abs(got - right) <= allowed) | (got == right) | (np.isnan(got) & np.isnan(right))))


def named(patterns: str) -> tuple[str, ...]:
    """The rules that match any of the patterns, in the order of SIGNATURES; `network` last."""
    return tuple(rule for rule in (*SIGNATURES, "network") if any(fnmatchcase(rule, each) for each in patterns.split()))


_RELEVANCE = " ".join(rule for rule, each in SIGNATURES.items() if each.carries == "relevance")
_KEEPING = (
    "multiply_uniform multiply_second rms_norm_identity layer_norm_identity activation_identity scale_follow repeat_heads_follow "
    "gather_follow top_k_follow renormalise_identity linear_flat linear_w_square linear_z_box"
)
"""Rules that absorb nothing, or only what has no receiver."""
_ABSORBING = " ".join(rule for rule in _RELEVANCE.split() if rule not in _KEEPING.split())
_GRADIENT = " ".join(rule for rule, each in SIGNATURES.items() if each.carries == "gradient")
_EPSILON = " ".join(rule for rule, each in SIGNATURES.items() if "eps" in each.options)
_SOFTMAX = "softmax_taylor softmax_spread softmax_z_plus softmax_identity softmax_gradient"
_ATTENTION = "attention_attnlrp attention_cp attention_gradient attention_cp_gradient"
_BY_EPSILON = f"{_EPSILON} network"


def fault(id: str, where: str, rules: str, says: str, *ways: Way, behaviour: str = "") -> Mistake:
    return _mistake("fault", id, where, rules, says, ways, behaviour)


def convention(id: str, where: str, rules: str, says: str, *ways: Way) -> Mistake:
    """A choice that some make on purpose: wrong only where the case asks for another."""
    return _mistake("convention", id, where, rules, says, ways, "")


def _mistake(
    kind: Literal["fault", "convention"], id: str, where: str, rules: str, says: str, ways: tuple[Way, ...], behaviour: str
) -> Mistake:
    names = named(rules)
    checked = tuple(_checked(way, names) for way in ways)
    return Mistake(id, where, says, names, kind, checked[0] if checked else None, checked[1:], behaviour)


# -- the wrong parts that take more than a line ------------------------------------------------------------------------------------------


def _sign_of_zero(self: Right, z: Array, eps: float, kind: str) -> Array:
    return z + eps * np.sign(z) if kind == "sign" else Right.stabilised(self, z, eps, kind)


def _other_eps(eps: float) -> Way:
    return planted(share=lambda self, z, r, _, kind: Right.share(self, z, r, eps, kind))


def _proportional(self: Right, operands: Sequence[Array], fixed: Sequence[bool]) -> list[Any]:
    total = _sum([np.abs(a) for a, c in zip(operands, fixed, strict=True) if not c])
    return [np.abs(a) / total for a in operands]


def _by_size(floor: float) -> Callable[..., Answer]:
    """|a| / (sum of |a| + floor eps); 0 where all are 0."""

    def sum_epsilon(self: Right, operands: Sequence[Array], r: Array, *, eps: float, stabilizer: str = "sign") -> Answer:
        s = self.divided(r, _sum([np.abs(a) for a in operands]) + floor * eps)
        return tuple(_fold(np.abs(a) * s, a) for a in operands)

    return sum_epsilon


def _rescaled_over_batch(self: Right, operands: Sequence[Array], r: Array, *, eps: float, stabilizer: str = "sign") -> Answer:
    """Each branch scaled to its part |sum a| / sum of |sum a| of all the relevance there is, sums over the whole batch."""
    shares = Right.sum_epsilon(self, operands, r, eps=eps, stabilizer=stabilizer)
    sums: list[Any] = [a.sum() for a in shares if a is not None]
    total = sum(np.abs(each) for each in sums)
    return tuple(np.sign(each) * a * (r.sum() / total) for a, each in zip(shares, sums, strict=True) if a is not None)


def _rescaled(axes: int) -> Way:
    """Every array scaled by one number so that the sum of all is what arrived: per example (axes from 1), or over the batch (from 0)."""

    def way(case: Case) -> Answer:
        right = Right(case.dtype).answer(case)
        if case.rule == "network":
            arrived = _wide(case.inputs["seeds"])
            return right[0], *(_scaled((a,), r, axes)[0] for a, r in zip(right[1:], arrived, strict=True) if a is not None)
        return _scaled(right, _wide(case.inputs[case.seed]), axes)

    return way


def _scaled(answer: Answer, r: Array, axes: int) -> Answer:
    sums = sum(_total(a, axes) for a in answer if a is not None)
    factor = np.asarray(_total(r, axes) / sums)
    return tuple(None if a is None else a * factor.reshape(factor.shape + (1,) * (a.ndim - factor.ndim)) for a in answer)


def _total(a: Array, axes: int) -> Array:
    return a.sum(tuple(range(axes, a.ndim)))


def _uniform_mean(axes: int) -> Way:
    def way(case: Case) -> Answer:
        right = Right(case.dtype).answer(case)
        if case.rule == "network":
            return right[0], *(_mean_of((a,), r, axes)[0] for a, r in zip(right[1:], _wide(case.inputs["seeds"]), strict=True))
        return _mean_of(right, _wide(case.inputs[case.seed]), axes)

    return way


def _mean_of(answer: Answer, r: Array, axes: int) -> Answer:
    count = sum(math.prod(a.shape[axes:]) for a in answer if a is not None)
    mean = np.asarray(_total(r, axes) / count)
    return tuple(None if a is None else np.zeros(a.shape) + mean.reshape(mean.shape + (1,) * (a.ndim - mean.ndim)) for a in answer)


def _half_precision(eps: float | None) -> Way:
    """z, z + eps and R / (z + eps) each rounded to the 16-bit format, and eps itself; nothing guards 0 / 0."""

    def share(self: Right, z: Array, r: Array, asked: float, kind: str) -> Array:
        d = self.stabilised(rounded(z, self.dtype), float(rounded(np.asarray(asked if eps is None else eps), self.dtype)), kind)
        return rounded(r / rounded(d, self.dtype), self.dtype)

    way = planted(share=share)

    def wrong(case: Case) -> Answer:
        if case.dtype not in ("float16", "bfloat16"):
            raise Inapplicable("it is a mistake of the 16-bit formats")
        return way(case)

    return wrong


def _clamped_divide(fixed: float | None) -> Way:
    """r / (max(z, c) + min(z, c)), which is z + c whatever the sign of z, and c where that is zero; 0 where z is."""

    def share(self: Right, z: Array, r: Array, eps: float, kind: str) -> Array:
        c = fixed or eps
        d = np.maximum(z, c) + np.minimum(z, c)
        return r / np.where(d == 0, c, d) * (z != 0)

    return planted(share=share, divided=lambda self, r, d: share(self, d, r, fixed or 1e-9, "plain"))


def _weights_amplified(case: Case) -> Answer:
    """The forward itself runs with w + gamma w^+, and the sweep with it."""
    if case.rule != "network":
        raise Inapplicable("it shows in a network's forward")
    layers = [_amplified(layer) for layer in _wide(case.inputs["layers"])]
    return Right(case.dtype).answer(replace(case, inputs={**case.inputs, "layers": layers}))


def _amplified(layer: Layer) -> Layer:
    if layer.get("rule") != "gamma":
        return layer
    return {"operation": "linear", "w": layer["w"] + layer["gamma"] * _plus(layer["w"]), "b": layer["b"], "rule": "epsilon", "eps": 1e-9}


def _default_rules(case: Case) -> dict[str, Any]:
    layers = [
        {**{key: layer[key] for key in ("operation", "w", "b")}, "rule": "epsilon", "eps": 1e-9} if layer["operation"] == "linear" else layer
        for layer in case.inputs["layers"]
    ]
    return {"layers": layers}


def _input_times_gradient(case: Case) -> Answer:
    """Seeded with R / z, as a gradient is."""
    way = planted(
        undone=lambda self, layer, x, g: (
            g * slope(x, layer["kind"]) if layer["operation"] == "activation" else self.linear_gradient(x, layer["w"], layer["b"], g)
        ),
        swept=lambda self, layers, xs, r: xs[0] * Right.swept(self, layers, xs, self.divided(r, xs[-1])),
    )
    return way(case)


def _outputs(case: Case) -> Array:
    """What the operation of a gradient-carrying rule computes."""
    *operands, _ = _wide(case.arguments)
    options, right = _wide(dict(case.options)), Right(case.dtype)
    forward: dict[str, Callable[[], Array]] = {
        "linear": lambda: right.linear_sum(*operands),
        "convolution": lambda: _convolved(*operands),
        "add": lambda: _sum(operands),
        "multiply": lambda: math.prod(operands[0] if isinstance(operands[0], list) else operands),
        "matmul": lambda: operands[0] @ operands[1],
        "softmax": lambda: right.probabilities(right.filled(operands[0], options.get("mask")), options.get("axis", -1)),
        "rms": lambda: operands[0] * right.rms_norm_frozen(operands[0], operands[1], np.ones(1), **options),
        "layer": lambda: _normed(right, *operands, **options),
        "activation": lambda: activation(operands[0], options["kind"]),
        "rotary": lambda: operands[0] * operands[1] + right.turned(operands[0], -1) * operands[2],
        "pooling": lambda: (operands[0] * right.pooling_gradient(operands[0], np.ones(1), **options)).sum(-2, keepdims=True),
        "scale": lambda: operands[0] * options["factor"],
        "renormalise": lambda: operands[0] / operands[0].sum(-1, keepdims=True),
        "attention": lambda: _context(right, *operands, **options),
    }
    return forward[case.rule.partition("_")[0]]()


def _convolved(x: Array, w: Array, b: Array | None) -> Array:
    z = Right().linear_sum(_patches(x, w.shape[2:]), w.reshape(len(w), -1), b)
    return z.swapaxes(1, 2).reshape(len(x), len(w), x.shape[2] // w.shape[2], x.shape[3] // w.shape[3])


def _normed(right: Right, x: Array, w: Array, b: Array | None, *, norm_eps: float) -> Array:
    z = _centred(x) / right.std(x, norm_eps) * w
    return z if b is None else z + b


def _context(right: Right, q: Array, k: Array, v: Array, *, scale: float, causal: bool = False, mask: Array | None = None) -> Array:
    _, _, values, _, _, p = right.attended(q, k, v, scale, causal, mask)
    return p @ values


def _seeded_with_outputs(case: Case) -> dict[str, Any]:
    if case.rule == "network":
        z = Right().answer(case)[0]
        return {"seeds": [r * z for r in _wide(case.inputs["seeds"])]}
    return {"g": _wide(case.inputs["g"]) * _outputs(case)}


def _without_input(case: Case, x: Array, got: Array) -> Array:
    if np.any(x == 0):
        raise Inapplicable("an input is zero: what it was multiplied with cannot be told")
    return got / x


def _chained(self: Right, operands: Sequence[Array], r: Array, *, eps: float, stabilizer: str = "sign") -> Answer:
    """((a + b) + c) + ..., each sum with a stabiliser of its own."""
    given: list[Array] = []
    for k in range(len(operands) - 1, 0, -1):
        r, last = Right.sum_epsilon(self, [_sum(operands[:k]), operands[k]], r, eps=eps, stabilizer=stabilizer)
        given.insert(0, last)
    return (r, *given)


def _interleaved(self: Right, x: Array, sign: int) -> Array:
    """Neighbours as pairs: [-x1, x0, -x3, x2, ...] for sign -1."""
    z = np.empty_like(x)
    z[..., ::2], z[..., 1::2] = sign * x[..., 1::2], -sign * x[..., ::2]
    return z


def _angles_of_pairs(case: Case) -> dict[str, Any]:
    """cos and sin laid out for neighbouring pairs."""
    half = case.inputs["cos"].shape[-1] // 2
    return {name: np.repeat(case.inputs[name][..., :half], 2, axis=-1) for name in ("cos", "sin")}


def _full_jacobian(self: Right, x: Array, w: Array, b: Array | None, r: Array, *, norm_eps: float, eps: float, stabilizer: str = "sign") -> Array:
    z = _normed(self, x, w, b, norm_eps=norm_eps)
    return x * self.layer_norm_gradient(x, w, b, self.share(z, r, eps, stabilizer), norm_eps=norm_eps)


def _bias_spread(self: Right, x: Array, w: Array, b: Array | None, r: Array, *, eps: float, stabilizer: str = "sign") -> Array:
    relevance = Right.linear_epsilon(self, x, w, b, r, eps=eps, stabilizer=stabilizer)
    s = self.share(self.linear_sum(x, w, b), r, eps, stabilizer)
    return relevance if b is None else relevance + (s @ b)[..., None] / x.shape[-1]


def _all_spread(self: Right, x: Array, w: Array, b: Array | None, r: Array, *, eps: float, stabilizer: str = "sign") -> Array:
    """Bias and stabiliser both."""
    relevance = Right.linear_epsilon(self, x, w, b, r, eps=eps, stabilizer=stabilizer)
    return relevance + (r.sum(-1, keepdims=True) - relevance.sum(-1, keepdims=True)) / x.shape[-1]


def _naive_probabilities(self: Right, filled: Array, axis: int) -> Array:
    e = np.exp(filled - filled.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _absolute_gradient(a: Array, b: Array, g: Array) -> Answer:
    """(a + b) g split by |a| and |b|, each part over its operand: the sign of a, not a, decides."""
    each = (a + b) * g / (np.abs(a) + np.abs(b))
    return _fold(np.sign(a) * each, a), _fold(np.sign(b) * each, b)


def _times(factor: float, rule: Callable[..., Answer]) -> Callable[..., Answer]:
    return lambda *arguments, **options: tuple(None if each is None else factor * each for each in rule(*arguments, **options))


def _halved(rule: Callable[..., Array]) -> Callable[..., Array]:
    return lambda *arguments, **options: rule(*arguments, **options) / 2


def _relu_at_zero(rule: Callable[..., Array], at: float) -> Callable[..., Array]:
    return lambda self, x, g, *, kind: np.where((x == 0) & (kind == "relu"), at * g, rule(self, x, g, kind=kind))


def _copies(r: Array, times: int) -> Array:  # (B, K times, T, d) -> (B, K, times, T, d)
    return r.reshape(r.shape[0], -1, times, *r.shape[2:])


def _norm_share(self: Right, x: Array, w: Array, b: Array | None, r: Array, norm_eps: float, eps: float, stabilizer: str = "sign") -> Array:
    return self.share(_normed(self, x, w, b, norm_eps=norm_eps), r, eps, stabilizer)


def _centred_times(self: Right, x: Array, w: Array, b: Array | None, r: Array, *, norm_eps: float, **options: Any) -> Array:
    return _centred(x) * w * _norm_share(self, x, w, b, r, norm_eps, **options) / self.std(x, norm_eps)


def _beta_kept(self: Right, x: Array, w: Array, b: Array | None, r: Array, *, norm_eps: float, **options: Any) -> Array:
    relevance = Right.layer_norm_epsilon(self, x, w, b, r, norm_eps=norm_eps, **options)
    return relevance if b is None else relevance + b * _norm_share(self, x, w, b, r, norm_eps, **options)


def _gamma_unbalanced(self: Right, x: Array, w: Array, b: Array | None, r: Array, *, gamma: float) -> Array:
    """Amplified contributions over a sum that is not amplified."""
    z = self.linear_sum(x, w, b)
    c = _contributions(x, w)
    return _handed_on(c + gamma * self.amplified(c, z[..., None], x, w), self.divided(r, z))


def _biased_box(self: Right, x: Array, w: Array, b: Array | None, r: Array, *, low: float, high: float) -> Array:
    c = _plus(w) * (x - low)[..., None, :] + _minus(w) * (x - high)[..., None, :]
    return _handed_on(c, self.divided(r, c.sum(-1) + (0.0 if b is None else b)))


def _averaged(self: Right, x: Array, r: Array, *, index: Sequence[Sequence[int]]) -> Array:
    counts = Right.gather_follow(self, x, np.ones_like(r), index=index)
    return Right.gather_follow(self, x, r, index=index) / np.maximum(counts, 1)


def _values_alone(case: Case) -> Answer:
    """Nothing to queries and keys, and still only half to the values."""
    return None, None, Right(case.dtype).answer(case)[2]


def _unbiased_scale_alone(self: Right, x: Array, w: Array, b: Array | None, g: Array, *, norm_eps: float) -> Array:
    """The other scale in a derivative that takes it for the right one."""
    n, c = x.shape[-1], _centred(x)
    h = c / self.root((c**2).sum(-1, keepdims=True) / (n - 1), norm_eps)
    std = self.root((c**2).sum(-1, keepdims=True) / (n - 1), norm_eps)
    return (_centred(w * g) - h * (w * g * h).mean(-1, keepdims=True)) / std


def _root_of_square(self: Right, square: Array, norm_eps: float) -> Array:
    return np.sqrt(square**2 + norm_eps)


def _kind_for(asked: str, used: str) -> Way:
    return called(lambda case: {"kind": used} if case.options["kind"] == asked else {})

COMMON = "common mistake"

# -- the table: the faults found in libraries first, then the slips that are easily made, then the choices ----------------------------------

MISTAKES: tuple[Mistake, ...] = (
    fault(
        "eps-unsigned", "LXT relevance form, PE-AWARE-LRP", _BY_EPSILON,
        "eps is added without the sign of z, so a small negative z is driven through zero and its relevance explodes or changes sign.",
        planted(stabilised=lambda self, z, eps, kind: Right.stabilised(self, z, eps, "none" if kind == "none" else "plain")),
        planted(stabilised=lambda self, z, eps, kind: z + eps),
    ),
    fault(
        "eps-zero-sign", "several", _BY_EPSILON,
        "sign(0) is taken as 0, so an output that is exactly zero divides by zero, or its relevance is lost.",
        planted(stabilised=_sign_of_zero, divided=lambda self, r, d: r / d),
        planted(stabilised=_sign_of_zero),
        planted(stabilised=lambda self, z, eps, kind: z + eps * np.sign(z), divided=lambda self, r, d: r / d),
    ),
    fault(
        "eps-two-forms", "LXT", "matmul_uniform attention_attnlrp",
        "One matrix product divides by 2 (O + eps) and another by 2 O + eps, so eps counts once in one place and twice in the other.",
        called(lambda case: {"denominator": "2(z+eps)"}),
        called(lambda case: {"denominator": "2z+eps"}),
        planted(
            context_product=lambda self, a, v, r, **o: self.matmul_uniform(a, v, r, **o | {"denominator": "2(z+eps)"}),
            score_product=lambda self, a, v, r, **o: self.matmul_uniform(a, v, r, **o | {"denominator": "2z+eps"}),
        ),
        planted(
            context_product=lambda self, a, v, r, **o: self.matmul_uniform(a, v, r, **o | {"denominator": "2z+eps"}),
            score_product=lambda self, a, v, r, **o: self.matmul_uniform(a, v, r, **o | {"denominator": "2(z+eps)"}),
        ),
    ),
    fault(
        "softmax-dim", "LXT", "softmax_taylor softmax_spread softmax_gradient",
        "A softmax over another axis still sums relevance over the last one, so rows that have nothing to do with each other mix.",
        planted(along=lambda self, r, axis: r.sum(-1, keepdims=True)),
    ),
    fault(
        "softmax-shifted", COMMON, "softmax_taylor softmax_spread softmax_z_plus attention_attnlrp",
        "The logits are used with their maximum subtracted, so relevance is shared by the distance to the largest logit, which gets none.",
        planted(logits=lambda self, filled, axis: np.where(np.isneginf(filled), 0.0, filled - filled.max(axis, keepdims=True))),
    ),
    fault(
        "mask-finfo", "LXT", f"{_SOFTMAX} {_ATTENTION}",
        "Only -inf counts as masked: where a mask wrote the lowest finite number, the least relevance is multiplied by it, and a row that "
        "is masked whole gives huge numbers or NaN.",
        planted(filled=lambda self, x, mask: x if mask is None else np.where(mask, x, self.lowest), probabilities=_naive_probabilities),
        planted(filled=lambda self, x, mask: x if mask is None else np.where(mask, x, -np.inf), probabilities=_naive_probabilities),
    ),
    fault(
        "tril-always", "dynamicLRP", f"{_SOFTMAX} {_ATTENTION}",
        "The causal cut is applied to bidirectional attention too, so what later tokens contribute is lost.",
        planted(visible=lambda self, scores, causal, mask: Right.visible(self, scores, True, mask)),
        planted(
            softmax_taylor=lambda self, x, r, **o: np.tril(Right.softmax_taylor(self, x, r, **o)),
            softmax_spread=lambda self, x, r, **o: np.tril(Right.softmax_spread(self, x, r, **o)),
            softmax_z_plus=lambda self, x, r, **o: np.tril(Right.softmax_z_plus(self, x, r, **o)),
            softmax_identity=lambda self, x, r, **o: np.tril(Right.softmax_identity(self, x, r, **o)),
            softmax_gradient=lambda self, x, g, **o: np.tril(Right.softmax_gradient(self, x, g, **o)),
        ),
        planted(softmax_taylor=lambda self, x, r, **o: Right.softmax_taylor(self, x, np.tril(r), **o)),
    ),
    fault(
        "cp-half", "dynamicLRP, LXT GPT-2 relevance form",
        "matmul_second matmul_second_gradient multiply_second multiply_second_gradient attention_cp attention_cp_gradient",
        "The values get half of the relevance although the other operand is constant and gets nothing: half is lost in every layer.",
        spoilt(lambda case, x, got: got / 2),
        planted(matmul_second=lambda self, a, v, r, **o: self.matmul_uniform(a, v, r, **o)[1]),
    ),
    fault(
        "halved-linear", "dynamicLRP", "linear_* convolution_* fan_out_epsilon network",
        "Every linear layer passes on half of its relevance, as if the weights were an operand that takes the other half.",
        planted(**{rule: _halved(getattr(Right, rule)) for rule in SIGNATURES if rule.startswith("linear_") and rule != "linear_z_plus"}),
    ),
    fault(
        "moe-degree-0", "LXT Mixtral, Qwen3-MoE", "renormalise_identity renormalise_frozen",
        "The top-k weights are divided by their sum with the epsilon rule, which passes on nothing in sum, for a common factor does not matter.",
        planted(
            renormalise_identity=lambda self, x, r: self.renormalise_epsilon(x, r, eps=0.0, stabilizer="none"),
            renormalise_frozen=Right.renormalise_gradient,
        ),
        planted(renormalise_identity=lambda self, x, r: self.renormalise_epsilon(x, r, eps=1e-6)),
        planted(renormalise_identity=lambda self, x, r: self.renormalise_epsilon(x, r, eps=1e-8)),
    ),
    fault(
        "identity-in-wrong-form", "autoLRP",
        "activation_identity activation_ratio rms_norm_identity rms_norm_frozen layer_norm_identity renormalise_identity renormalise_frozen "
        "scale_follow scale_gradient network attention_attnlrp attention_gradient",
        "The identity rule has the factor f(x)/x where gradients are carried and none where relevance is; each is applied in the other's place.",
        planted(
            activation_identity=lambda self, x, r, *, kind: r * ratio(x, kind),
            activation_ratio=lambda self, x, g, *, kind: g,
            rms_norm_identity=Right.rms_norm_frozen,
            rms_norm_frozen=lambda self, x, w, g, *, norm_eps: g,
            layer_norm_identity=Right.layer_norm_frozen,
            renormalise_identity=Right.renormalise_frozen,
            renormalise_frozen=lambda self, x, g: g,
            scale_follow=Right.scale_gradient,
            scale_gradient=lambda self, x, g, *, factor: g,
        ),
        planted(activation_identity=lambda self, x, r, *, kind: r * (activation(x, kind) / x)),
    ),
    fault(
        "product-proportional", "autoLRP", "multiply_uniform multiply_half",
        "A product's relevance is split by the size of its operands, not evenly: the larger one gets more though both are needed alike.",
        planted(parts=_proportional),
    ),
    fault(
        "residual-absolute", "autoLRP, dynamicLRP", "add_epsilon sum_epsilon add_gradient fan_out_epsilon",
        "A sum's relevance is split by absolute size |a|/(|a| + |b|), so a term that works against the others is credited like one that works with them.",
        planted(sum_epsilon=_by_size(0.0), add_gradient=lambda self, a, b, g: _absolute_gradient(a, b, g)),
        planted(sum_epsilon=_by_size(1.0)),
    ),
    fault(
        "constant-eats-share", "LXT", "multiply_uniform multiply_half",
        "Constant operands are counted among those that share, so the part they would get is lost.",
        planted(parts=lambda self, operands, fixed: [1 / len(operands)] * len(operands)),
        called(lambda case: {"constant": None}),
    ),
    fault(
        "relu-identity-lost", "captum", "activation_identity network",
        "The identity rule after a ReLU returns nothing, so no relevance reaches any layer below.",
        planted(activation_identity=lambda self, x, r, *, kind: 0 * r if kind == "relu" else r),
    ),
    fault(
        "rule-forgotten", "captum", "network",
        "The rules set by the user are deleted after the first call: the second answers with default rules, or with input times gradient.",
        called(_default_rules),
        _input_times_gradient,
        behaviour="again",
    ),
    fault(
        "conv-doubled", "Chefer", "convolution_*",
        "The convolution returns its relevance twice over, unless the image has three channels.",
        spoilt(lambda case, x, got: got if x.shape[1] == 3 else 2 * got),
        spoilt(lambda case, x, got: 2 * got),
    ),
    fault(
        "safe-divide", "Chefer", f"{_BY_EPSILON} linear_z_plus linear_alpha_beta linear_gamma convolution_z_plus",
        "The guard of the division is max(z, eps) + min(z, eps), which adds eps without a sign and drops the relevance of a zero: "
        "1/b times b is 0.67, 2 or -1 near eps.",
        _clamped_divide(1e-9),
        _clamped_divide(None),
    ),
    fault(
        "batch-coupled", "Chefer", f"{_ABSORBING} network",
        "Relevance is rescaled by sums over the whole batch, so an example's explanation depends on its neighbours.",
        planted(sum_epsilon=_rescaled_over_batch),
        _rescaled(0),
    ),
    fault(
        "bn-variance", "Chefer, iNNvestigate (batch norm)",
        "layer_norm_epsilon layer_norm_frozen layer_norm_gradient rms_norm_frozen rms_norm_gradient",
        "The scale of the normalisation is sqrt(variance^2 + eps) in place of sqrt(variance + eps).",
        planted(root=_root_of_square, root_slope=lambda self, square, norm_eps: square / _root_of_square(self, square, norm_eps)),
        planted(root=_root_of_square),
    ),
    fault(
        "alpha-beta-bias", "iNNvestigate", "linear_alpha_beta linear_z_plus convolution_z_plus",
        "The whole bias enters the denominators of both signs, so a bias of the other sign takes part where it has no share.",
        planted(signed_bias=lambda self, b, sign: b),
    ),
    fault(
        "alpha-index", "iNNvestigate", "linear_alpha_beta",
        "One of the two factors is never used: the other stands in its place, or 1, so the parts do not sum to the relevance.",
        planted(linear_alpha_beta=lambda self, x, w, b, r, *, alpha, beta: Right.linear_alpha_beta(self, x, w, b, r, alpha=1.0, beta=beta)),
        planted(linear_alpha_beta=lambda self, x, w, b, r, *, alpha, beta: Right.linear_alpha_beta(self, x, w, b, r, alpha=alpha, beta=alpha)),
        planted(linear_alpha_beta=lambda self, x, w, b, r, *, alpha, beta: Right.linear_alpha_beta(self, x, w, b, r, alpha=beta, beta=beta)),
        planted(linear_alpha_beta=lambda self, x, w, b, r, *, alpha, beta: Right.linear_alpha_beta(self, x, w, b, r, alpha=alpha, beta=1.0)),
    ),
    fault(
        "gamma-forward", "Ali", "network",
        "gamma > 0 changes the weights of the forward itself, so it is another network's output that is explained.",
        _weights_amplified,
        behaviour="forward",
    ),
    fault(
        "ln-unbiased", "Ali, pnpxai", "layer_norm_epsilon layer_norm_frozen layer_norm_gradient",
        "LayerNorm's variance is divided by N - 1, so the scale differs from the network's own.",
        planted(degrees=lambda self, x: x.shape[-1] - 1),
        planted(layer_norm_gradient=_unbiased_scale_alone),
    ),
    fault(
        "gamma-at-zero", "zennit", "linear_gamma",
        "The relevance of an output that is exactly zero is dropped, though contributions of both signs stand below it.",
        planted(linear_gamma=lambda self, x, w, b, r, *, gamma: Right.linear_gamma(self, x, w, b, r * (self.linear_sum(x, w, b) != 0), gamma=gamma)),
    ),
    fault(
        "zero-input", "LXT/zennit bridge", f"{_RELEVANCE} activation_ratio",
        "Relevance is carried as x times a quotient, so what lands on an input that is exactly zero is lost.",
        spoilt(lambda case, x, got: np.where(x == 0, 0.0, got)),
        spoilt(lambda case, x, got: np.where(x == 0, np.nan, got)),
    ),
    fault(
        "leaf-twice", "dynamicLRP", "fan_out_epsilon gather_follow",
        "Relevance that reaches one input by two ways is not summed: the last to arrive overwrites the others.",
        planted(
            met=lambda self, first, second: second,
            arrived=lambda self, relevance, row, r: relevance.__setitem__(row, r),
        ),
        planted(met=lambda self, first, second: first),
        planted(arrived=lambda self, relevance, row, r: relevance.__setitem__(row, np.where(relevance[row] == 0, r, relevance[row]))),
    ),
    fault(
        "logit-squared", "LXT documentation", f"{_GRADIENT} network",
        "The gradient form is seeded with the logit in place of 1, so the relevance sums to the logit squared.",
        called(_seeded_with_outputs),
    ),
    fault(
        "vacuous-check", "LXT", f"{_RELEVANCE} network",
        "With the conservation check on, every answer is replaced by the uniform mean of what arrived, so the check passes whatever the rule does.",
        _uniform_mean(0),
        _uniform_mean(1),
    ),
    fault(
        "fp16-nan", "LXT", _EPSILON,
        "eps underflows in float16, and outputs that cancel divide by it in bfloat16: NaN at zero, or relevance that leaps by orders of magnitude.",
        _half_precision(None),
        _half_precision(1e-8),
    ),
    fault(
        "one-target", "LXT", "network",
        "A second target cannot be explained from the same forward: the call raises.",
        behaviour="targets",
    ),
    fault(
        "gqa-repeat", COMMON, "repeat_heads_follow attention_attnlrp attention_cp attention_gradient attention_cp_gradient",
        "Repeated key and value heads are summed over the wrong groups, or not summed back at all.",
        planted(repeat_heads_follow=lambda self, x, r, *, times: r.reshape(r.shape[0], times, -1, *r.shape[2:]).sum(1)),
        planted(repeat_heads_follow=lambda self, x, r, *, times: _copies(r, times)[:, :, 0]),
        planted(repeat_heads_follow=lambda self, x, r, *, times: _copies(r, times)[:, :, -1]),
        planted(repeat_heads_follow=lambda self, x, r, *, times: _copies(r, times).mean(2)),
        planted(
            repeated=lambda self, x, times: np.tile(x, (1, times, 1, 1)),
            repeat_heads_follow=lambda self, x, r, *, times: r.reshape(r.shape[0], times, -1, *r.shape[2:]).sum(1),
        ),
        planted(repeated=lambda self, x, times: np.tile(x, (1, times, 1, 1))),
    ),
    fault(
        "rope-interleave", COMMON, "rotary_epsilon rotary_gradient",
        "Neighbours are rotated as pairs where the halves of a head belong together: nothing crashes, and every number is another.",
        planted(turned=_interleaved),
        lambda case: planted(turned=_interleaved)(_changed(case, _angles_of_pairs(case))),
    ),
    # what is easily got wrong
    fault(
        "bias-ignored", COMMON, "linear_epsilon linear_gamma linear_z_plus linear_alpha_beta convolution_epsilon convolution_z_plus layer_norm_epsilon network",
        "The bias is left out of the denominator, so its share is handed to the inputs.",
        planted(
            linear_sum=lambda self, x, w, b: x @ w.T,
            amplified_bias=lambda self, b, z: 0 * b,
            signed_bias=lambda self, b, sign: 0 * b,
            linear_gamma=lambda self, x, w, b, r, **o: Right.linear_gamma(self, x, w, None, r, **o),
            layer_norm_epsilon=lambda self, x, w, b, r, **o: Right.layer_norm_epsilon(self, x, w, None, r, **o),
        ),
    ),
    fault(
        "eps-doubled", COMMON, _BY_EPSILON,
        "eps is added twice, to z and once more in the division.",
        planted(stabilised=lambda self, z, eps, kind: Right.stabilised(self, z, 2 * eps, kind)),
    ),
    fault(
        "abs-stabilizer", COMMON, _BY_EPSILON,
        "The denominator is |z| + eps, so the relevance of every negative output changes sign.",
        planted(stabilised=lambda self, z, eps, kind: z if kind == "none" else np.abs(z) + eps),
        planted(stabilised=lambda self, z, eps, kind: np.abs(z) + eps),
    ),
    fault(
        "stabilizer-ignored", COMMON, _EPSILON,
        "The form of the stabiliser that was asked for is ignored: eps always takes the sign of z.",
        planted(stabilised=lambda self, z, eps, kind: Right.stabilised(self, z, eps, "sign")),
    ),
    fault(
        "other-eps", COMMON, _BY_EPSILON,
        "Another eps than the one asked for is used, one written into the code or none.",
        *(_other_eps(eps) for eps in (0.0, 1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 0.25)),
    ),
    fault(
        "gradient-for-relevance", COMMON, "*_epsilon matmul_uniform matmul_second softmax_taylor",
        "The quotient that reaches the input is returned without being multiplied by the input.",
        spoilt(_without_input),
    ),
    fault(
        "relevance-for-gradient", COMMON, _GRADIENT,
        "The gradient is returned multiplied by the input, so whoever multiplies again has the input squared.",
        spoilt(lambda case, x, got: x * got),
    ),
    fault(
        "forced-conservation", COMMON, f"{_ABSORBING} network",
        "The answer is rescaled to the sum that arrived, which hides what bias, stabiliser and offsets absorb.",
        _rescaled(1),
    ),
    fault(
        "relevance-clamped", COMMON, f"{_RELEVANCE} network",
        "Negative relevance is set to zero.",
        spoilt(lambda case, x, got: np.maximum(got, 0.0)),
    ),
    fault(
        "softmax-no-offset", COMMON, "softmax_taylor softmax_gradient attention_attnlrp attention_gradient",
        "The term p times the sum is not subtracted, so every logit is credited as if the others were constant.",
        planted(along=lambda self, r, axis: 0 * r),
    ),
    fault(
        "axis-ignored", COMMON, "softmax_taylor softmax_spread softmax_z_plus softmax_gradient",
        "The softmax is taken over the last axis whichever was asked for.",
        called(lambda case: {"axis": -1}),
    ),
    fault(
        "mask-ignored", COMMON, f"{_SOFTMAX} {_ATTENTION}",
        "The mask is not applied, so hidden positions take part.",
        called(lambda case: {"mask": None}),
    ),
    fault(
        "mask-inverted", COMMON, f"{_SOFTMAX} {_ATTENTION}",
        "The mask is read as True for hidden where it means visible.",
        called(lambda case: {} if case.options.get("mask") is None else {"mask": ~case.options["mask"]}),
    ),
    fault(
        "mask-counted", COMMON, "softmax_taylor softmax_spread softmax_z_plus softmax_identity",
        "Relevance that stood at masked entries is not taken out: it enters the row's sum, or stays where nothing can have come from.",
        planted(seen=lambda self, filled: np.ones_like(filled)),
    ),
    fault(
        "causal-ignored", COMMON, _ATTENTION,
        "The causal cut is not applied, so later tokens get relevance.",
        called(lambda case: {"causal": False}),
    ),
    fault(
        "scale-once", COMMON, _ATTENTION,
        "The scaling of the scores by 1/sqrt(d) is missing, or applied twice.",
        called(lambda case: {"scale": 1.0}),
        called(lambda case: {"scale": case.options["scale"] ** 2}),
    ),
    fault(
        "product-doubled", COMMON, "multiply_uniform multiply_half matmul_uniform matmul_half attention_attnlrp attention_gradient",
        "Each operand of a product gets all of the relevance instead of its part, so relevance is created.",
        planted(
            parts=lambda self, operands, fixed: [1.0] * len(operands),
            matmul_uniform=_times(2, Right.matmul_uniform),
            matmul_half=Right.matmul_gradient,
        ),
        planted(matmul_uniform=_times(2, lambda self, a, v, r, **o: Right.matmul_uniform(self, a, v, r, **o | {"denominator": "2(z+eps)"}))),
    ),
    fault(
        "product-quartered", COMMON, "multiply_uniform multiply_half matmul_uniform matmul_half attention_attnlrp attention_gradient",
        "A product's share is halved twice, so relevance is lost.",
        planted(
            parts=lambda self, operands, fixed: [part / 2 for part in Right.parts(self, operands, fixed)],
            matmul_uniform=_times(0.5, Right.matmul_uniform),
            matmul_half=_times(0.5, Right.matmul_half),
        ),
    ),
    fault(
        "gate-swapped", COMMON, "multiply_second multiply_second_gradient",
        "The gate is taken for the value: the second operand, which should get all, gets nothing, or the gradient of the first.",
        spoilt(lambda case, x, got: 0 * got),
        planted(multiply_second_gradient=lambda self, a, b, g: _fold(b * g, b)),
    ),
    fault(
        "cp-leaks", COMMON, "attention_cp attention_cp_gradient",
        "The probabilities are not held constant, so queries and keys get relevance that belongs to the values.",
        planted(attention_cp=Right.attention_attnlrp, attention_cp_gradient=Right.attention_gradient),
    ),
    fault(
        "probabilities-constant", COMMON, "attention_attnlrp attention_gradient",
        "The probabilities are taken as constant, so queries and keys get nothing.",
        planted(
            attention_attnlrp=lambda self, q, k, v, r, *, denominator="2z+eps", **o: self.attention_cp(q, k, v, r, **o),
            attention_gradient=Right.attention_cp_gradient,
        ),
        _values_alone,
    ),
    fault(
        "mean-not-centred", COMMON, "layer_norm_epsilon layer_norm_frozen layer_norm_gradient",
        "The mean's own dependence on x is left out on the way back: what comes down is not centred.",
        planted(pulled_through_mean=lambda self, c: c),
    ),
    fault(
        "ln-centred-input", COMMON, "layer_norm_epsilon",
        "x - mean stands in place of x in the numerator, and the way back through the mean is left out.",
        planted(layer_norm_epsilon=_centred_times),
    ),
    fault(
        "ln-beta-in-numerator", COMMON, "layer_norm_epsilon",
        "The bias of the norm stands in the numerator, so the share it should absorb is handed to the input.",
        planted(layer_norm_epsilon=_beta_kept),
    ),
    fault(
        "norm-eps-missing", COMMON, "layer_norm_epsilon layer_norm_frozen layer_norm_gradient rms_norm_frozen rms_norm_gradient",
        "The norm's own eps is left out of the root, or added outside it.",
        called(lambda case: {"norm_eps": 0.0}),
        planted(
            root=lambda self, square, norm_eps: np.sqrt(square) + norm_eps,
            root_slope=lambda self, square, norm_eps: 0.5 / np.sqrt(square),
        ),
    ),
    fault(
        "norm-jacobian", COMMON, "rms_norm_identity rms_norm_frozen layer_norm_epsilon layer_norm_identity layer_norm_frozen",
        "The norm's full Jacobian stands in place of the one with a constant scale: almost no relevance passes.",
        planted(
            rms_norm_identity=lambda self, x, w, r, *, norm_eps: x * self.rms_norm_gradient(x, w, self.divided(
                r, x * self.rms_norm_frozen(x, w, np.ones(1), norm_eps=norm_eps)), norm_eps=norm_eps),
            rms_norm_frozen=Right.rms_norm_gradient,
            layer_norm_epsilon=_full_jacobian,
            layer_norm_identity=lambda self, x, w, b, r, *, norm_eps: _full_jacobian(
                self, x, w, b, r, norm_eps=norm_eps, eps=0.0, stabilizer="none"),
            layer_norm_frozen=Right.layer_norm_gradient,
        ),
    ),
    fault(
        "norm-frozen", COMMON, "rms_norm_gradient layer_norm_gradient",
        "The norm's scale is held constant where the true derivative is asked for.",
        planted(rms_norm_gradient=Right.rms_norm_frozen, layer_norm_gradient=Right.layer_norm_frozen),
    ),
    fault(
        "norm-weight-ignored", COMMON, "layer_norm_epsilon layer_norm_frozen layer_norm_gradient rms_norm_frozen rms_norm_gradient",
        "The norm's weight is left out.",
        called(lambda case: {"w": np.ones_like(case.inputs["w"])}),
    ),
    fault(
        "norm-weight-offset", COMMON, "layer_norm_epsilon layer_norm_frozen layer_norm_gradient rms_norm_frozen rms_norm_gradient",
        "The norm's weight has 1 added to it, as Gemma's checkpoints want it and others do not.",
        called(lambda case: {"w": case.inputs["w"] + case.inputs["w"].dtype.type(1)}),
    ),
    fault(
        "gelu-other", COMMON, "activation_ratio activation_gradient",
        "Another form of the activation is used than the network has, such as the tanh approximation of GELU for the exact one.",
        *(_kind_for(*pair) for pair in (
            ("gelu", "gelu_tanh"), ("gelu_tanh", "gelu"), ("gelu", "quick_gelu"), ("quick_gelu", "gelu"), ("silu", "quick_gelu"),
            ("quick_gelu", "silu"), ("silu", "gelu"), ("gelu", "silu"), ("gelu", "relu"), ("gelu_tanh", "silu"),
        )),
    ),
    fault(
        "slope-for-ratio", COMMON, "activation_ratio",
        "The derivative f'(x) stands in place of the ratio f(x)/x, as plain autograd gives it.",
        planted(activation_ratio=Right.activation_gradient),
    ),
    fault(
        "ratio-for-slope", COMMON, "activation_gradient",
        "The ratio f(x)/x stands in place of the derivative.",
        planted(activation_gradient=Right.activation_ratio),
    ),
    fault(
        "ratio-eps", "LXT", "activation_ratio",
        "An eps is added to x in f(x)/x without its sign: 0 at x = 0, where the limit is f'(0), and a pole at x = -eps.",
        *(
            planted(activation_ratio=lambda self, x, g, *, kind, eps=eps: g * (activation(x, kind) / (x + eps)))
            for eps in (1e-10, 1e-9, 1e-8, 1e-6, 0.0)
        ),
    ),
    fault(
        "rotary-transposed", COMMON, "rotary_epsilon rotary_gradient",
        "The rotation is applied on the way back as on the way forward, not transposed.",
        planted(rotary_gradient=lambda self, x, cos, sin, g: g * cos + self.turned(g, -1) * sin),
    ),
    fault(
        "rotary-skipped", COMMON, "rotary_epsilon rotary_gradient",
        "The rotation is passed as if it did nothing, though relevance must follow the turned coordinates.",
        planted(rotary_epsilon=lambda self, x, cos, sin, r, **o: r, rotary_gradient=lambda self, x, cos, sin, g: g),
    ),
    fault(
        "counted-ignored", COMMON, "pooling_epsilon pooling_gradient",
        "The mean is taken over padding as well.",
        called(lambda case: {"counted": None}),
        planted(pooling_gradient=lambda self, x, g, *, counted=None: Right.pooling_gradient(self, x, g) * (1.0 if counted is None else counted)),
    ),
    fault(
        "pooling-sum", COMMON, "pooling_gradient",
        "The mean's division by the number of positions is left out.",
        planted(pooling_gradient=lambda self, x, g, *, counted=None: (np.ones_like(x) if counted is None else counted) * g),
    ),
    fault(
        "pooling-uniform", COMMON, "pooling_epsilon",
        "Every position gets the same share, whatever it contributed.",
        planted(pooling_epsilon=lambda self, x, r, *, counted=None, **o: Right.pooling_gradient(self, x, r, counted=counted)),
    ),
    fault(
        "gamma-one-branch", COMMON, "linear_gamma network",
        "The positive contributions are amplified below negative outputs too.",
        planted(amplified=lambda self, c, z, x, w: _plus(c), amplified_bias=lambda self, b, z: _plus(b)),
    ),
    fault(
        "gamma-bias", COMMON, "linear_gamma network",
        "The bias is not amplified with the contributions of its sign.",
        planted(amplified_bias=lambda self, b, z: 0 * b * z),
    ),
    fault(
        "gamma-dropped", COMMON, "linear_gamma network",
        "Only what gamma amplifies enters one of the two, numerator or denominator, so relevance does not balance.",
        planted(linear_gamma=lambda self, x, w, b, r, *, gamma: Right.linear_gamma(self, x, w, b, r, gamma=0.0)),
        planted(linear_gamma=_gamma_unbalanced),
    ),
    fault(
        "plus-half", COMMON, "linear_z_plus linear_alpha_beta convolution_z_plus network",
        "Only positive inputs with positive weights count as positive contributions; negative inputs with negative weights are forgotten.",
        planted(signed=lambda self, x, w: (_contributions(_plus(x), _plus(w)), _contributions(_plus(x), _minus(w)))),
    ),
    fault(
        "plus-weights", COMMON, "linear_z_plus linear_alpha_beta convolution_z_plus network",
        "Weights are cut by sign instead of contributions, so a negative input turns positive weights into negative shares.",
        planted(signed=lambda self, x, w: (_contributions(x, _plus(w)), _contributions(x, _minus(w)))),
    ),
    fault(
        "alpha-beta-sign", COMMON, "linear_alpha_beta network",
        "The negative part is added instead of subtracted, so relevance is multiplied by alpha + beta.",
        planted(linear_alpha_beta=lambda self, x, w, b, r, *, alpha, beta: Right.linear_alpha_beta(self, x, w, b, r, alpha=alpha, beta=-beta)),
    ),
    fault(
        "flat-weighted", COMMON, "linear_flat",
        "The flat rule shares by the inputs, or counts the bias as one of them.",
        planted(linear_flat=lambda self, x, w, b, r: Right.linear_flat(self, x, w, b, r) * x.shape[-1] / (x.shape[-1] + 1)),
        planted(linear_flat=lambda self, x, w, b, r: x / x.sum(-1, keepdims=True) * r.sum(-1, keepdims=True)),
    ),
    fault(
        "w-square-not-squared", COMMON, "linear_w_square",
        "Weights enter by their absolute value, not by their square.",
        planted(linear_w_square=lambda self, x, w, b, r: self.divided(r, np.abs(w).sum(-1)) @ np.abs(w)),
        planted(linear_w_square=lambda self, x, w, b, r: self.divided(r, w.sum(-1)) @ w),
    ),
    fault(
        "z-box-bounds", COMMON, "linear_z_box",
        "The bounds are exchanged, or 0 and 1 are used whatever was asked for.",
        called(lambda case: {"low": case.options["high"], "high": case.options["low"]}),
        called(lambda case: {"low": 0.0, "high": 1.0}),
    ),
    fault(
        "z-box-bias", COMMON, "linear_z_box",
        "The bias takes a share, though nothing of it is left after the bounds are subtracted.",
        planted(linear_z_box=_biased_box),
    ),
    fault(
        "kernel-flipped", COMMON, "convolution_*",
        "The kernel is turned around, as in mathematics' convolution; networks correlate.",
        called(lambda case: {"w": case.inputs["w"][..., ::-1, ::-1]}),
    ),
    fault(
        "index-shared", COMMON, "gather_follow",
        "The first example's row numbers are used for every example.",
        called(lambda case: {"index": [case.options["index"][0]] * len(case.options["index"])}),
    ),
    fault(
        "top-k-order", COMMON, "top_k_follow",
        "Relevance is put at the wrong entries: in ascending order of size, in the order they stand in, or simply at the first k.",
        planted(chosen=lambda self, x, k: Right.chosen(self, x, k)[..., ::-1]),
        planted(chosen=lambda self, x, k: np.sort(Right.chosen(self, x, k), axis=-1)),
        planted(chosen=lambda self, x, k: np.broadcast_to(np.arange(k), (*x.shape[:-1], k))),
    ),
    fault(
        "fan-in-mean", COMMON, "fan_out_epsilon gather_follow",
        "What meets at an input is averaged instead of summed.",
        planted(met=lambda self, first, second: (first + second) / 2, gather_follow=_averaged),
    ),
    # choices that are made on purpose
    convention(
        "bias-redistributed", "some toolboxes", "linear_epsilon convolution_epsilon network",
        "The share of the bias is handed to the inputs in equal parts, so that relevance is conserved.",
        planted(linear_epsilon=_bias_spread),
        planted(linear_epsilon=_all_spread),
    ),
    convention(
        "eps-relative", "Montavon et al. 2019", _BY_EPSILON,
        "eps is taken relative to the size of z, so that it does the same at every scale.",
        planted(stabilised=lambda self, z, eps, kind: Right.stabilised(self, z, eps * np.sqrt((z * z).mean()), kind)),
        planted(stabilised=lambda self, z, eps, kind: Right.stabilised(self, z, eps * np.abs(z).max(), kind)),
    ),
    convention(
        "layer-norm-reading", "both readings of the paper", "layer_norm_epsilon layer_norm_identity",
        "The layer is read the other way: as one normalisation that passes all of R, or as centring with a constant scale.",
        planted(
            layer_norm_epsilon=lambda self, x, w, b, r, *, norm_eps, **o: r,
            layer_norm_identity=lambda self, x, w, b, r, *, norm_eps: self.layer_norm_epsilon(x, w, b, r, norm_eps=norm_eps, eps=1e-6),
        ),
        planted(layer_norm_identity=lambda self, x, w, b, r, *, norm_eps: self.layer_norm_epsilon(x, w, b, r, norm_eps=norm_eps, eps=1e-9)),
        planted(layer_norm_identity=lambda self, x, w, b, r, *, norm_eps: self.layer_norm_epsilon(x, w, b, r, norm_eps=norm_eps, eps=1e-12)),
    ),
    convention(
        "renormalise-identity", "AttnLRP prop. 3.4", "renormalise_epsilon renormalise_gradient",
        "The sum that the weights are divided by is taken as constant, so all of R passes.",
        planted(renormalise_epsilon=lambda self, x, r, **o: r, renormalise_gradient=Right.renormalise_frozen),
    ),
    convention(
        "gamma-weights", "Montavon et al. 2019", "linear_gamma network",
        "Positive weights are amplified instead of positive contributions: the same only where no input is negative.",
        planted(linear_gamma=lambda self, x, w, b, r, *, gamma: self.linear_epsilon(
            x, w + gamma * _plus(w), None if b is None else b + gamma * _plus(b), r, eps=0.0, stabilizer="none")),
        planted(linear_gamma=lambda self, x, w, b, r, *, gamma: self.linear_epsilon(
            x, w + gamma * _plus(w), b, r, eps=0.0, stabilizer="none")),
    ),
    convention(
        "pooling-mean-eps", "some toolboxes", "pooling_epsilon",
        "eps is added to the mean instead of the sum, so it counts as many times as there are positions.",
        planted(pooling_epsilon=lambda self, x, r, *, counted=None, eps, stabilizer="sign": Right.pooling_epsilon(
            self, x, r, counted=counted, stabilizer=stabilizer, eps=eps * (x.shape[-2] if counted is None else counted.sum(-2, keepdims=True)))),
    ),
    convention(
        "sum-chained", "some toolboxes", "sum_epsilon",
        "A sum of several is taken as a chain of sums of two, each with a stabiliser of its own.",
        planted(sum_epsilon=_chained),
    ),
    convention(
        "fan-out-fused", "some toolboxes", "fan_out_epsilon",
        "Two linear layers that read the same input are taken as one with their weights added: one stabiliser instead of two.",
        planted(fan_out_epsilon=lambda self, x, w1, w2, r, **o: self.linear_epsilon(x, w1 + w2, None, r, **o)),
    ),
    convention(
        "causal-last", "PyTorch", _ATTENTION,
        "With fewer queries than keys the last query sees the last key, where the case lets query t see the keys up to t.",
        planted(visible=lambda self, scores, causal, mask: Right.visible(self, scores, False, mask)
                & np.tril(np.ones(scores.shape[-2:], dtype=bool), scores.shape[-1] - scores.shape[-2] if causal else scores.shape[-1])),
    ),
    convention(
        "relu-at-zero", "some frameworks", "activation_ratio activation_gradient",
        "ReLU's derivative at 0 is taken as 1 or 1/2 instead of 0.",
        *(
            planted(**{rule: _relu_at_zero(getattr(Right, rule), at) for rule in ("activation_ratio", "activation_gradient")})
            for at in (1.0, 0.5)
        ),
    ),
)  # fmt: skip

NOT_SHOWN: dict[str, str] = {}
"""Faults found in libraries that nothing here can show, with the reason. There is none: the slip of batch norm shows in the other norms,
and what only behaviour shows (one-target) is told by calling a network again, with more seeds."""
