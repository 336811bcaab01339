"""Product of two activations (attention's q k^T and p v)          O_jp = sum_i A_ji V_ip

    uniform     R_A[j,i] = A_ji sum_p V_ip s_jp,  R_V[i,p] = V_ip sum_j A_ji s_jp,
                s = R / (2 O + eps s(O))
                (AttnLRP prop. 3.3, eq. 15)
    second      R_V alone, s = R / (O + eps s(O)): A is taken as constant  (Ali et al. 2022)
    half, second_gradient, gradient    in gradient x input form: uniform (1/2 to each), second, the
                                       true derivative

Absorbs: stabilizer sum eps s(O) s. `denominator="2(z+eps)"` is the other form in use: it is s = R /
(2 (O + eps s(O))). The true derivative hands the whole of R to both operands, so it absorbs
`product_offset` = -sum R.
"""

from __future__ import annotations

from refl.arrays import Array, namespace, swap, total_product
from refl.rules.balance import RuleOutput, share

DENOMINATORS = ("2z+eps", "2(z+eps)")


def forward(a: Array, v: Array) -> Array:  # (..., J, I), (..., I, P) -> (..., J, P)
    return a @ v


def uniform(
    a: Array,
    v: Array,
    z: Array,
    r: Array,
    *,
    eps: float = 1e-6,
    stabilizer: str = "sign",
    denominator: str = "2z+eps",
) -> RuleOutput:  # r: (..., J, P) -> (..., J, I), (..., I, P)
    """Computed as s = R / (O + eps/2 s(O)) with V/2 in place of V: the same numbers, and one pass
    less over the larger array.
    """
    s, taken = share(z, r, eps / 2 if denominator == "2z+eps" else eps, stabilizer)
    h = v / 2
    r_a = s @ swap(h)
    r_a *= a
    return RuleOutput((r_a, h * (swap(a) @ s)), {"stabilizer": taken}, lambda: _terms(a, v, s))


def second(
    a: Array, v: Array, z: Array, r: Array, *, eps: float = 1e-6, stabilizer: str = "sign"
) -> RuleOutput:
    s, taken = share(z, r, eps, stabilizer)
    return RuleOutput((None, v * (swap(a) @ s)), {"stabilizer": taken}, lambda: _terms(a, v, s))


def uniform_gxi(a: Array, v: Array, z: Array, g: Array) -> RuleOutput:
    h = g / 2
    return RuleOutput((h @ swap(v), swap(a) @ h), {}, lambda: _terms(a, v, g))


def second_gxi(a: Array, v: Array, z: Array, g: Array) -> RuleOutput:
    return RuleOutput((None, swap(a) @ g), {}, lambda: _terms(a, v, g))


def gradient(a: Array, v: Array, z: Array, g: Array) -> RuleOutput:
    return RuleOutput(
        (g @ swap(v), swap(a) @ g),
        {"product_offset": -total_product(z, g)},
        lambda: 3 * _terms(a, v, g),
    )


def _terms(a: Array, v: Array, s: Array) -> Array:  # -> (B,)
    """sum_jip |A_ji V_ip s_jp|, twice: once for the messages, once for the O they are divided
    by.
    """
    xp = namespace(a, v, s)
    return 2 * total_product(xp.abs(s), xp.abs(a) @ xp.abs(v))
