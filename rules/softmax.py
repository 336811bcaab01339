"""Softmax over the last axis          p_i = exp(x_i) / sum_k exp(x_k)

The Taylor expansion at x is  p_j ~ sum_i p_j (delta_ij - p_i) x_i + offset_j,
with offset_j = p_j (1 - x_j + sum_i p_i x_i):

    taylor      R_i = x_i (R_i - p_i sum_j R_j)                              (AttnLRP prop. 3.1)
    spread      the same, and each offset shared evenly by the N visible inputs
                                                                            (Voita et al. 2021)
    z_plus      the positive ones of the messages x_i p_j (delta_ij - p_i), over their sum
                                                             (AttnLRP eq. 25 on the expansion)
    identity    R_i = R_i                                                    (Ding et al. 2017)
    constant    nothing is passed on: attention weights are constants         (Ali et al. 2022)
    gradient    g_i = p_i (g_i - sum_j p_j g_j): the true derivative, and taylor in gradient x
                input form

Absorbs: softmax_offset sum_j R_j (1 - x_j + sum_i p_i x_i); mask, what stood at masked entries;
constant, all of R.

x are the logits as they are, scaled but never shifted by their maximum: the relevance depends on
that, its sum does not. An entry is masked where `mask` is False or where x is -inf or so negative
that only a mask can have made it (below half the dtype's minimum); there R_x = 0 exactly, also in
rows that are masked whole.
"""

from __future__ import annotations

from refl.arrays import (
    Array,
    can_ask,
    flags,
    fused,
    like,
    namespace,
    row_product,
    row_sum,
    total,
    total_product,
)
from refl.rules.conservation import Forms, RuleOutput, stabilized_ratio

CAUSES = {
    "softmax_offset": "the constant part of softmax's Taylor expansion",
    "mask": "positions hidden by the mask",
    "constant": "what arrived at something treated as a constant",
}


def forward(
    x: Array, *, mask: Array | None = None
) -> Array:  # (..., J, I), bool (..., J, I) -> (..., J, I)
    """A row that `mask` hides whole has no probability to give: its p is zero."""
    xp = namespace(x)
    if mask is not None:
        x = x + xp.where(mask, like(0.0, x), like(-float("inf"), x))
    top = xp.max(x, axis=-1, keepdims=True)
    e = _raised(x, xp.where(xp.isfinite(top), top, xp.zeros_like(top)))
    z = row_sum(e)
    e /= z + flags(z == 0, z)
    return e


@fused
def _raised(x: Array, top: Array) -> Array:
    return namespace(x, top).exp(x - top)


def taylor(
    x: Array, p: Array, r: Array, *, mask: Array | None = None
) -> RuleOutput:  # r: (..., J, I) -> (..., J, I)
    x, r, hidden = visible(x, r, mask)
    s, offset = _offset(x, p, r)
    return RuleOutput((_times_centered(x, r, p, s),), {"softmax_offset": offset} | hidden)


@fused
def _times_centered(x: Array, r: Array, p: Array, s: Array) -> Array:
    return x * (r - p * s)


def spread(x: Array, p: Array, r: Array, *, mask: Array | None = None) -> RuleOutput:
    unmasked = _unmasked(x, mask)
    x, r, hidden = visible(x, r, mask)
    s, px, n = row_sum(r), row_product(p, x), row_sum(unmasked)
    each = (s * (1 + px) - row_product(r, x)) / (n + flags(n == 0, n))
    return RuleOutput((x * (r - p * s) + each * unmasked,), hidden)


def z_plus(x: Array, p: Array, r: Array, *, mask: Array | None = None) -> RuleOutput:
    x, r, hidden = visible(x, r, mask)
    own, cross = positive_messages(x, p)
    s, absorbed = stabilized_ratio(own + others(cross), r, 0.0, "none")
    return RuleOutput((own * s + cross * others(s),), {"stabilizer": absorbed} | hidden)


