"""Rotary position embedding          z = x cos + rot(x) sin,   rot([x1, x2]) = [-x2, x1]
(Su et al. 2021). A linear map without a bias; cos and sin are constants.

    epsilon     R_x = x J^T s,  s = R / (z + eps s(z))
    uniform     half of that: x cos and rot(x) sin are products, and the angle is a factor as x is
                                                            (PA-LRP, Bakish et al. 2025; AttnLRP
                                                            prop. 3.2 for each product)
    gradient    g_x = J^T g,  J^T g = g cos + rot^T(g sin)

Absorbs: stabilizer sum eps s(z) s. `uniform` leaves the other half, sum z s / 2, at the angles: it
is absorbed as `position`. Entry by entry that half is `of_angles`: x cos g / 2 is the cosines', and
rot(x) sin g / 2 the sines'.
"""

from __future__ import annotations

from refl.arrays import Array, fused, namespace, total_product
from refl.rules.conservation import Forms, RuleOutput, stabilized_ratio


def forward(
    x: Array, *, cos: Array, sin: Array
) -> Array:  # (B, H, T, d), (1|B, 1, T, d) -> (B, H, T, d)
    return _turned(x, cos, halves_exchanged(x, -1.0, 1.0), sin)


@fused
def _turned(x: Array, cos: Array, across: Array, sin: Array) -> Array:
    return x * cos + across * sin


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
    s, absorbed = stabilized_ratio(z, r, eps, stabilizer)
    return RuleOutput((x * _transposed(s, cos, sin),), {"stabilizer": absorbed})


def uniform(
    x: Array,
    z: Array,
    r: Array,
    *,
    cos: Array,
    sin: Array,
    eps: float = 1e-6,
    stabilizer: str = "sign",
) -> RuleOutput:
    s, absorbed = stabilized_ratio(z, r, eps, stabilizer)
    (inputs,), position = uniform_gxi(x, z, s, cos=cos, sin=sin)
    return RuleOutput((x * inputs,), position | {"stabilizer": absorbed})


def uniform_gxi(x: Array, z: Array, g: Array, *, cos: Array, sin: Array) -> RuleOutput:
    h = g / 2
    return RuleOutput((_transposed(h, cos, sin),), {"position": total_product(z, h)})


def of_angles(
    x: Array, g: Array, *, cos: Array, sin: Array
) -> tuple[Array, Array]:  # (B, H, T, d) x 2 -> the same, of cos and of sin
    """What `uniform` absorbs as `position`, for g with R = z g."""
    h = g / 2
    return x * cos * h, halves_exchanged(x, -1.0, 1.0) * sin * h


def gradient(x: Array, z: Array, g: Array, *, cos: Array, sin: Array) -> RuleOutput:
    return RuleOutput((_transposed(g, cos, sin),), {})


def _transposed(s: Array, cos: Array, sin: Array) -> Array:
    """J^T s"""
    return s * cos + halves_exchanged(s * sin, 1.0, -1.0)


def halves_exchanged(x: Array, first: float, second: float) -> Array:
    """[first * x2, second * x1] for x = [x1, x2] along the last axis."""
    half = x.shape[-1] // 2
    return namespace(x).concat((first * x[..., half:], second * x[..., :half]), axis=-1)


RULES = {
    "epsilon": Forms(epsilon, gradient),
    "uniform": Forms(uniform, uniform_gxi),
    "gradient": Forms(None, gradient),
}
