"""How far rounding can move the balance of a rule: the scale that an audit judges it by.

    |sum(R) - sum over operands of sum(R_operand) - absorbed|  <=  8 u * rounding scale

u is the unit roundoff. The scale is the sum of |terms| that the rule adds up, per example, times
how often a term is rounded: once as a message, once in the denominator it is divided by, and so on.
Where R is divided by z + eps s(z), s z + s eps s(z) gives R back but for a rounding of R itself:
|R| counts too, which is what is left where |z| is far below eps. A rule that only hands relevance
on has no terms but the relevance.

No rule needs this to do its work, so it stands apart from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from refl.arrays import Array, flags, namespace, row_product, row_sum, total, total_product
from refl.rules import (
    activation,
    causal_convolution,
    gather,
    layer_norm,
    linear,
    rotary,
    scan,
    softmax,
)
from refl.rules.conservation import stabilized_ratio

Operands: TypeAlias = Any
"""The operation's operands, in order."""
How: TypeAlias = Mapping[str, Any]
"""The attributes of the operation and the options of the rule, defaults spelled out."""


def rounding_scale(
    operation: str, rule: str, formulation: str, operands: Operands, z: Array, r: Array, how: How
) -> Array:  # -> (B,)
    """The scale for a rule by name, where r (in gradient x input form g) arrived at z."""
    if formulation == "gradient_x_input":
        r_z = z * r
        known = GRADIENT_X_INPUT.get((operation, rule))
    else:
        r_z = r
        known = RELEVANCE.get((operation, rule))
    return _sum(r_z) if known is None else known(operands, z, r, how)


def _sum(a: Array) -> Array:  # (B, ...) -> (B,)
    return total(namespace(a).abs(a))


def _stabilized(z: Array, r: Array, how: How) -> Array:
    return stabilized_ratio(z, r, how["eps"], how["stabilizer"])[0]


# -- sums of |terms| given s: r / denominator in relevance form, g in gradient x input form --------


def _linear(operands: Operands, s: Array) -> Array:
    """sum_ij |x_i W_ji s_j| + sum_j |b_j s_j|, as messages and in the z they are divided by."""
    x, w, b = operands
    xp = namespace(x, w, s)
    terms = total_product(xp.abs(x), xp.abs(s) @ xp.abs(w))
    return 2 * (terms if b is None else terms + total(xp.abs(s) @ xp.abs(b)))


def _add(operands: Operands, s: Array) -> Array:
    a, b = operands
    return 2 * (_sum(a * s) + _sum(b * s))


def _combine(ys: Operands, s: Array, index: Sequence[gather.Index]) -> Array:
    pairs = zip(ys, index, strict=True)
    return 2 * sum(_sum(y * gather.rows(s, where)) for y, where in pairs)


def _matmul(operands: Operands, s: Array) -> Array:
    """sum_jip |A_ji V_ip s_jp|, as messages and in the O they are divided by."""
    a, v = operands
    xp = namespace(a, v, s)
    return 2 * total_product(xp.abs(s), xp.abs(a) @ xp.abs(v))


def _pooling(operands: Operands, s: Array, counted: Array) -> Array:
    (x,) = operands
    xp = namespace(x, s)
    return 2 * total_product(xp.abs(s), xp.sum(xp.abs(x) * counted, axis=-2, keepdims=True))


def _causal_convolution(operands: Operands, s: Array) -> Array:
    x, w, b = operands
    xp = namespace(x, w, s)
    terms = causal_convolution.forward(*(None if o is None else xp.abs(o) for o in (x, w, b)))
    return 2 * total_product(xp.abs(s), terms)


def _scan(operands: Operands, s: Array) -> Array:
    """What place t has of place t' is rounded with each step between them, there and back."""
    x, d, b, c, a_log = operands
    xp = namespace(x, s)
    terms = scan.forward(xp.abs(x), d, xp.abs(b), xp.abs(c), a_log)
    return (2 + x.shape[1] / 2) * total_product(xp.abs(s), terms)


def _scan_gradient(operands: Operands, z: Array, g: Array, how: How) -> Array:
    """The four operands' sums and what they are too much; and the decays' sum, twice."""
    x, d, b, c, a_log = operands
    xp = namespace(x, g)
    absolute = (xp.abs(x), d, xp.abs(b), xp.abs(c), a_log, z, xp.abs(g))
    decays = -scan.gradient(*absolute).absorbed["decay_offset"]
    return 4 * _scan(operands, g) + (4 + x.shape[1]) * xp.abs(decays)


def _rotary(operands: Operands, s: Array, how: How) -> Array:
    (x,) = operands
    xp = namespace(x, s)
    x, cos, sin = xp.abs(x), xp.abs(how["cos"]), xp.abs(how["sin"])
    return 2 * total_product(xp.abs(s), x * cos + rotary.halves_exchanged(x, 1.0, 1.0) * sin)


