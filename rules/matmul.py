"""Product of two activations (attention's q k^T and p v)          O_jp = sum_i A_ji V_ip

    uniform     R_A[j,i] = A_ji sum_p V_ip s_jp,  R_V[i,p] = V_ip sum_j A_ji s_jp,
                s = R / (2 O + eps s(O))                                (AttnLRP prop. 3.3, eq. 15)
    flattened   n_A times and n_V times the same sums, s = R / ((n_A + n_V) O + eps s(O)): a nested
                product as one of n_A + n_V factors, see rules/multiply.py; uniform where both are 1
    second      R_V alone, s = R / (O + eps s(O)): A is taken as constant         (Ali et al. 2022)
    gradient    g_A = g V^T,  g_V = A^T g: the true derivative

In gradient x input form, `uniform_gxi` is 1/2 of the true derivative to each operand, `second_gxi`
the whole of it to V, `flattened_gxi` n_A / (n_A + n_V) and n_V / (n_A + n_V) of it.
`denominator="2(z+eps)"` is the other form in use: s = R / (2 (O + eps s(O))).

Absorbs: stabilizer sum eps s(O) s. The true derivative hands the whole of R to both operands, so
it absorbs `product_offset` = -sum R.
"""

from __future__ import annotations

from refl.arrays import Array, swap, total_product
from refl.rules.conservation import Forms, RuleOutput, stabilized_ratio
from refl.rules.multiply import Factors

DENOMINATORS = ("2z+eps", "2(z+eps)")
CAUSES = {"product_offset": "a product counted once for each factor"}


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
    eps = eps if denominator == "2z+eps" else 2 * eps
    s, absorbed = stabilized_ratio(2 * z, r, eps, stabilizer)
    return RuleOutput(((s @ swap(v)) * a, (swap(a) @ s) * v), {"stabilizer": absorbed})


def flattened(
    a: Array,
    v: Array,
    z: Array,
    r: Array,
    *,
    factors: Factors = (1, 1),
    eps: float = 1e-6,
    stabilizer: str = "sign",
) -> RuleOutput:  # r: (..., J, P) -> (..., J, I), (..., I, P)
    n_a, n_v = factors
    s, absorbed = stabilized_ratio((n_a + n_v) * z, r, eps, stabilizer)
    inputs = (n_a * ((s @ swap(v)) * a), n_v * ((swap(a) @ s) * v))
    return RuleOutput(inputs, {"stabilizer": absorbed})


def second(
    a: Array, v: Array, z: Array, r: Array, *, eps: float = 1e-6, stabilizer: str = "sign"
) -> RuleOutput:
    s, absorbed = stabilized_ratio(z, r, eps, stabilizer)
    return RuleOutput((None, (swap(a) @ s) * v), {"stabilizer": absorbed})


def uniform_gxi(a: Array, v: Array, z: Array, g: Array) -> RuleOutput:
    h = g / 2
    return RuleOutput((h @ swap(v), swap(a) @ h), {})


def flattened_gxi(
    a: Array, v: Array, z: Array, g: Array, *, factors: Factors = (1, 1)
) -> RuleOutput:
    n_a, n_v = factors
    h = g / (n_a + n_v)
    return RuleOutput((n_a * (h @ swap(v)), n_v * (swap(a) @ h)), {})


def second_gxi(a: Array, v: Array, z: Array, g: Array) -> RuleOutput:
    return RuleOutput((None, swap(a) @ g), {})


def gradient(a: Array, v: Array, z: Array, g: Array) -> RuleOutput:
    return RuleOutput((g @ swap(v), swap(a) @ g), {"product_offset": -total_product(z, g)})


RULES = {
    "uniform": Forms(uniform, uniform_gxi),
    "flattened": Forms(flattened, flattened_gxi),
    "second": Forms(second, second_gxi),
    "gradient": Forms(None, gradient),
}