def positive_messages(x: Array, p: Array) -> tuple[Array, Array]:  # -> (..., J, I) x 2
    """c_ij / p_j is (1 - p_j) x_j on the diagonal and -p_i x_i off it: the positive part of each,
    so that sums over j need no Jacobian of its own for every row.
    """
    return _complement(p) * x * flags(x > 0, x), -p * x * flags(x < 0, x)


def _complement(p: Array) -> Array:  # (..., I) -> (..., I)
    """1 - p_j. Of the one entry that may be above 1/2 it is what the others sum to: subtracted from
    1 it would have no digits left where p_j is near 1.
    """
    large = flags(p > 0.5, p)
    return (1 - large) * (1 - p) + large * row_sum(p - large * p)


def identity(x: Array, p: Array, r: Array, *, mask: Array | None = None) -> RuleOutput:
    _, r, hidden = visible(x, r, mask)
    return RuleOutput((r,), hidden)


def constant(x: Array, p: Array, r: Array, *, mask: Array | None = None) -> RuleOutput:
    return RuleOutput((None,), {"constant": total(r)})


def gradient(
    x: Array, p: Array, g: Array, *, mask: Array | None = None
) -> RuleOutput:  # g: (..., J, I) -> (..., J, I)
    x, r, hidden = visible(x, p * g, mask)
    s, offset = _offset(x, p, r)
    return RuleOutput((r - p * s,), {"softmax_offset": offset} | hidden)


def constant_gxi(x: Array, p: Array, g: Array, *, mask: Array | None = None) -> RuleOutput:
    return RuleOutput((None,), {"constant": total_product(p, g)})


def _offset(
    x: Array, p: Array, r: Array
) -> tuple[Array, Array]:  # -> sum_j R_j (..., 1), sum_j R_j (1 - x_j + sum_i p_i x_i) (B,)
    s = row_sum(r)
    return s, total(s * (1 + row_product(p, x))) - total_product(r, x)


def others(a: Array) -> Array:  # (..., I) -> (..., I)
    """The sum of all other entries of the row:
    those before plus those behind, for a subtraction would cancel.
    """
    xp = namespace(a)
    before = xp.cumulative_sum(a, axis=-1, include_initial=True)[..., :-1]
    behind = xp.cumulative_sum(xp.flip(a, axis=-1), axis=-1, include_initial=True)[..., :-1]
    return before + xp.flip(behind, axis=-1)


def _unmasked(x: Array, mask: Array | None) -> Array:
    """1.0 where an entry is visible, 0.0 where it is masked, in the shape of x."""
    unmasked = flags(x > _least(x), x)
    return unmasked if mask is None else unmasked * flags(mask, x)


def visible(x: Array, r: Array, mask: Array | None) -> tuple[Array, Array, dict[str, Array]]:
    """x and r with masked entries set to zero, and what r held there; nothing is copied where it
    is known that nothing is masked.
    """
    xp = namespace(x, r)
    if can_ask(x) and not xp.any(x <= _least(x)):
        if mask is None:
            return x, r, {}
        unmasked = flags(mask, r)  # x keeps its finite numbers: they stand beside p = 0 and r = 0
    else:
        x, unmasked = _cleared(x, mask)
    return x, r * unmasked, {"mask": total_product(r, 1 - unmasked)}


@fused
def _cleared(x: Array, mask: Array | None) -> tuple[Array, Array]:
    """x with masked entries set to zero, and 1.0 where an entry is visible."""
    unmasked = _unmasked(x, mask)
    return namespace(x).where(x <= _least(x), 0.0, x) * unmasked, unmasked


def _least(x: Array) -> float:
    """A logit of so much or less is none: only a mask can have made it."""
    return float(namespace(x).finfo(x.dtype).min) / 2


RULES = {
    "taylor": Forms(taylor, gradient),
    "spread": Forms(spread),
    "z_plus": Forms(z_plus),
    "identity": Forms(identity),
    "constant": Forms(constant, constant_gxi),
    "gradient": Forms(None, gradient),
}
