"""Mean over positions          z_d = sum_t m_t x_td / sum_t m_t          (m: which positions count)

    epsilon     R_td = m_t x_td s_d,  s = R / (Z + eps s(Z)),  Z_d = sum_t m_t x_td
    gradient    g_td = m_t g_d / sum_t m_t

Absorbs: stabilizer sum eps s(Z) s.
"""

from __future__ import annotations

from refl.arrays import Array, namespace
from refl.rules.conservation import Forms, RuleOutput, stabilized_ratio


def forward(x: Array, *, counted: Array) -> Array:  # (B, T, D), (B, T, 1) of 0 and 1 -> (B, 1, D)
    xp = namespace(x, counted)
    return xp.sum(x * counted, axis=-2, keepdims=True) / xp.sum(counted, axis=-2, keepdims=True)


def epsilon(
    x: Array, z: Array, r: Array, *, counted: Array, eps: float = 1e-6, stabilizer: str = "sign"
) -> RuleOutput:
    xp = namespace(x, r)
    s, absorbed = stabilized_ratio(xp.sum(x * counted, axis=-2, keepdims=True), r, eps, stabilizer)
    return RuleOutput((x * counted * s,), {"stabilizer": absorbed})


def gradient(x: Array, z: Array, g: Array, *, counted: Array) -> RuleOutput:
    each = g / namespace(g, counted).sum(counted, axis=-2, keepdims=True)
    return RuleOutput((counted * each,), {})


RULES = {"epsilon": Forms(epsilon, gradient), "gradient": Forms(None, gradient)}
