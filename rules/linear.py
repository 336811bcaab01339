"""Linear layer                    z_j = sum_i W_ji x_i + b_j

Every rule divides R_j over the contributions c_ij = W_ji x_i and the bias. With s_j = R_j /
denominator_j:

    epsilon       R_i = x_i sum_j W_ji s_j         denominator z_j + eps s(z_j)  (AttnLRP eq. 8)
    gamma         c + g c^+ where z_j > 0, c + g c^- elsewhere, over the sum of the same
                  (AttnLRP eq. 24)
    z_plus        c^+ over sum c^+  (AttnLRP eq. 25)
    alpha_beta    alpha c^+ / sum c^+  -  beta c^- / sum c^-,  alpha - beta = 1
                  (Bach et al. 2015, eq. 60)
    flat          1 / I: every input the same  (Lapuschkin et al. 2019)
    w_square      W_ji^2 / sum_i W_ji^2  (Montavon et al. 2017, eq. 11)
    z_box         c_ij - l_i W_ji^+ - h_i W_ji^- over its sum, for inputs in a box l <= x <= h
                  (Montavon et al. 2017, z^B rule)
    gradient      g_i = sum_j W_ji g_j, in gradient x input form: epsilon at eps -> 0

The bias is a contribution like any other; its share is absorbed as `bias`. A denominator that is
exactly zero passes nothing on; what stood above it is absorbed as `stabilizer`. Under z_box the
bias gets no share: of b_j - b_j^+ - b_j^- nothing is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from refl.arrays import Array, flags, like, namespace, total, total_product
from refl.rules.balance import RuleOutput, share

Bound: TypeAlias = float | Sequence[float]


def forward(x: Array, w: Array, b: Array | None) -> Array:  # (..., I), (O, I), (O,) -> (..., O)
    z = x @ w.T
    return z if b is None else z + b


def epsilon(
    x: Array,
    w: Array,
    b: Array | None,
    z: Array,
    r: Array,
    *,
    eps: float = 1e-6,
    stabilizer: str = "sign",
) -> RuleOutput:
    s, taken = share(z, r, eps, stabilizer)  # (..., O)
    r_x = s @ w
    r_x *= x
    return RuleOutput(
        (r_x, None, None), _bias(b, s) | {"stabilizer": taken}, lambda: _terms(x, w, b, s)
    )


def gradient(
    x: Array, w: Array, b: Array | None, z: Array, g: Array
) -> RuleOutput:  # g: (..., O) -> (..., I)
    return RuleOutput((g @ w, None, None), _bias(b, g), lambda: _terms(x, w, b, g))


def gamma(
    x: Array,
    w: Array,
    b: Array | None,
    z: Array,
    r: Array,
    *,
    gamma: float = 0.05,
    eps: float = 0.0,
) -> RuleOutput:  # r: (..., O) -> (..., I)
    (xp_, xn), (wp, wn), (bp, bn) = _parts(x), _parts(w), _parts(b)
    up = flags(z > 0, z)
    plus = forward(xp_, wp, bp) + xn @ wn.T  # sum_k c_kj^+, bias included
    minus = xp_ @ wn.T + forward(xn, wp, bn)  # sum_k c_kj^-
    s, taken = _safe(z + gamma * (up * plus + (1 - up) * minus), r, eps)
    su, sd = up * s, (1 - up) * s
    amplified = xp_ * (su @ wp + sd @ wn) + xn * (su @ wn + sd @ wp)
    absorbed = {"stabilizer": taken}
    if b is not None:
        absorbed["bias"] = total(s @ b + gamma * (su @ bp + sd @ bn))
    return RuleOutput(
        (x * (s @ w) + gamma * amplified, None, None),
        absorbed,
        lambda: (1 + gamma) * _terms(x, w, b, s),
    )


def z_plus(
    x: Array, w: Array, b: Array | None, z: Array, r: Array, *, eps: float = 0.0
) -> RuleOutput:
    return alpha_beta(x, w, b, z, r, alpha=1.0, beta=0.0, eps=eps)


def alpha_beta(
    x: Array,
    w: Array,
    b: Array | None,
    z: Array,
    r: Array,
    *,
    alpha: float = 2.0,
    beta: float = 1.0,
    eps: float = 0.0,
) -> RuleOutput:  # r: (..., O) -> (..., I)
    """Where an output has no contribution of one sign, that sign's part (alpha R or -beta R) has no
    receiver: it is absorbed.
    """
    (xp_, xn), (wp, wn), (bp, bn) = _parts(x), _parts(w), _parts(b)
    sp, taken = _safe(forward(xp_, wp, bp) + xn @ wn.T, alpha * r, eps)
    absorbed, relevance = {"stabilizer": taken}, xp_ * (sp @ wp) + xn * (sp @ wn)
    if b is not None:
        absorbed["bias"] = total(sp @ bp)
    sn = sp
    if beta:
        sn, taken = _safe(xp_ @ wn.T + forward(xn, wp, bn), -beta * r, eps)
        relevance = relevance + xp_ * (sn @ wn) + xn * (sn @ wp)
        absorbed["stabilizer"] = absorbed["stabilizer"] + taken
        if b is not None:
            absorbed["bias"] = absorbed["bias"] + total(sn @ bn)
    return RuleOutput(
        (relevance, None, None),
        absorbed,
        lambda: _terms(x, w, b, sp) + (_terms(x, w, b, sn) if beta else 0.0),
    )


def flat(
    x: Array, w: Array, b: Array | None, z: Array, r: Array
) -> RuleOutput:  # r: (..., O) -> (..., I)
    """The bias gets no share: the rule looks at nothing but the number of inputs."""
    xp = namespace(x, r)
    each = xp.sum(r, axis=-1, keepdims=True) / x.shape[-1]
    return RuleOutput((xp.zeros_like(x) + each, None, None), {}, lambda: 2 * total(xp.abs(r)))


def w_square(
    x: Array, w: Array, b: Array | None, z: Array, r: Array
) -> RuleOutput:  # r: (..., O) -> (..., I)
    """The bias gets no share. A row of zero weights has no receiver: its relevance is absorbed."""
    xp = namespace(x, w, r)
    squares = w * w
    norm = xp.sum(squares, axis=-1) + xp.zeros_like(r)
    s, taken = _safe(norm, r, 0.0)
    return RuleOutput(
        (s @ squares, None, None), {"stabilizer": taken}, lambda: 2 * total(xp.abs(r))
    )


def z_box(
    x: Array, w: Array, b: Array | None, z: Array, r: Array, *, low: Bound = 0.0, high: Bound = 1.0
) -> RuleOutput:  # r: (..., O) -> (..., I)
    """W x - W^+ l - W^- h, summed as W^+ (x - l) + W^- (x - h): in the box no term is negative, and
    none cancels.

    A bound is one number, one for each input, or one for each of equal stretches of inputs (the
    channels of a patch).
    """
    (wp, wn), up, down = _parts(w), x - _spread(low, x), x - _spread(high, x)
    s, taken = _safe(up @ wp.T + down @ wn.T, r, 0.0)
    relevance = up * (s @ wp) + down * (s @ wn)
    return RuleOutput(
        (relevance, None, None),
        {"stabilizer": taken},
        lambda: _terms(up, wp, None, s) + _terms(down, wn, None, s),
    )


def _spread(bound: Bound, x: Array) -> Array:  # -> () or (I,)
    xp, values = namespace(x), like(bound, x)
    if values.ndim == 0:
        return values
    if x.shape[-1] % values.shape[0]:
        raise ValueError(
            f"z_box has {values.shape[0]} bounds for {x.shape[-1]} inputs: expected one, "
            "one each, or one for equal stretches"
        )
    return xp.repeat(values, x.shape[-1] // values.shape[0])


def _parts(a: Array | None) -> tuple[Array, Array]:
    """a^+ = max(a, 0) and a^- = min(a, 0)."""
    if a is None:
        return None, None
    positive = a * flags(a > 0, a)
    return positive, a - positive


def _safe(d: Array, r: Array, eps: float) -> tuple[Array, Array]:
    return share(d, r, eps, "sign" if eps else "none")


def _bias(b: Array | None, s: Array) -> dict[str, Array]:
    return {} if b is None else {"bias": total(s @ b)}


def _terms(x: Array, w: Array, b: Array | None, s: Array) -> Array:  # -> (B,)
    """sum_ij |x_i W_ji s_j| + sum_j |b_j s_j|, twice: once for the messages, once for the z they
    are divided by.
    """
    xp = namespace(x, w, s)
    terms = total_product(xp.abs(x), xp.abs(s) @ xp.abs(w))
    return 2 * (terms if b is None else terms + total(xp.abs(s) @ xp.abs(b)))