def _layer_norm(operands: Operands, s: Array, norm_eps: float) -> Array:
    """The mean is taken of x and of c, so each term is in a row's sum twice."""
    x, w, b = operands
    xp = namespace(x, w, s)
    c = xp.abs(w * s * layer_norm.standardized(x, norm_eps)[1])
    spread = xp.abs(x) + xp.mean(xp.abs(x), axis=-1, keepdims=True)
    terms = 4 * total_product(c, spread)
    return terms if b is None else terms + 2 * total(xp.abs(s) @ xp.abs(b))


def _softmax(operands: Operands, p: Array, r: Array, mask: Array | None) -> Array:
    """What prop. 3.1 adds up: x_i R_i, x_i p_i sum_j R_j, R_j, R_j x_j, R_j sum_i p_i x_i."""
    (x,) = operands
    xp = namespace(x, p, r)
    x, r, _ = softmax.visible(x, r, mask)
    x, r = xp.abs(x), xp.abs(r)
    offsets = total(r * (1 + x)) + total(row_sum(r) * row_product(p, x))
    return 3 * (total(x * (r + p * row_sum(r))) + offsets)


# -- by operation and rule -------------------------------------------------------------------------


def _linear_epsilon(operands: Operands, z: Array, r: Array, how: How) -> Array:
    return _linear(operands, _stabilized(z, r, how)) + _sum(r)


def _given_back(s: Array, r: Array, how: How) -> Array:
    """|R| of a rule that divides by z + eps s(z) only where an eps is asked for; without one, what
    stood above a denominator of 0, all of which is absorbed.
    """
    return _sum(r if how["eps"] else r * flags(s == 0, r))


def _linear_gamma(operands: Operands, z: Array, r: Array, how: How) -> Array:
    parts = tuple(map(linear.signed, operands))
    s = linear.quotient(linear.gamma_denominator(parts, z, how["gamma"]), r, how["eps"])[0]
    return (1 + how["gamma"]) * _linear(operands, s) + _given_back(s, r, how)


def _linear_alpha_beta(operands: Operands, z: Array, r: Array, how: How) -> Array:
    parts, alpha, beta = tuple(map(linear.signed, operands)), how["alpha"], how["beta"]
    s = linear.quotient(linear.positive_sum(parts), alpha * r, how["eps"])[0]
    scale = _linear(operands, s) + alpha * _given_back(s, r, how)
    if beta:
        s = linear.quotient(linear.negative_sum(parts), beta * r, how["eps"])[0]
        scale = scale + _linear(operands, s) + beta * _given_back(s, r, how)
    return scale


def _linear_z_plus(operands: Operands, z: Array, r: Array, how: How) -> Array:
    return _linear_alpha_beta(operands, z, r, {**how, "alpha": 1.0, "beta": 0.0})


def _linear_z_box(operands: Operands, z: Array, r: Array, how: How) -> Array:
    x, w, _ = operands
    above, below = x - linear.bound(how["low"], x), x - linear.bound(how["high"], x)
    w_pos, w_neg = linear.signed(w)
    s = linear.quotient(above @ w_pos.T + below @ w_neg.T, r)[0]
    dead = _given_back(s, r, {"eps": 0.0})
    return _linear((above, w_pos, None), s) + _linear((below, w_neg, None), s) + dead


def _linear_flat(operands: Operands, z: Array, r: Array, how: How) -> Array:
    """All n messages of a row are one number, so the errors of their sum are alike and add up, to
    n u |R|: an n of which the 8 of the bound are taken off.
    """
    (x, *_) = operands
    return (2 + x.shape[-1] / 8) * _sum(r)


def _linear_w_square(operands: Operands, z: Array, r: Array, how: How) -> Array:
    return 2 * _sum(r)


def _matmul_uniform(operands: Operands, z: Array, r: Array, how: How) -> Array:
    eps = how["eps"] * (1 if how["denominator"] == "2z+eps" else 2)
    s = stabilized_ratio(2 * z, r, eps, how["stabilizer"])[0]
    return 2 * _matmul(operands, s) + _sum(r)


def _matmul_flattened(operands: Operands, z: Array, r: Array, how: How) -> Array:
    count = sum(how["factors"])
    return count * _matmul(operands, _stabilized(count * z, r, how)) + _sum(r)


def _matmul_second(operands: Operands, z: Array, r: Array, how: How) -> Array:
    return _matmul(operands, _stabilized(z, r, how)) + _sum(r)


def _softmax_z_plus(operands: Operands, z: Array, r: Array, how: How) -> Array:
    (x,), xp = operands, namespace(z, r)
    x, r, _ = softmax.visible(x, r, how["mask"])
    own, cross = softmax.positive_messages(x, z)
    s = xp.abs(stabilized_ratio(own + softmax.others(cross), r, 0.0, "none")[0])
    return 3 * total(own * s + cross * row_sum(s) + s * row_sum(cross)) + _sum(r)


def _activation_gradient(operands: Operands, z: Array, g: Array, how: How) -> Array:
    (x,) = operands
    return 3 * (_sum(z * g) + _sum(x * activation.slope(x, how["kind"]) * g))


