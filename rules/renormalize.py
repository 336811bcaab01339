"""Weights made to sum to one          z_i = x_i / S,   S = sum_k x_k
(the gate weights of the chosen experts)

    identity    R_x = R: the scale 1/S is no function of the input, as for norms
                                                                            (AttnLRP prop. 3.4)
    epsilon     R_i = x_i sum_j J_ji s_j = z_i (s_i - sum_j z_j s_j),  s = R / (z + eps s(z))
                                                               (AttnLRP eq. 8 on the Jacobian)
    gradient    g_i = (g_i - sum_j z_j g_j) / S: the Jacobian, and epsilon in gradient x input form

In gradient x input form, identity is `identity_gxi`: g_x = g / S.

z does not change when x is multiplied by a number (it is homogeneous of degree 0), so sum_i J_ji
x_i = 0: epsilon and gradient pass on nothing in sum, and absorb `renormalization_offset` =
sum_j z_j s_j, which is all of R but what the stabilizer takes. They stand here to compare with.
"""

from __future__ import annotations

from refl.arrays import Array, row_product, row_sum, total
from refl.rules.conservation import Forms, RuleOutput, stabilized_ratio

CAUSES = {
    "renormalization_offset": "weights that are made to sum to one, whose rule hands on nothing"
}


def forward(x: Array) -> Array:  # (..., K) -> (..., K)
    return x / row_sum(x)


def identity(x: Array, z: Array, r: Array) -> RuleOutput:
    return RuleOutput((r,), {})


def identity_gxi(x: Array, z: Array, g: Array) -> RuleOutput:
    return RuleOutput((g / row_sum(x),), {})


def epsilon(
    x: Array, z: Array, r: Array, *, eps: float = 1e-6, stabilizer: str = "sign"
) -> RuleOutput:
    s, absorbed = stabilized_ratio(z, r, eps, stabilizer)
    along = row_product(z, s)
    causes = {"renormalization_offset": total(along), "stabilizer": absorbed}
    return RuleOutput((z * (s - along),), causes)


def gradient(x: Array, z: Array, g: Array) -> RuleOutput:
    along = row_product(z, g)
    return RuleOutput(((g - along) / row_sum(x),), {"renormalization_offset": total(along)})


RULES = {
    "identity": Forms(identity, identity_gxi),
    "epsilon": Forms(epsilon, gradient),
    "gradient": Forms(None, gradient),
}
