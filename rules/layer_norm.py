"""LayerNorm          z = w (x - mean(x)) / std + b,   std^2 = var(x) + norm_eps   (Ba et al. 2016)

    epsilon     R_x = x (c - mean(c)),  c = w s / std,  s = R / (z + eps s(z)): std is constant
                                                                         (AttnLRP section 3.3.3)
    identity    R_x = R: the whole layer is one normalization        (AttnLRP prop. 3.4 as stated)
    gradient    g_x = c - mean(c) - x_hat mean(w g x_hat) / std,  c = w g / std,
                x_hat = (x - mean(x)) / std: the full Jacobian

In gradient x input form, epsilon is the Jacobian with std constant, `epsilon_gxi`: c - mean(c).

Absorbs: norm_bias sum b s; stabilizer sum eps s(z) s; the full Jacobian `norm_offset` =
sum w g x_hat times var / std^2.
"""

from __future__ import annotations

from refl.arrays import Array, namespace, squares_scale, total
from refl.rules.conservation import Forms, RuleOutput, stabilized_ratio

CAUSES = {
    "norm_bias": "biases of norms",
    "norm_offset": "the part of a norm that its rule hands to no input",
}


def forward(
    x: Array, w: Array, b: Array | None, *, norm_eps: float
) -> Array:  # (..., N), (N,), (N,) -> (..., N)
    z = standardized(x, norm_eps)[0] * w
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
) -> RuleOutput:  # r: (..., N) -> (..., N)
    s, absorbed = stabilized_ratio(z, r, eps, stabilizer)
    r_x = x * _transposed(x, w, s, norm_eps)
    return RuleOutput((r_x, None, None), _bias(b, s) | {"stabilizer": absorbed})


def identity(
    x: Array, w: Array, b: Array | None, z: Array, r: Array, *, norm_eps: float
) -> RuleOutput:
    return RuleOutput((r, None, None), {})


def epsilon_gxi(
    x: Array, w: Array, b: Array | None, z: Array, g: Array, *, norm_eps: float
) -> RuleOutput:
    return RuleOutput((_transposed(x, w, g, norm_eps), None, None), _bias(b, g))


def gradient(
    x: Array, w: Array, b: Array | None, z: Array, g: Array, *, norm_eps: float
) -> RuleOutput:
    xp = namespace(x, g)
    x_hat, inverse, share = standardized(x, norm_eps)
    along = xp.sum(w * g * x_hat, axis=-1, keepdims=True)
    g_x = _transposed(x, w, g, norm_eps) - x_hat * inverse * (along / x.shape[-1])
    absorbed = _bias(b, g) | {"norm_offset": total(along * share)}
    return RuleOutput((g_x, None, None), absorbed)


def standardized(
    x: Array, norm_eps: float
) -> tuple[Array, Array, Array]:  # -> x_hat (..., N), 1/std, var/std^2: (..., 1)
    """For any finite x: where squares are beyond the dtype, of x over the largest of its row."""
    xp, scale, eps = namespace(x), squares_scale(x, norm_eps), norm_eps
    if scale is not None:
        x, eps = x / scale, norm_eps / scale / scale
    centered = x - xp.mean(x, axis=-1, keepdims=True)
    variance = xp.mean(centered * centered, axis=-1, keepdims=True)
    inverse = 1 / xp.sqrt(variance + eps)
    share = variance / (variance + eps)
    return centered * inverse, inverse if scale is None else inverse / scale, share


def _transposed(x: Array, w: Array, s: Array, norm_eps: float) -> Array:
    """J^T s with std constant: c - mean(c)."""
    c = w * s * standardized(x, norm_eps)[1]
    return c - namespace(c).mean(c, axis=-1, keepdims=True)


def _bias(b: Array | None, s: Array) -> dict[str, Array]:
    return {} if b is None else {"norm_bias": total(s @ b)}


RULES = {
    "epsilon": Forms(epsilon, epsilon_gxi),
    "identity": Forms(identity),
    "gradient": Forms(None, gradient),
}