def _pooling_gradient(operands: Operands, z: Array, g: Array, how: How) -> Array:
    counted = how["counted"]
    each = g / namespace(g, counted).sum(counted, axis=-2, keepdims=True)
    return _pooling(operands, each, counted)


RELEVANCE: dict[tuple[str, str], Callable[[Operands, Array, Array, How], Array]] = {
    ("add", "epsilon"): lambda o, z, r, how: _add(o, _stabilized(z, r, how)) + _sum(r),
    ("causal_convolution", "epsilon"): lambda o, z, r, how: (
        _causal_convolution(o, _stabilized(z, r, how)) + _sum(r)
    ),
    ("combine", "epsilon"): lambda o, z, r, how: (
        _combine(o, _stabilized(z, r, how), how["index"]) + _sum(r)
    ),
    ("layer_norm", "epsilon"): lambda o, z, r, how: (
        _layer_norm(o, _stabilized(z, r, how), how["norm_eps"]) + _sum(r)
    ),
    ("linear", "epsilon"): _linear_epsilon,
    ("linear", "gamma"): _linear_gamma,
    ("linear", "z_plus"): _linear_z_plus,
    ("linear", "alpha_beta"): _linear_alpha_beta,
    ("linear", "flat"): _linear_flat,
    ("linear", "w_square"): _linear_w_square,
    ("linear", "z_box"): _linear_z_box,
    ("matmul", "uniform"): _matmul_uniform,
    ("matmul", "flattened"): _matmul_flattened,
    ("matmul", "second"): _matmul_second,
    ("pooling", "epsilon"): lambda o, z, r, how: (
        _pooling(o, _stabilized(_counted_sum(o, how), r, how), how["counted"]) + _sum(r)
    ),
    ("renormalize", "epsilon"): lambda o, z, r, how: 4 * _sum(z * _stabilized(z, r, how)) + _sum(r),
    ("rotary", "epsilon"): lambda o, z, r, how: _rotary(o, _stabilized(z, r, how), how) + _sum(r),
    ("rotary", "uniform"): lambda o, z, r, how: _rotary(o, _stabilized(z, r, how), how) + _sum(r),
    ("scan", "epsilon"): lambda o, z, r, how: _scan(o, _stabilized(z, r, how)) + _sum(r),
    ("softmax", "taylor"): lambda o, z, r, how: _softmax(o, z, r, how["mask"]),
    ("softmax", "spread"): lambda o, z, r, how: 2 * _softmax(o, z, r, how["mask"]),
    ("softmax", "z_plus"): _softmax_z_plus,
}


def _counted_sum(operands: Operands, how: How) -> Array:
    (x,) = operands
    return namespace(x).sum(x * how["counted"], axis=-2, keepdims=True)


GRADIENT_X_INPUT: dict[tuple[str, str], Callable[[Operands, Array, Array, How], Array]] = {
    ("activation", "gradient"): _activation_gradient,
    ("add", "epsilon"): lambda o, z, g, how: _add(o, g),
    ("causal_convolution", "epsilon"): lambda o, z, g, how: _causal_convolution(o, g),
    ("combine", "epsilon"): lambda o, z, g, how: _combine(o, g, how["index"]),
    ("layer_norm", "epsilon"): lambda o, z, g, how: _layer_norm(o, g, how["norm_eps"]),
    ("layer_norm", "gradient"): lambda o, z, g, how: 2 * _layer_norm(o, g, how["norm_eps"]),
    ("linear", "epsilon"): lambda o, z, g, how: _linear(o, g),
    ("matmul", "uniform"): lambda o, z, g, how: _matmul(o, g),
    ("matmul", "flattened"): lambda o, z, g, how: _matmul(o, g),
    ("matmul", "second"): lambda o, z, g, how: _matmul(o, g),
    ("matmul", "gradient"): lambda o, z, g, how: 3 * _matmul(o, g),
    ("pooling", "epsilon"): _pooling_gradient,
    ("renormalize", "epsilon"): lambda o, z, g, how: 4 * _sum(z * g),
    ("rms_norm", "gradient"): lambda o, z, g, how: 4 * _sum(z * g),
    ("rotary", "epsilon"): lambda o, z, g, how: _rotary(o, g, how),
    ("rotary", "uniform"): lambda o, z, g, how: _rotary(o, g, how),
    ("scan", "epsilon"): lambda o, z, g, how: _scan(o, g),
    ("scan", "gradient"): _scan_gradient,
    ("softmax", "taylor"): lambda o, z, g, how: _softmax(o, z, z * g, how["mask"]),
}
GRADIENT_X_INPUT |= {
    (operation, "gradient"): GRADIENT_X_INPUT[operation, rule]
    for operation, rule in (
        ("add", "epsilon"),
        ("causal_convolution", "epsilon"),
        ("combine", "epsilon"),
        ("linear", "epsilon"),
        ("pooling", "epsilon"),
        ("renormalize", "epsilon"),
        ("rotary", "epsilon"),
        ("softmax", "taylor"),
    )
}
"""In gradient x input form these rules are the true derivative."""
