"""LayerNorm                  z = w (x - mean(x)) / std + b,   std^2 = var(x) + norm_eps
                              (Ba et al. 2016)

    epsilon     R_x = x (c - mean(c)),  c = w s / std,  s = R / (z + eps s(z)): std is constant
                (AttnLRP section 3.3.3)
    identity    R_x = R: the whole layer is one normalization  (AttnLRP prop. 3.4 as stated)
    epsilon_gxi  g_x = c - mean(c),  c = w g / std, in gradient x input form: epsilon at eps -> 0
    gradient    frozen - x_hat mean(w g x_hat) / std: the full Jacobian, x_hat = (x - mean(x)) / std

Absorbs: norm_bias sum b s; stabilizer sum eps s(z) s; the full Jacobian `norm_offset` = sum w g
x_hat times var / std^2.
"""

from __future__ import annotations

from refl.arrays import Array, namespace, total, total_product
from refl.rules.balance import RuleOutput, share


def forward(
    x: Array, w: Array, b: Array | None, *, norm_eps: float
) -> Array:  # (..., N), (N,), (N,) -> (..., N)
    centered, inverse, _ = _parts(x, norm_eps)
    z = centered * inverse * w
    return z if b is None else z + b


def epsilon(
    x: Array,
    w: Array,
    b: Array | None,
    z: Array,
    r: Array,
    *,
    norm_eps: float,
    eps: float = 1e-6,
    stabilizer: str = "sign",
) -> RuleOutput:
    s, taken = share(z, r, eps, stabilizer)
    c = _pull(x, w, s, norm_eps)
    return RuleOutput(
        (x * c, None, None),
        _bias(b, s) | {"stabilizer": taken},
        lambda: _terms(x, w, b, s, norm_eps),
    )


def identity(
    x: Array, w: Array, b: Array | None, z: Array, r: Array, *, norm_eps: float
) -> RuleOutput:
    return RuleOutput((r, None, None), {})


def epsilon_gxi(
    x: Array, w: Array, b: Array | None, z: Array, g: Array, *, norm_eps: float
) -> RuleOutput:
    return RuleOutput(
        (_pull(x, w, g, norm_eps), None, None), _bias(b, g), lambda: _terms(x, w, b, g, norm_eps)
    )


def gradient(
    x: Array, w: Array, b: Array | None, z: Array, g: Array, *, norm_eps: float
) -> RuleOutput:
    xp = namespace(x, g)
    centered, inverse, variance = _parts(x, norm_eps)
    normed = centered * inverse
    along = xp.sum(w * g * normed, axis=-1, keepdims=True)
    relevance = _pull(x, w, g, norm_eps) - normed * inverse * (along / x.shape[-1])
    absorbed = _bias(b, g) | {"norm_offset": total(along * variance * inverse * inverse)}
    return RuleOutput((relevance, None, None), absorbed, lambda: 2 * _terms(x, w, b, g, norm_eps))


def _parts(
    x: Array, norm_eps: float
) -> tuple[Array, Array, Array]:  # -> x - mean (..., N), 1/std, var: (..., 1)
    xp = namespace(x)
    centered = x - xp.mean(x, axis=-1, keepdims=True)
    variance = xp.mean(centered * centered, axis=-1, keepdims=True)
    return centered, 1 / xp.sqrt(variance + norm_eps), variance


def _pull(x: Array, w: Array, s: Array, norm_eps: float) -> Array:
    """J^T s with std frozen: c - mean(c)."""
    c = w * s * _parts(x, norm_eps)[1]
    return c - namespace(c).mean(c, axis=-1, keepdims=True)


def _bias(b: Array | None, s: Array) -> dict[str, Array]:
    return {} if b is None else {"norm_bias": total(s @ b)}


def _terms(x: Array, w: Array, b: Array | None, s: Array, norm_eps: float) -> Array:  # -> (B,)
    xp = namespace(x, w, s)
    c = xp.abs(w * s * _parts(x, norm_eps)[1])
    spread = xp.abs(x) + xp.mean(xp.abs(x), axis=-1, keepdims=True)
    terms = 4 * total_product(c, spread)
    return terms if b is None else terms + 2 * total(xp.abs(s) @ xp.abs(b))
