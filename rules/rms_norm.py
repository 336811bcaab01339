"""RMSNorm          z = w x / rms,   rms^2 = mean(x^2) + norm_eps         (Zhang and Sennrich 2019)

    identity    R_x = R: the scale 1/rms is no function of the input         (AttnLRP prop. 3.4)
    gradient    g_x = (w g - x mean(w g x) / rms^2) / rms: the full Jacobian

In gradient x input form, identity is `identity_gxi`: g_x = w g / rms. Gemma stores what its weight
differs from 1 by: w stands for `offset` + the stored weight everywhere.

x may be of any size: squares that are beyond the dtype are taken of x over its largest.

Absorbs nothing, except the full Jacobian: `norm_offset` = sum R mean(x^2) / rms^2, almost all of R.
"""

from __future__ import annotations

from refl.arrays import Array, inverse_rms, row_product, total
from refl.rules.conservation import Forms, RuleOutput


def forward(
    x: Array, w: Array, *, norm_eps: float, offset: float = 0.0
) -> Array:  # (..., N), (N,) -> (..., N)
    return x * inverse_rms(x, norm_eps)[0] * (offset + w)


def identity(
    x: Array, w: Array, z: Array, r: Array, *, norm_eps: float, offset: float = 0.0
) -> RuleOutput:
    return RuleOutput((r, None), {})


def identity_gxi(
    x: Array, w: Array, z: Array, g: Array, *, norm_eps: float, offset: float = 0.0
) -> RuleOutput:
    return RuleOutput((g * (offset + w) * inverse_rms(x, norm_eps)[0], None), {})


def gradient(
    x: Array, w: Array, z: Array, g: Array, *, norm_eps: float, offset: float = 0.0
) -> RuleOutput:
    inverse, share = inverse_rms(x, norm_eps)
    along = row_product(z, g)  # sum_i w g x / rms
    g_x = g * (offset + w) * inverse - x * inverse * (along * inverse / x.shape[-1])
    return RuleOutput((g_x, None), {"norm_offset": total(along * share)})


RULES = {"identity": Forms(identity, identity_gxi), "gradient": Forms(None, gradient)}
