"""Softmax over the last axis          p_i = exp(x_i) / sum_k exp(x_k)

The Taylor expansion at x is p_j ~ sum_i p_j (delta_ij - p_i) x_i + offset_j, offset_j = p_j (1 -
x_j + sum_i p_i x_i):

    taylor      R_i = x_i (R_i - p_i sum_j R_j)  (AttnLRP prop. 3.1)
    spread      the same, and each offset shared evenly by the N visible inputs  (Voita et al. 2021)
    z_plus      the positive ones of the messages x_i p_j (delta_ij - p_i), over their sum
                (AttnLRP eq. 25 on the expansion)
    identity    R_i = R_i
    constant    nothing is passed on: attention weights are constants  (Ali et al. 2022)
    gradient, constant_gradient    in gradient x input form: taylor (the Jacobian is the true one),
                                   constant

Absorbs: softmax_offset sum_j R_j (1 - x_j + sum_i p_i x_i); mask, what stood at masked entries;
constant, all of R.

x are the logits as they are, scaled but never shifted by their maximum: the relevance depends on
that, its sum does not. An entry is masked where `mask` is False or where x is -inf or so negative
that only a mask can have made it (below half the dtype's minimum); there R_x = 0 exactly, also in
rows that are masked whole.
"""

from __future__ import annotations

from refl.arrays import Array, flags, like, namespace, row_product, row_sum, total, total_product
from refl.rules.balance import RuleOutput, share


def forward(
    x: Array, *, mask: Array | None = None
) -> Array:  # (..., J, I), bool (..., J, I) -> (..., J, I)
    """A row that `mask` hides whole has no probability to give: its p is zero."""
    xp = namespace(x)
    if mask is not None:
        x = x + xp.where(mask, like(0.0, x), like(-float("inf"), x))
    top = xp.max(x, axis=-1, keepdims=True)
    e = xp.exp(x - xp.where(xp.isfinite(top), top, xp.zeros_like(top)))
    z = row_sum(e)
    e /= z + flags(z == 0, z)
    return e


def taylor(
    x: Array, p: Array, r: Array, *, mask: Array | None = None
) -> RuleOutput:  # r: (..., J, I) -> (..., J, I)
    x, r, hidden = _visible(x, r, mask)
    s, offset = _offset(x, p, r)
    return RuleOutput(
        (x * (r - p * s),), {"softmax_offset": offset} | hidden, lambda: _terms(x, p, r)
    )


def spread(x: Array, p: Array, r: Array, *, mask: Array | None = None) -> RuleOutput:
    seen = _seen(x, mask)
    x, r, hidden = _visible(x, r, mask)
    s, px, n = row_sum(r), row_product(p, x), row_sum(seen)
    each = (s * (1 + px) - row_product(r, x)) / (n + flags(n == 0, n))
    return RuleOutput((x * (r - p * s) + each * seen,), hidden, lambda: 2 * _terms(x, p, r))


def z_plus(x: Array, p: Array, r: Array, *, mask: Array | None = None) -> RuleOutput:
    """c_ij / p_j is (1 - p_j) x_j on the diagonal and -p_i x_i off it, so the sums over j need no T
    x T Jacobian.
    """
    x, r, hidden = _visible(x, r, mask)
    own = (1 - p) * x * flags(x > 0, x)
    cross = -p * x * flags(x < 0, x)
    s, taken = share(own + _others(cross), r, 0.0, "none")
    relevance = own * s + cross * _others(s)
    return RuleOutput(
        (relevance,),
        {"stabilizer": taken} | hidden,
        lambda: _plus_terms(own, cross, s) + total(namespace(r).abs(r)),
    )


def identity(x: Array, p: Array, r: Array, *, mask: Array | None = None) -> RuleOutput:
    _, r, hidden = _visible(x, r, mask)
    return RuleOutput((r,), hidden)


def constant(x: Array, p: Array, r: Array, *, mask: Array | None = None) -> RuleOutput:
    return RuleOutput((None,), {"constant": total(r)})


def gradient(
    x: Array, p: Array, g: Array, *, mask: Array | None = None
) -> RuleOutput:  # g: (..., J, I) -> (..., J, I)
    x, r, hidden = _visible(x, p * g, mask)
    s, offset = _offset(x, p, r)
    return RuleOutput((r - p * s,), {"softmax_offset": offset} | hidden, lambda: _terms(x, p, r))


def constant_gxi(x: Array, p: Array, g: Array, *, mask: Array | None = None) -> RuleOutput:
    return RuleOutput((None,), {"constant": total_product(p, g)})


def _offset(
    x: Array, p: Array, r: Array
) -> tuple[Array, Array]:  # -> sum_j R_j (..., 1), sum_j R_j (1 - x_j + sum_i p_i x_i) (B,)
    s = row_sum(r)
    return s, total(s * (1 + row_product(p, x))) - total_product(r, x)


def _others(a: Array) -> Array:  # (..., I) -> (..., I)
    """The sum of all other entries of the row: those before plus those behind, for a subtraction
    would cancel.
    """
    xp = namespace(a)
    before = xp.cumulative_sum(a, axis=-1, include_initial=True)[..., :-1]
    behind = xp.cumulative_sum(xp.flip(a, axis=-1), axis=-1, include_initial=True)[..., :-1]
    return before + xp.flip(behind, axis=-1)


def _seen(x: Array, mask: Array | None) -> Array:
    """1.0 where an entry is visible, 0.0 where it is masked, in the shape of x."""
    seen = flags(x > namespace(x).finfo(x.dtype).min / 2, x)
    return seen if mask is None else seen * flags(mask, x)


def _visible(x: Array, r: Array, mask: Array | None) -> tuple[Array, Array, dict[str, Array]]:
    """x and r with masked entries set to zero, and what r held there; nothing is copied where
    nothing is masked.
    """
    xp = namespace(x, r)
    low = x <= xp.finfo(x.dtype).min / 2
    any_low = bool(xp.any(low))
    if mask is None and not any_low:
        return x, r, {}
    if any_low:
        seen = _seen(x, mask)
        x = xp.where(low, xp.zeros_like(x), x) * seen
    else:
        seen = flags(
            mask, r
        )  # x keeps its numbers there: they are finite, and stand beside p = 0 and r = 0
    return x, r * seen, {"mask": total_product(r, 1 - seen)}


def _terms(x: Array, p: Array, r: Array) -> Array:  # -> (B,)
    xp = namespace(x, p, r)
    x, r = xp.abs(x), xp.abs(r)
    return 3 * (
        total(x * (r + p * row_sum(r))) + total(r * (1 + x)) + total(row_sum(r) * row_product(p, x))
    )


def _plus_terms(own: Array, cross: Array, s: Array) -> Array:  # -> (B,)
    xp = namespace(own, cross, s)
    s = xp.abs(s)
    return 3 * total(own * s + cross * row_sum(s) + s * row_sum(cross))
