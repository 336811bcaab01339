"""Linear layer                    z_j = sum_i W_ji x_i + b_j

Every rule divides R_j over the contributions c_ij = W_ji x_i and the bias. With s_j = R_j / d_j:

    epsilon     R_i = x_i sum_j W_ji s_j,  d = z + eps s(z)                        (AttnLRP eq. 8)
    gamma       c + g c^+ where z_j > 0, c + g c^- elsewhere, over its sum        (AttnLRP eq. 24)
    z_plus      c^+ over its sum                                                  (AttnLRP eq. 25)
    alpha_beta  alpha c^+ / sum c^+ - beta c^- / sum c^-,  alpha - beta = 1
                                                                   (Bach et al. 2015, eq. 60)
    flat        1 / I: every input the same                            (Lapuschkin et al. 2019)
    w_square    W_ji^2 over its sum                              (Montavon et al. 2017, eq. 11)
    z_box       c_ij - l_i W_ji^+ - h_i W_ji^- over its sum, for inputs in a box l <= x <= h
                                                           (Montavon et al. 2017, z^B rule)
    gradient    g_i = sum_j W_ji g_j: the true derivative, and epsilon in gradient x input form

The bias is a contribution like any other; what it receives is absorbed as `bias`. A denominator
that is exactly zero passes nothing on; what stood above it is absorbed as `stabilizer`. Under flat
and w_square the bias receives nothing, and under z_box nothing of b_j - b_j^+ - b_j^- is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from refl.arrays import Array, flags, like, namespace, total
from refl.rules.conservation import Forms, RuleOutput, stabilized_ratio

Bound: TypeAlias = float | Sequence[float]
Parts: TypeAlias = tuple[tuple[Array, Array], ...]
"""The positive and the negative part of x, w and b."""

CAUSES = {"bias": "biases of linear maps"}


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
) -> RuleOutput:  # r: (..., O) -> (..., I)
    s, absorbed = stabilized_ratio(z, r, eps, stabilizer)
    return RuleOutput(((s @ w) * x, None, None), _bias(b, s) | {"stabilizer": absorbed})


def gradient(
    x: Array, w: Array, b: Array | None, z: Array, g: Array
) -> RuleOutput:  # g: (..., O) -> (..., I)
    return RuleOutput((g @ w, None, None), _bias(b, g))


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
    (x_pos, x_neg), (w_pos, w_neg), (b_pos, b_neg) = parts = signed(x), signed(w), signed(b)
    up = flags(z > 0, z)
    s, absorbed = quotient(gamma_denominator(parts, z, gamma), r, eps)
    s_up, s_down = up * s, (1 - up) * s
    amplified = x_pos * (s_up @ w_pos + s_down @ w_neg) + x_neg * (s_up @ w_neg + s_down @ w_pos)
    causes = {"stabilizer": absorbed}
    if b is not None:
        causes["bias"] = total(s @ b + gamma * (s_up @ b_pos + s_down @ b_neg))
    return RuleOutput((x * (s @ w) + gamma * amplified, None, None), causes)


def gamma_denominator(parts: Parts, z: Array, gamma: float) -> Array:  # -> (..., O)
    """z + g sum_k c_kj^+ where z > 0, z + g sum_k c_kj^- elsewhere."""
    up = flags(z > 0, z)
    return z + gamma * (up * positive_sum(parts) + (1 - up) * negative_sum(parts))


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
    (x_pos, x_neg), (w_pos, w_neg), (b_pos, b_neg) = parts = signed(x), signed(w), signed(b)
    s, absorbed = quotient(positive_sum(parts), alpha * r, eps)
    r_x = x_pos * (s @ w_pos) + x_neg * (s @ w_neg)
    causes = {"stabilizer": absorbed} | ({} if b is None else {"bias": total(s @ b_pos)})
    if beta:
        s, absorbed = quotient(negative_sum(parts), -beta * r, eps)
        r_x = r_x + x_pos * (s @ w_neg) + x_neg * (s @ w_pos)
        causes["stabilizer"] = causes["stabilizer"] + absorbed
        if b is not None:
            causes["bias"] = causes["bias"] + total(s @ b_neg)
    return RuleOutput((r_x, None, None), causes)


def flat(
    x: Array, w: Array, b: Array | None, z: Array, r: Array
) -> RuleOutput:  # r: (..., O) -> (..., I)
    xp = namespace(x, r)
    each = xp.sum(r, axis=-1, keepdims=True) / x.shape[-1]
    return RuleOutput((xp.zeros_like(x) + each, None, None), {})


def w_square(
    x: Array, w: Array, b: Array | None, z: Array, r: Array
) -> RuleOutput:  # r: (..., O) -> (..., I)
    """A row of zero weights has no receiver: its relevance is absorbed. Squares are of weights over
    the largest of their row, whose own may be beyond the dtype.
    """
    xp = namespace(x, w, r)
    largest = xp.max(xp.abs(w), axis=-1, keepdims=True)
    shares = w / (largest + flags(largest == 0, w))
    squares = shares * shares
    s, absorbed = quotient(xp.sum(squares, axis=-1) + xp.zeros_like(r), r)
    return RuleOutput((s @ squares, None, None), {"stabilizer": absorbed})


def z_box(
    x: Array,
    w: Array,
    b: Array | None,
    z: Array,
    r: Array,
    *,
    low: Bound = 0.0,
    high: Bound = 1.0,
) -> RuleOutput:  # r: (..., O) -> (..., I)
    """W x - W^+ l - W^- h, summed as W^+ (x - l) + W^- (x - h): in the box no term is negative, and
    none cancels.

    A bound is one number, one for each input, or one for each of equal stretches of inputs (the
    channels of a patch).
    """
    (w_pos, w_neg), above, below = signed(w), x - bound(low, x), x - bound(high, x)
    s, absorbed = quotient(above @ w_pos.T + below @ w_neg.T, r)
    return RuleOutput(
        (above * (s @ w_pos) + below * (s @ w_neg), None, None), {"stabilizer": absorbed}
    )


def bound(value: Bound, x: Array) -> Array:  # -> () or (I,)
    """A bound of z_box for every input. Raises ValueError where their numbers do not fit."""
    xp, values = namespace(x), like(value, x)
    if values.ndim == 0:
        return values
    if x.shape[-1] % values.shape[0]:
        raise ValueError(
            f"z_box has {values.shape[0]} bounds for {x.shape[-1]} inputs: expected one, one each, "
            "or one for equal stretches"
        )
    return xp.repeat(values, x.shape[-1] // values.shape[0])


def signed(a: Array | None) -> tuple[Array, Array]:
    """a^+ = max(a, 0) and a^- = min(a, 0)."""
    if a is None:
        return None, None
    positive = a * flags(a > 0, a)
    return positive, a - positive


def positive_sum(parts: Parts) -> Array:  # -> (..., O)
    """sum_k c_kj^+, the bias included."""
    (x_pos, x_neg), (w_pos, w_neg), (b_pos, _) = parts
    return forward(x_pos, w_pos, b_pos) + x_neg @ w_neg.T


def negative_sum(parts: Parts) -> Array:  # -> (..., O)
    """sum_k c_kj^-, the bias included."""
    (x_pos, x_neg), (w_pos, w_neg), (_, b_neg) = parts
    return x_pos @ w_neg.T + forward(x_neg, w_pos, b_neg)


def quotient(d: Array, r: Array, eps: float = 0.0) -> tuple[Array, Array]:
    """r / d, stabilized only where an eps is asked for."""
    return stabilized_ratio(d, r, eps, "sign" if eps else "none")


def _bias(b: Array | None, s: Array) -> dict[str, Array]:
    return {} if b is None else {"bias": total(s @ b)}


RULES = {
    "epsilon": Forms(epsilon, gradient),
    "gamma": Forms(gamma),
    "z_plus": Forms(z_plus),
    "alpha_beta": Forms(alpha_beta),
    "flat": Forms(flat),
    "w_square": Forms(w_square),
    "z_box": Forms(z_box),
    "gradient": Forms(None, gradient),
}
