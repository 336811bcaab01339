"""Every rule once more, in plain float64 NumPy: slow, short, and cut into parts.

The known mistakes replace one part, or call a rule with something other than what was asked
(planting.py): so there are the answers of implementations that are wrong. Nothing else computes
with this file: expected numbers come from exact.py, refl's own from rules/.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, TypeAlias

import numpy as np

from refl.arrays import Array
from refl.verification.vectors.case import Case

Answer: TypeAlias = tuple[Array | None, ...]
"""One array for each name in `case.returns`; None where nothing is passed."""
Layer: TypeAlias = dict[str, Any]

GREATEST = {dtype: float(np.finfo(dtype).max) for dtype in ("float64", "float32", "float16")} | {
    "bfloat16": float.fromhex("0x1.fep127")
}


class ReferenceRules:
    """The rules, and below each group the parts it is made of. All arrays are float64; `dtype` says
    which format they came in.
    """

    def __init__(self, dtype: str = "float64") -> None:
        self.dtype = dtype
        self.lowest = -GREATEST[dtype]

    def answer(self, case: Case) -> Answer:
        with np.errstate(all="ignore"):
            got = getattr(self, case.rule)(*wide(case.arguments), **wide(dict(case.options)))
        return tuple(got) if isinstance(got, (tuple, list)) else (got,)

    # the division that the rules of the epsilon family share

    def stabilized(self, z: Array, eps: float, kind: str) -> Array:
        up = (z >= 0) | (kind == "plain")
        return z if kind == "none" else z + np.where(up, eps, -eps)

    def divided(self, r: Array, d: Array) -> Array:
        return np.where(d == 0, 0.0, r / np.where(d == 0, 1.0, d))

    def stabilized_ratio(self, z: Array, r: Array, eps: float, kind: str) -> Array:
        return self.divided(r, self.stabilized(z, eps, kind))

    # linear layers: c_ji = W_ji x_i, (..., O, I)

    def linear_epsilon(
        self, x: Array, w: Array, b: Array | None, r: Array, *, eps: float, stabilizer: str = "sign"
    ) -> Array:
        return x * (self.stabilized_ratio(self.linear_sum(x, w, b), r, eps, stabilizer) @ w)

    def linear_gradient(self, x: Array, w: Array, b: Array | None, g: Array) -> Array:
        return g @ w

    def linear_gamma(self, x: Array, w: Array, b: Array | None, r: Array, *, gamma: float) -> Array:
        z = self.linear_sum(x, w, b)
        c = contributions(x, w)
        bias = np.zeros(len(w)) if b is None else b
        c = c + gamma * self.amplified(c, z[..., None], x, w)
        return summed_messages(
            c, self.divided(r, self.total(c) + bias + gamma * self.amplified_bias(bias, z))
        )

    def amplified(self, c: Array, z: Array, x: Array, w: Array) -> Array:
        return np.where(z > 0, plus_part(c), minus_part(c))

    def amplified_bias(self, b: Array, z: Array) -> Array:
        return np.where(z > 0, plus_part(b), minus_part(b))

    def linear_z_plus(self, x: Array, w: Array, b: Array | None, r: Array) -> Array:
        return self.linear_alpha_beta(x, w, b, r, alpha=1.0, beta=0.0)

    def linear_alpha_beta(
        self, x: Array, w: Array, b: Array | None, r: Array, *, alpha: float, beta: float
    ) -> Array:
        bias = np.zeros(len(w)) if b is None else b
        plus, minus = self.signed(x, w)
        up = summed_messages(
            plus, self.divided(alpha * r, self.total(plus) + self.signed_bias(bias, 1))
        )
        return up + summed_messages(
            minus, self.divided(-beta * r, self.total(minus) + self.signed_bias(bias, -1))
        )

    def signed(self, x: Array, w: Array) -> tuple[Array, Array]:
        c = contributions(x, w)
        return plus_part(c), minus_part(c)

    def signed_bias(self, b: Array, sign: int) -> Array:
        return plus_part(b) if sign > 0 else minus_part(b)

    def linear_flat(self, x: Array, w: Array, b: Array | None, r: Array) -> Array:
        return np.broadcast_to(self.sum_along(r, -1) / x.shape[-1], x.shape).copy()

    def linear_w_square(self, x: Array, w: Array, b: Array | None, r: Array) -> Array:
        return self.divided(r, self.total(w * w)) @ (w * w)

    def linear_z_box(
        self, x: Array, w: Array, b: Array | None, r: Array, *, low: float, high: float
    ) -> Array:
        c = plus_part(w) * (x - low)[..., None, :] + minus_part(w) * (x - high)[..., None, :]
        return summed_messages(c, self.divided(r, self.total(c)))

    def total(self, c: Array) -> Array:  # (..., O, I) -> (..., O)
        return c.sum(-1)

    def linear_sum(self, x: Array, w: Array, b: Array | None) -> Array:
        """The z that a rule divides by."""
        return x @ w.T if b is None else x @ w.T + b

    # convolutions whose stride is their kernel: linear layers on patches

    def convolution_epsilon(
        self, x: Array, w: Array, b: Array | None, r: Array, *, eps: float, stabilizer: str = "sign"
    ) -> Array:
        return self.on_patches(
            lambda p, k, g: self.linear_epsilon(p, k, b, g, eps=eps, stabilizer=stabilizer), x, w, r
        )

    def convolution_z_plus(self, x: Array, w: Array, b: Array | None, r: Array) -> Array:
        return self.on_patches(lambda p, k, g: self.linear_z_plus(p, k, b, g), x, w, r)

    def convolution_gradient(self, x: Array, w: Array, b: Array | None, g: Array) -> Array:
        return self.on_patches(lambda p, k, g: self.linear_gradient(p, k, b, g), x, w, g)

    def on_patches(
        self, rule: Callable[[Array, Array, Array], Array], x: Array, w: Array, r: Array
    ) -> Array:
        outputs = r.reshape(*r.shape[:2], -1).swapaxes(1, 2)  # (B, O, H/h, W/w) -> (B, N, O)
        return _image(
            rule(patches_of(x, w.shape[2:]), w.reshape(len(w), -1), outputs), x.shape, w.shape[2:]
        )

    # sums

    def add_epsilon(
        self, a: Array, b: Array, r: Array, *, eps: float, stabilizer: str = "sign"
    ) -> Answer:
        return self.sum_epsilon([a, b], r, eps=eps, stabilizer=stabilizer)

    def sum_epsilon(
        self, operands: Sequence[Array], r: Array, *, eps: float, stabilizer: str = "sign"
    ) -> Answer:
        s = self.stabilized_ratio(summed(operands), r, eps, stabilizer)
        return tuple(self.folded(a * s, a) for a in operands)

    def folded(self, r: Array, like: Array) -> Array:
        return folded(r, like)

    def add_gradient(self, a: Array, b: Array, g: Array) -> Answer:
        return self.folded(g, a), self.folded(g, b)

    def fan_out_epsilon(
        self, x: Array, w1: Array, w2: Array, r: Array, *, eps: float, stabilizer: str = "sign"
    ) -> Array:
        r1, r2 = self.add_epsilon(x @ w1.T, x @ w2.T, r, eps=eps, stabilizer=stabilizer)
        first = self.linear_epsilon(x, w1, None, r1, eps=eps, stabilizer=stabilizer)
        return self.accumulated(
            first, self.linear_epsilon(x, w2, None, r2, eps=eps, stabilizer=stabilizer)
        )

    def accumulated(self, first: Array, second: Array) -> Array:
        return first + second

    # products

    def multiply_uniform(
        self, operands: Sequence[Array], r: Array, *, constant: Sequence[bool] | None = None
    ) -> Answer:
        fixed = constant or [False] * len(operands)
        return tuple(
            None if c else self.folded(part * r, a)
            for a, c, part in zip(operands, fixed, self.fractions(operands, fixed), strict=True)
        )

    def multiply_uniform_gxi(
        self, operands: Sequence[Array], g: Array, *, constant: Sequence[bool] | None = None
    ) -> Answer:
        fixed = constant or [False] * len(operands)
        full = self.multiply_gradient(operands, g, constant=None)
        return tuple(
            None if c else part * d
            for d, c, part in zip(full, fixed, self.fractions(operands, fixed), strict=True)
        )

    def fractions(self, operands: Sequence[Array], fixed: Sequence[bool]) -> list[Any]:
        """Which part of R each operand gets."""
        return [1 / list(fixed).count(False) if not all(fixed) else 0.0] * len(operands)

    def multiply_flattened(
        self,
        operands: Sequence[Array],
        r: Array,
        *,
        factors: Sequence[int],
        constant: Sequence[bool] | None = None,
    ) -> Answer:
        fixed = constant or [False] * len(operands)
        parts = zip(operands, fixed, self.parts_of(factors, fixed), strict=True)
        return tuple(None if c else self.folded(part * r, a) for a, c, part in parts)

    def multiply_flattened_gxi(
        self,
        operands: Sequence[Array],
        g: Array,
        *,
        factors: Sequence[int],
        constant: Sequence[bool] | None = None,
    ) -> Answer:
        fixed = constant or [False] * len(operands)
        full = self.multiply_gradient(operands, g, constant=fixed)
        parts = zip(full, self.parts_of(factors, fixed), strict=True)
        return tuple(None if d is None else part * d for d, part in parts)

    def parts_of(self, factors: Sequence[int], fixed: Sequence[bool]) -> list[float]:
        """Which part of R each operand gets, by the factors that it stands for."""
        count = sum(n for n, c in zip(factors, fixed, strict=True) if not c)
        return [n / count if count else 0.0 for n in factors]

    def multiply_gradient(
        self, operands: Sequence[Array], g: Array, *, constant: Sequence[bool] | None = None
    ) -> Answer:
        fixed = constant or [False] * len(operands)
        return tuple(
            None if c else self.folded(_others(operands, k) * g, operands[k])
            for k, c in enumerate(fixed)
        )

    def multiply_second(self, a: Array, b: Array, r: Array) -> Array:
        return self.folded(r, b)

    def multiply_second_gxi(self, a: Array, b: Array, g: Array) -> Array:
        return self.folded(a * g, b)

    def matmul_uniform(
        self,
        a: Array,
        v: Array,
        r: Array,
        *,
        eps: float,
        stabilizer: str = "sign",
        denominator: str = "2z+eps",
    ) -> Answer:
        o = a @ v
        s = (
            self.stabilized_ratio(2 * o, r, eps, stabilizer)
            if denominator == "2z+eps"
            else self.stabilized_ratio(o, r, eps, stabilizer) / 2
        )
        return a * (s @ _swap(v)), v * (_swap(a) @ s)

    def matmul_flattened(
        self,
        a: Array,
        v: Array,
        r: Array,
        *,
        factors: Sequence[int],
        eps: float,
        stabilizer: str = "sign",
    ) -> Answer:
        count, o = sum(factors), a @ v
        s = self.stabilized_ratio(count * o, r, eps, stabilizer) * count
        to_a, to_v = self.parts_of(factors, [False, False])
        return to_a * a * (s @ _swap(v)), to_v * v * (_swap(a) @ s)

    def matmul_flattened_gxi(
        self, a: Array, v: Array, g: Array, *, factors: Sequence[int]
    ) -> Answer:
        to_a, to_v = self.parts_of(factors, [False, False])
        return to_a * (g @ _swap(v)), to_v * (_swap(a) @ g)

    def matmul_second(
        self, a: Array, v: Array, r: Array, *, eps: float, stabilizer: str = "sign"
    ) -> Array:
        return v * (_swap(a) @ self.stabilized_ratio(a @ v, r, eps, stabilizer))

    def matmul_uniform_gxi(self, a: Array, v: Array, g: Array) -> Answer:
        return g @ _swap(v) / 2, _swap(a) @ g / 2

    def matmul_second_gxi(self, a: Array, v: Array, g: Array) -> Array:
        return _swap(a) @ g

    def matmul_gradient(self, a: Array, v: Array, g: Array) -> Answer:
        return g @ _swap(v), _swap(a) @ g

    # softmax

    def softmax_taylor(
        self, x: Array, r: Array, *, mask: Array | None = None, axis: int = -1
    ) -> Array:
        filled = self.filled(x, mask)
        r, p = r * self.unmasked(filled), self.probabilities(filled, axis)
        return self.logits(filled, axis) * (r - p * self.sum_along(r, axis))

    def softmax_gradient(
        self, x: Array, g: Array, *, mask: Array | None = None, axis: int = -1
    ) -> Array:
        p = self.probabilities(self.filled(x, mask), axis)
        return p * (g - self.sum_along(p * g, axis))

    def softmax_spread(
        self, x: Array, r: Array, *, mask: Array | None = None, axis: int = -1
    ) -> Array:
        filled = self.filled(x, mask)
        unmasked, p, logits = (
            self.unmasked(filled),
            self.probabilities(filled, axis),
            self.logits(filled, axis),
        )
        offset = self.sum_along(
            r * unmasked * (1 - logits + self.sum_along(p * logits, axis)), axis
        )
        return self.softmax_taylor(x, r, mask=mask, axis=axis) + unmasked * offset / np.maximum(
            unmasked.sum(axis, keepdims=True), 1
        )

    def softmax_z_plus(
        self, x: Array, r: Array, *, mask: Array | None = None, axis: int = -1
    ) -> Array:
        filled = np.moveaxis(self.filled(x, mask), axis, -1)
        r = np.moveaxis(r, axis, -1) * self.unmasked(filled)
        c = plus_part(self.expansion(self.logits(filled, -1), self.probabilities(filled, -1)))
        return np.moveaxis(summed_messages(c, self.divided(r, self.total(c))), -1, axis)

    def expansion(self, x: Array, p: Array) -> Array:  # (..., I) -> (..., J, I)
        """x_i (delta_ij - p_i); 1 - p_i as the sum of the others,
        for the difference would cancel.
        """
        own = np.eye(p.shape[-1])
        return x[..., None, :] * (own * (p @ (1 - own))[..., None, :] - (1 - own) * p[..., None, :])

    def softmax_identity(
        self, x: Array, r: Array, *, mask: Array | None = None, axis: int = -1
    ) -> Array:
        return r * self.unmasked(self.filled(x, mask))

    def filled(self, x: Array, mask: Array | None) -> Array:
        """The logits with -inf wherever they are masked, by whichever means."""
        hidden = x <= self.lowest / 2
        return np.where(hidden if mask is None else hidden | ~mask, -np.inf, x)

    def unmasked(self, filled: Array) -> Array:
        return ~np.isneginf(filled)

    def logits(self, filled: Array, axis: int) -> Array:
        return np.where(np.isneginf(filled), 0.0, filled)

    def probabilities(self, filled: Array, axis: int) -> Array:
        top = filled.max(axis, keepdims=True)
        e = np.exp(filled - np.where(np.isneginf(top), 0.0, top))
        total = e.sum(axis, keepdims=True)
        return e / np.where(total == 0, 1.0, total)

    def sum_along(self, r: Array, axis: int) -> Array:
        return r.sum(axis, keepdims=True)

    # norms

    def rms_norm_identity(self, x: Array, w: Array, r: Array, *, norm_eps: float) -> Array:
        return r

    def rms_norm_identity_gxi(self, x: Array, w: Array, g: Array, *, norm_eps: float) -> Array:
        return w * g / self.root(_mean_square(x), norm_eps)

    def rms_norm_gradient(self, x: Array, w: Array, g: Array, *, norm_eps: float) -> Array:
        square = _mean_square(x)
        projection = self.sum_along(w * g * x, -1) / self.root(square, norm_eps) ** 2
        return (
            w * g / self.root(square, norm_eps)
            - projection * self.root_derivative(square, norm_eps) * 2 * x / x.shape[-1]
        )

    def layer_norm_epsilon(
        self,
        x: Array,
        w: Array,
        b: Array | None,
        r: Array,
        *,
        norm_eps: float,
        eps: float,
        stabilizer: str = "sign",
    ) -> Array:
        z = self.layer_norm(x, w, b, norm_eps=norm_eps)
        s = self.stabilized_ratio(z, r, eps, stabilizer)
        return x * self.layer_norm_epsilon_gxi(x, w, b, s, norm_eps=norm_eps)

    def layer_norm_identity(
        self, x: Array, w: Array, b: Array | None, r: Array, *, norm_eps: float
    ) -> Array:
        return r

    def layer_norm_epsilon_gxi(
        self, x: Array, w: Array, b: Array | None, g: Array, *, norm_eps: float
    ) -> Array:
        return self.pulled_through_mean(w * g / self.std(x, norm_eps))

    def layer_norm_gradient(
        self, x: Array, w: Array, b: Array | None, g: Array, *, norm_eps: float
    ) -> Array:
        c, std = centered(x), self.std(x, norm_eps)
        projection = self.sum_along(w * g * c, -1) / std**2
        return self.pulled_through_mean(w * g / std) - projection * self.root_derivative(
            self.variance(x), norm_eps
        ) * 2 * c / self.variance_divisor(x)

    def pulled_through_mean(self, c: Array) -> Array:
        return centered(c)

    def layer_norm(self, x: Array, w: Array, b: Array | None, *, norm_eps: float) -> Array:
        """The forward: (x - mean) / std * w + b."""
        z = centered(x) / self.std(x, norm_eps) * w
        return z if b is None else z + b

    def std(self, x: Array, norm_eps: float) -> Array:
        return self.root(self.variance(x), norm_eps)

    def variance(self, x: Array) -> Array:
        return self.sum_along(centered(x) ** 2, -1) / self.variance_divisor(x)

    def variance_divisor(self, x: Array) -> int:
        return int(x.shape[-1])

    def root(self, square: Array, norm_eps: float) -> Array:
        return np.sqrt(square + norm_eps)

    def root_derivative(self, square: Array, norm_eps: float) -> Array:
        """The derivative of `root`."""
        return 0.5 / self.root(square, norm_eps)

    # activations

    def activation_identity(self, x: Array, r: Array, *, kind: str) -> Array:
        return r

    def activation_identity_gxi(self, x: Array, g: Array, *, kind: str) -> Array:
        return g * identity_factor(x, kind)

    def activation_gradient(self, x: Array, g: Array, *, kind: str) -> Array:
        return g * derivative(x, kind)

    # rotation, pooling, scale, movement

    def rotary_epsilon(
        self, x: Array, cos: Array, sin: Array, r: Array, *, eps: float, stabilizer: str = "sign"
    ) -> Array:
        z = x * cos + self.rotated(x, -1) * sin
        return x * self.rotary_gradient(x, cos, sin, self.stabilized_ratio(z, r, eps, stabilizer))

    def rotary_uniform(
        self, x: Array, cos: Array, sin: Array, r: Array, *, eps: float, stabilizer: str = "sign"
    ) -> Array:
        z = x * cos + self.rotated(x, -1) * sin
        s = self.stabilized_ratio(z, r, eps, stabilizer)
        return x * self.rotary_uniform_gxi(x, cos, sin, s)

    def rotary_uniform_gxi(self, x: Array, cos: Array, sin: Array, g: Array) -> Array:
        return self.rotary_gradient(x, cos, sin, g) / 2

    def rotary_gradient(self, x: Array, cos: Array, sin: Array, g: Array) -> Array:
        return g * cos + self.rotated(g * sin, 1)

    def rotated(self, x: Array, sign: int) -> Array:
        """[-x2, x1] for sign -1, and its transpose for sign +1."""
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([sign * second, -sign * first], axis=-1)

    def pooling_epsilon(
        self,
        x: Array,
        r: Array,
        *,
        counted: Array | None = None,
        eps: float,
        stabilizer: str = "sign",
    ) -> Array:
        m = np.ones_like(x[..., :1]) if counted is None else counted
        return m * x * self.stabilized_ratio(self.sum_along(m * x, -2), r, eps, stabilizer)

    def pooling_gradient(self, x: Array, g: Array, *, counted: Array | None = None) -> Array:
        m = np.ones_like(x) if counted is None else np.broadcast_to(counted, x.shape)
        return m * g / self.sum_along(m, -2)

    def scale_pass_through(self, x: Array, r: Array, *, factor: float) -> Array:
        return r

    def scale_gradient(self, x: Array, g: Array, *, factor: float) -> Array:
        return factor * g

    def repeat_heads_pass_through(self, x: Array, r: Array, *, times: int) -> Array:
        return r.reshape(r.shape[0], -1, times, *r.shape[2:]).sum(2)

    def gather_pass_through(self, x: Array, r: Array, *, index: Sequence[Sequence[int]]) -> Array:
        relevance = np.zeros_like(x)
        for b, rows in enumerate(index):
            for n, row in enumerate(rows):
                self.accumulate(relevance[b], row, r[b, n])
        return relevance

    def accumulate(self, relevance: Array, row: int, r: Array) -> None:
        relevance[row] += r

    def top_k_pass_through(self, x: Array, r: Array, *, k: int) -> Array:
        relevance = np.zeros_like(x)
        np.put_along_axis(relevance, self.chosen(x, k), r, axis=-1)
        return relevance

    def chosen(self, x: Array, k: int) -> Array:
        return np.argsort(-x, axis=-1, kind="stable")[..., :k]

    def renormalize_identity(self, x: Array, r: Array) -> Array:
        return r

    def renormalize_epsilon(
        self, x: Array, r: Array, *, eps: float, stabilizer: str = "sign"
    ) -> Array:
        z = x / self.sum_along(x, -1)
        s = self.stabilized_ratio(z, r, eps, stabilizer)
        return z * (s - self.sum_along(z * s, -1))

    def renormalize_identity_gxi(self, x: Array, g: Array) -> Array:
        return g / self.sum_along(x, -1)

    def renormalize_gradient(self, x: Array, g: Array) -> Array:
        total = self.sum_along(x, -1)
        return (g - self.sum_along(x / total * g, -1)) / total

    # state space models

    def causal_convolution_epsilon(
        self, x: Array, w: Array, b: Array | None, r: Array, *, eps: float, stabilizer: str = "sign"
    ) -> Array:
        s = self.stabilized_ratio(self.causally_convolved(x, w, b), r, eps, stabilizer)
        return x * self.causal_convolution_gradient(x, w, b, s)

    def causal_convolution_gradient(self, x: Array, w: Array, b: Array | None, g: Array) -> Array:
        return np.flip(self.causally_convolved(np.flip(g, 1), w, None), 1)

    def causally_convolved(self, x: Array, w: Array, b: Array | None) -> Array:
        z = sum(w[:, k] * before(x, w.shape[1] - 1 - k) for k in range(w.shape[1]))
        return z if b is None else z + b

    def scan_epsilon(
        self,
        x: Array,
        d: Array,
        b: Array,
        c: Array,
        a_log: Array,
        r: Array,
        *,
        eps: float,
        stabilizer: str = "sign",
    ) -> Array:
        s = self.stabilized_ratio(self.scanned(x, d, b, c, a_log), r, eps, stabilizer)
        return x * self.scan_epsilon_gxi(x, d, b, c, a_log, s)

    def scan_epsilon_gxi(
        self, x: Array, d: Array, b: Array, c: Array, a_log: Array, g: Array
    ) -> Array:
        return d * (self.costates(d, c, a_log, g) * b[:, :, None]).sum(-1)

    def scan_gradient(
        self, x: Array, d: Array, b: Array, c: Array, a_log: Array, g: Array
    ) -> Answer:
        h, back = self.states(x, d, b, a_log), self.costates(d, c, a_log, g)
        kept = np.exp(-d[..., None] * np.exp(a_log)) * before(h, 1)
        g_d = (back * (b[:, :, None] * x[..., None] - np.exp(a_log) * kept)).sum(-1)
        g_b, g_c = ((v * u[..., None]).sum(2) for v, u in ((back, d * x), (h, g)))
        return d * (back * b[:, :, None]).sum(-1), g_d, g_b, g_c

    def scanned(self, x: Array, d: Array, b: Array, c: Array, a_log: Array) -> Array:
        return (self.states(x, d, b, a_log) * c[:, :, None]).sum(-1)

    def states(self, x: Array, d: Array, b: Array, a_log: Array) -> Array:  # (B, T, I, N)
        h = (d * x)[..., None] * b[:, :, None]
        for t in range(1, x.shape[1]):
            h[:, t] += np.exp(-d[:, t, :, None] * np.exp(a_log)) * h[:, t - 1]
        return h

    def costates(self, d: Array, c: Array, a_log: Array, g: Array) -> Array:  # (B, T, I, N)
        back = g[..., None] * c[:, :, None]
        for t in range(g.shape[1] - 2, -1, -1):
            back[:, t] += np.exp(-d[:, t + 1, :, None] * np.exp(a_log)) * back[:, t + 1]
        return back

    # attention, of the rules above

    def attention_attnlrp(
        self,
        q: Array,
        k: Array,
        v: Array,
        r: Array,
        *,
        scale: float,
        causal: bool = False,
        mask: Array | None = None,
        eps: float,
        stabilizer: str = "sign",
        denominator: str = "2z+eps",
    ) -> Answer:
        q, keys, values, scores, visible, p = self.attended(q, k, v, scale, causal, mask)
        r_p, r_v = self.context_product(
            p, values, r, eps=eps, stabilizer=stabilizer, denominator=denominator
        )
        r_s = self.softmax_taylor(scores, r_p, mask=visible)
        r_q, r_k = self.score_product(
            q, _swap(keys), r_s, eps=eps, stabilizer=stabilizer, denominator=denominator
        )
        return (
            self.scale_pass_through(q, r_q, factor=scale),
            self.summed_back(k, _swap(r_k)),
            self.summed_back(v, r_v),
        )

    def context_product(self, a: Array, v: Array, r: Array, **options: Any) -> Any:
        return self.matmul_uniform(a, v, r, **options)

    def score_product(self, a: Array, v: Array, r: Array, **options: Any) -> Any:
        return self.matmul_uniform(a, v, r, **options)

    def attention_cp(
        self,
        q: Array,
        k: Array,
        v: Array,
        r: Array,
        *,
        scale: float,
        causal: bool = False,
        mask: Array | None = None,
        eps: float,
        stabilizer: str = "sign",
    ) -> Answer:
        _, _, values, _, _, p = self.attended(q, k, v, scale, causal, mask)
        return (
            None,
            None,
            self.summed_back(v, self.matmul_second(p, values, r, eps=eps, stabilizer=stabilizer)),
        )

    def attention_attnlrp_gxi(
        self,
        q: Array,
        k: Array,
        v: Array,
        g: Array,
        *,
        scale: float,
        causal: bool = False,
        mask: Array | None = None,
    ) -> Answer:
        q, keys, values, scores, visible, p = self.attended(q, k, v, scale, causal, mask)
        g_p, g_v = self.matmul_uniform_gxi(p, values, g)
        g_s = self.softmax_gradient(scores, g_p, mask=visible)
        g_q, g_k = self.matmul_uniform_gxi(q, _swap(keys), g_s)
        return (
            self.scale_gradient(q, g_q, factor=scale),
            self.summed_back(k, _swap(g_k)),
            self.summed_back(v, g_v),
        )

    def attention_cp_gxi(
        self,
        q: Array,
        k: Array,
        v: Array,
        g: Array,
        *,
        scale: float,
        causal: bool = False,
        mask: Array | None = None,
    ) -> Answer:
        _, _, values, _, _, p = self.attended(q, k, v, scale, causal, mask)
        return None, None, self.summed_back(v, self.matmul_second_gxi(p, values, g))

    def attended(
        self, q: Array, k: Array, v: Array, scale: float, causal: bool, mask: Array | None
    ) -> tuple[Array, ...]:
        """The forward: queries scaled, keys and values repeated,
        scores, what is visible, probabilities.
        """
        times = q.shape[1] // k.shape[1]
        q, keys, values = q * scale, self.repeated(k, times), self.repeated(v, times)
        scores = q @ _swap(keys)
        visible = self.visible(scores, causal, mask)
        return (
            q,
            keys,
            values,
            scores,
            visible,
            self.probabilities(self.filled(scores, visible), -1),
        )

    def visible(self, scores: Array, causal: bool, mask: Array | None) -> Array:
        unmasked = (
            np.ones_like(scores, dtype=bool)
            if mask is None
            else np.broadcast_to(mask, scores.shape)
        )
        return np.tril(unmasked) if causal else unmasked

    def repeated(self, x: Array, times: int) -> Array:
        return np.repeat(x, times, axis=1)

    def summed_back(self, x: Array, r: Array) -> Array:
        return self.repeat_heads_pass_through(x, r, times=r.shape[1] // x.shape[1])

    # small networks

    def network(self, layers: Sequence[Layer], x: Array, seeds: Sequence[Array]) -> Answer:
        xs = reduce(lambda done, layer: [*done, self.forward(layer, done[-1])], layers, [x])
        return xs[-1], *(self.backward(layers, xs, r) for r in seeds)

    def forward(self, layer: Layer, x: Array) -> Array:
        if layer["operation"] == "activation":
            return activation(x, layer["kind"])
        return x @ layer["w"].T if layer["b"] is None else x @ layer["w"].T + layer["b"]

    def backward(self, layers: Sequence[Layer], xs: Sequence[Array], r: Array) -> Array:
        for layer, x in zip(reversed(layers), reversed(xs[:-1]), strict=True):
            r = self.layer_backward(layer, x, r)
        return r

    def layer_backward(self, layer: Layer, x: Array, r: Array) -> Array:
        if layer["operation"] == "activation":
            return self.activation_identity(x, r, kind=layer["kind"])
        options = {
            name: value
            for name, value in layer.items()
            if name not in ("operation", "rule", "w", "b")
        }
        rule = getattr(self, f"linear_{layer['rule']}")
        relevance: Array = rule(x, layer["w"], layer["b"], r, **options)
        return relevance


# -- small pieces ----------------------------------------------------------------------------------


def wide(value: Any) -> Any:
    """Every array of floats in float64, within lists and dicts too."""
    if isinstance(value, np.ndarray):
        return value.astype(np.float64) if value.dtype.kind == "f" else value
    if isinstance(value, (list, tuple)):
        return [wide(each) for each in value]
    return {key: wide(each) for key, each in value.items()} if isinstance(value, dict) else value


def plus_part(c: Array) -> Array:
    return np.maximum(c, 0.0)


def minus_part(c: Array) -> Array:
    return np.minimum(c, 0.0)


def _swap(a: Array) -> Array:
    return a.swapaxes(-1, -2)


def centered(x: Array) -> Array:
    return x - x.mean(-1, keepdims=True)


def _mean_square(x: Array) -> Array:
    return (x * x).mean(-1, keepdims=True)


def summed(operands: Sequence[Array]) -> Array:
    return reduce(lambda a, b: a + b, operands)


def _others(operands: Sequence[Array], k: int) -> Array:
    return reduce(lambda a, b: a * b, [a for i, a in enumerate(operands) if i != k], np.ones(()))


def folded(r: Array, like: Array) -> Array:
    """Summed over the axes along which `like` was broadcast."""
    r = r.sum(tuple(range(r.ndim - like.ndim)))
    return r.sum(
        tuple(i for i, n in enumerate(like.shape) if n == 1 and r.shape[i] != 1), keepdims=True
    ).reshape(like.shape)


def contributions(x: Array, w: Array) -> Array:  # (..., I), (O, I) -> (..., O, I)
    return x[..., None, :] * w


def summed_messages(c: Array, s: Array) -> Array:  # (..., O, I), (..., O) -> (..., I)
    return (c * s[..., None]).sum(-2)


def before(x: Array, n: int) -> Array:
    """What stood n places before, 0 in front of the text."""
    return np.concatenate([np.zeros_like(x[:, :1]).repeat(n, 1), x], axis=1)[:, : x.shape[1]]


def patches_of(x: Array, size: Sequence[int]) -> Array:  # (B, C, H, W) -> (B, N, C h w)
    (b, c, *_), (h, w) = x.shape, size
    rows, columns = x.shape[2] // h, x.shape[3] // w
    cut = x[:, :, : rows * h, : columns * w].reshape(b, c, rows, h, columns, w)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(b, rows * columns, c * h * w)


def _image(
    p: Array, shape: Sequence[int], size: Sequence[int]
) -> Array:  # (B, N, C h w) -> (B, C, H, W)
    (b, c, *_), (h, w) = shape, size
    rows, columns = shape[2] // h, shape[3] // w
    image = np.zeros(shape)
    image[:, :, : rows * h, : columns * w] = (
        p.reshape(b, rows, columns, c, h, w)
        .transpose(0, 3, 1, 4, 2, 5)
        .reshape(b, c, rows * h, columns * w)
    )
    return image


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1 + e)


FAST = 2 * 0.7978845608
"""Of gelu_fast, where gelu_tanh has sqrt(8 / pi)."""


def _inner(x: Array) -> Array:
    return math.sqrt(8 / math.pi) * (x + 0.044715 * x**3)


def _cut(x: Array) -> Array:
    """The gates of gelu are 0 or 1 beyond this, and x^3 stays finite."""
    return np.clip(x, -100.0, 100.0)


_normal = np.vectorize(lambda x: math.erfc(-x / math.sqrt(2)) / 2, otypes=[np.float64])

GATES: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: np.asarray(_normal(_cut(x))),
    "gelu_tanh": lambda x: _sigmoid(_inner(_cut(x))),
    "silu": lambda x: _sigmoid(x),
    "quick_gelu": lambda x: _sigmoid(1.702 * x),
    "gelu_fast": lambda x: _sigmoid(FAST * (_cut(x) + 0.044715 * _cut(x) ** 3)),
    "relu": lambda x: np.where(x > 0, 1.0, 0.0),
    "relu2": lambda x: np.where(x > 0, x, 0.0),
}
"""All but tanh are x times a gate."""

GATE_SLOPES: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: np.exp(-(_cut(x) ** 2) / 2) / math.sqrt(2 * math.pi),
    "gelu_tanh": lambda x: (
        _bell(_inner(_cut(x))) * math.sqrt(8 / math.pi) * (1 + 3 * 0.044715 * _cut(x) ** 2)
    ),
    "silu": lambda x: _bell(x),
    "quick_gelu": lambda x: 1.702 * _bell(1.702 * x),
    "gelu_fast": lambda x: (
        _bell(FAST * (_cut(x) + 0.044715 * _cut(x) ** 3)) * FAST * (1 + 3 * 0.044715 * _cut(x) ** 2)
    ),
    "relu": lambda x: np.zeros_like(x),
    "relu2": lambda x: np.where(x > 0, 1.0, 0.0),
}


def _bell(x: Array) -> Array:
    return _sigmoid(x) * _sigmoid(-x)


def activation(x: Array, kind: str) -> Array:
    return np.tanh(x) if kind == "tanh" else x * GATES[kind](x)


def identity_factor(x: Array, kind: str) -> Array:
    """f(x)/x, and its limit at 0."""
    return (
        np.where(x == 0, 1.0, np.tanh(x) / np.where(x == 0, 1.0, x))
        if kind == "tanh"
        else GATES[kind](x)
    )


def derivative(x: Array, kind: str) -> Array:
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
