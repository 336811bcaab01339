"""Weights made to sum to one          z_i = r_i / S,   S = sum_k r_k
                                       (the gate weights of the chosen experts)

    identity    R_r = R: the scale 1/S is no function of the input, as for norms
                (AttnLRP prop. 3.4)
    identity_gxig_r = g / S, in gradient x input form: identity
    epsilon     R_i = r_i sum_j J_ji s_j = z_i (s_i - sum_j z_j s_j),  s = R / (z + eps s(z))
                (AttnLRP eq. 8 on the Jacobian)
    gradient    g_i = (g_i - sum_j z_j g_j) / S: the Jacobian, in gradient x input form

z does not change when r is multiplied by a number (it is homogeneous of degree 0), so sum_i J_ji
r_i = 0: the last two pass on nothing in sum, and absorb `renormalization_offset` = sum_j z_j s_j,
which is all of R but what the stabilizer takes. They stand here to compare with.
"""

from __future__ import annotations

from refl.arrays import Array, namespace, row_product, row_sum, total, total_product
from refl.rules.balance import RuleOutput, share


def forward(r: Array) -> Array:  # (..., K) -> (..., K)
    return r / row_sum(r)


def identity(x: Array, z: Array, r: Array) -> RuleOutput:
    return RuleOutput((r,), {})


def identity_gxi(x: Array, z: Array, g: Array) -> RuleOutput:
    return RuleOutput((g / row_sum(x),), {})


def epsilon(
    x: Array, z: Array, r: Array, *, eps: float = 1e-6, stabilizer: str = "sign"
) -> RuleOutput:
    s, taken = share(z, r, eps, stabilizer)
    along = row_product(z, s)
    return RuleOutput(
        (z * (s - along),),
        {"renormalization_offset": total(along), "stabilizer": taken},
        lambda: _terms(z, s),
    )


def gradient(x: Array, z: Array, g: Array) -> RuleOutput:
    along = row_product(z, g)
    return RuleOutput(
        ((g - along) / row_sum(x),), {"renormalization_offset": total(along)}, lambda: _terms(z, g)
    )


def _terms(z: Array, s: Array) -> Array:  # -> (B,)
    xp = namespace(z, s)
    return 4 * total_product(xp.abs(z), xp.abs(s))
