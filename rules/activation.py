"""Activation, element by element                    z = f(x)

    identity    R_x = R                                                          (AttnLRP eq. 9)
    gradient    g_x = g f'(x): the true derivative

In gradient x input form, identity is `identity_gxi`: g_x = g f(x)/x, at x = 0 its limit g f'(0).

Absorbs nothing, except the true derivative: `activation_offset` = sum g (f(x) - x f'(x)).

tanh'(x) is 4 e / (1 + e)^2 with e = exp(-2|x|). All others are x times a gate: gelu Phi(x),
gelu_tanh sigmoid(2u) with u = sqrt(2/pi)(x + 0.044715 x^3), gelu_fast the same with 0.7978845608
for sqrt(2/pi), silu sigmoid(x), quick_gelu sigmoid(1.702 x), relu a step that is 0 at 0 (its
derivative there, by the convention of every framework), relu2 relu itself (So et al. 2021, arXiv
2109.08668).

softplus is log(1 + e^x), which is not 0 at 0: identity's ratio has no limit there, and what
identity_gxi cannot hand on at x = 0 is absorbed as `activation_offset`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from refl.arrays import Array, erfc, flags, fused, namespace, total
from refl.rules.conservation import Forms, RuleOutput, stabilized_ratio

CAUSES = {"activation_offset": "what an activation's slope at x does not account for"}

SATURATED = 100.0
"""Beyond this both gelu gates are 0 or 1 to the last bit, and x^3 could overflow."""


def forward(x: Array, *, kind: str) -> Array:  # (...) -> (...)
    if kind == "softplus":
        return _softplus(x)
    return namespace(x).tanh(x) if kind == "tanh" else x * GATES[kind](x)


def identity(x: Array, z: Array, r: Array, *, kind: str) -> RuleOutput:
    return RuleOutput((r,), {})


def identity_gxi(x: Array, z: Array, g: Array, *, kind: str) -> RuleOutput:
    if kind == "softplus":
        ratio, lost = stabilized_ratio(x, g * z, 0.0, "none")
        return RuleOutput((ratio,), {"activation_offset": lost})
    return RuleOutput((_times_ratio(g, z, x, AT_ZERO[kind]),), {})


@fused
def _times_ratio(g: Array, z: Array, x: Array, at_zero: float) -> Array:
    """g z/x, and g times z/x's limit where x = 0."""
    zero = flags(x == 0, x)
    return g * (z / (x + zero) + at_zero * zero)


def gradient(x: Array, z: Array, g: Array, *, kind: str) -> RuleOutput:
    g_x, offset = _times_slope(g, slope(x, kind), z, x)
    return RuleOutput((g_x,), {"activation_offset": total(offset)})


@fused
def _times_slope(g: Array, f_prime: Array, z: Array, x: Array) -> tuple[Array, Array]:
    return g * f_prime, g * (z - x * f_prime)


def slope(x: Array, kind: str) -> Array:
    """f'(x)"""
    return SLOPES[kind](x)


@fused
def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), never exponentiating a positive number."""
    xp = namespace(x)
    e = xp.exp(-xp.abs(x))
    return xp.maximum(e, flags(x >= 0, x)) / (1 + e)  # above: 1 where x >= 0, else exp(x)


def _clipped(x: Array) -> Array:
    return namespace(x).clip(x, -SATURATED, SATURATED)


@fused
def _normal_cdf(x: Array) -> Array:
    return erfc(_clipped(x) * -math.sqrt(0.5)) / 2


@fused
def _gelu_slope(x: Array) -> Array:
    c = _clipped(x)
    return _normal_cdf(c) + c * namespace(x).exp(-c * c / 2) * math.sqrt(0.5 / math.pi)


def _tanh_argument(x: Array, a: float) -> Array:  # 2u
    x = _clipped(x)
    return a * x * (1 + 0.044715 * x * x)


@fused
def _gelu_tanh_gate(x: Array, a: float) -> Array:
    return sigmoid(_tanh_argument(x, a))


@fused
def _gelu_tanh_slope(x: Array, a: float) -> Array:
    x = _clipped(x)
    gate = sigmoid(_tanh_argument(x, a))
    return gate + x * gate * sigmoid(-_tanh_argument(x, a)) * a * (1 + 3 * 0.044715 * x * x)


TWICE, TWICE_FAST = math.sqrt(8 / math.pi), 2 * 0.7978845608
"""2 u / (x + 0.044715 x^3), of gelu_tanh and of gelu_fast."""


@fused
def _scaled_sigmoid(x: Array, a: float) -> Array:
    return sigmoid(a * x)


@fused
def _scaled_sigmoid_slope(x: Array, a: float) -> Array:
    y = a * x
    return sigmoid(y) * (1 + y * sigmoid(-y))


@fused
def _tanh_slope(x: Array) -> Array:
    """4 e / (1 + e)^2, e = exp(-2|x|): 1 - tanh(x)^2 has no digits left where tanh is near 1."""
    xp = namespace(x)
    e = xp.exp(-2 * xp.abs(x))
    return 4 * e / ((1 + e) * (1 + e))


@fused
def _softplus(x: Array) -> Array:
    """max(x, 0) + log(1 + exp(-|x|)), never exponentiating a positive number."""
    xp = namespace(x)
    return x * flags(x > 0, x) + xp.log1p(xp.exp(-xp.abs(x)))


def _step(x: Array) -> Array:
    return flags(x > 0, x)


def _relu(x: Array) -> Array:
    return x * _step(x)


GATES: dict[str, Callable[[Array], Array]] = {
    "gelu": _normal_cdf,
    "gelu_tanh": lambda x: _gelu_tanh_gate(x, TWICE),
    "gelu_fast": lambda x: _gelu_tanh_gate(x, TWICE_FAST),
    "silu": sigmoid,
    "quick_gelu": lambda x: _scaled_sigmoid(x, 1.702),
    "relu": _step,
    "relu2": _relu,
}
SLOPES: dict[str, Callable[[Array], Array]] = {
    "gelu": _gelu_slope,
    "gelu_tanh": lambda x: _gelu_tanh_slope(x, TWICE),
    "gelu_fast": lambda x: _gelu_tanh_slope(x, TWICE_FAST),
    "silu": lambda x: _scaled_sigmoid_slope(x, 1.0),
    "quick_gelu": lambda x: _scaled_sigmoid_slope(x, 1.702),
    "relu": _step,
    "relu2": lambda x: 2 * _relu(x),
    "tanh": _tanh_slope,
    "softplus": sigmoid,
}
AT_ZERO = dict.fromkeys(GATES, 0.5) | {"relu": 0.0, "relu2": 0.0, "tanh": 1.0}
"""f'(0), the limit of f(x)/x."""

RULES = {"identity": Forms(identity, identity_gxi), "gradient": Forms(None, gradient)}
