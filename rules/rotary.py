"""Rotary position embedding          z = x cos + rot(x) sin,   rot([x1, x2]) = [-x2, x1]
                                      (Su et al. 2021)

A linear map without a bias; cos and sin are constants.

    epsilon     R_x = x J^T s,  s = R / (z + eps s(z))
    gradient    g_x = J^T g,  J^T g = g cos + rot^T(g sin)

Absorbs: stabilizer sum eps s(z) s.
"""

from __future__ import annotations

from refl.arrays import Array, namespace, total_product
from refl.rules.balance import RuleOutput, share


def forward(
    x: Array, *, cos: Array, sin: Array
) -> Array:  # (B, H, T, d), (1|B, 1, T, d) -> (B, H, T, d)
    return x * cos + _rotate(x, -1.0, 1.0) * sin


def epsilon(
    x: Array,
    z: Array,
    r: Array,
    *,
    cos: Array,
    sin: Array,
    eps: float = 1e-6,
    stabilizer: str = "sign",
) -> RuleOutput:
    s, taken = share(z, r, eps, stabilizer)
    return RuleOutput(
        (x * _pull(s, cos, sin),), {"stabilizer": taken}, lambda: _terms(x, s, cos, sin)
    )


def gradient(x: Array, z: Array, g: Array, *, cos: Array, sin: Array) -> RuleOutput:
    return RuleOutput((_pull(g, cos, sin),), {}, lambda: _terms(x, g, cos, sin))


def _pull(g: Array, cos: Array, sin: Array) -> Array:
    return g * cos + _rotate(g * sin, 1.0, -1.0)


def _rotate(x: Array, first: float, second: float) -> Array:
    """The halves of the last axis exchanged: [first * x2, second * x1]."""
    half = x.shape[-1] // 2
    return namespace(x).concat((first * x[..., half:], second * x[..., :half]), axis=-1)


def _terms(x: Array, s: Array, cos: Array, sin: Array) -> Array:  # -> (B,)
    xp = namespace(x, s)
    return 2 * total_product(
        xp.abs(s), xp.abs(x) * xp.abs(cos) + _rotate(xp.abs(x), 1.0, 1.0) * xp.abs(sin)
    )
