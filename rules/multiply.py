"""Product of N operands, element by element          z = a_1 a_2 ... a_N

    uniform     R_k = R / N                                                  (AttnLRP prop. 3.2)
    flattened   R_k = R n_k / (n_1 + ... + n_N): operand k is itself a product, of n_k factors
    second      R_2 = R: the first operand is a gate, taken as constant
                                                             (Ali et al. 2022 on gated units)
    gradient    g_k = g z / a_k: the true derivative

In gradient x input form, uniform is 1/N of the true derivative, `uniform_gxi`, flattened n_k / N of
it with N the sum of all n, `flattened_gxi`, and second all of it to the second operand,
`second_gxi`.

Flattened sees a nested product as one operation, whose N factors get R / N each: (x1 x2) x3 with
`factors` (2, 1) and then x1 x2 by uniform is x1 (x2 x3) with (1, 2), where the uniform rule alone
gives 1/4, 1/4, 1/2 or 1/2, 1/4, 1/4. That rules for products of two depend on the brackets is You
et al. 2025 (arXiv 2510.18810), that the uniform rule on N operands does not is prop. 3.2; to count
the factors of a nested one is ours.

Operands that are constants receive nothing; the rest split it. Absorbs nothing, except the true
derivative: it hands the whole of R to every operand, so it absorbs `product_offset` =
-(N - 1) sum R.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import TypeAlias

from refl.arrays import Array, total_product
from refl.rules.add import fold
from refl.rules.conservation import Forms, RuleOutput

Factors: TypeAlias = Sequence[int]
"""How many factors each operand is the product of."""


def forward(*operands: Array, constant: tuple[bool, ...]) -> Array:  # N times (..., M) -> (..., M)
    return reduce(lambda a, b: a * b, operands)


def uniform(*arrays: Array, constant: tuple[bool, ...]) -> RuleOutput:
    *operands, _, r = arrays
    each = r / constant.count(False)
    pairs = zip(operands, constant, strict=True)
    return RuleOutput(tuple(None if c else fold(each, a.shape) for a, c in pairs), {})


def flattened(*arrays: Array, constant: tuple[bool, ...], factors: Factors = (1, 1)) -> RuleOutput:
    *operands, _, r = arrays
    each = r / _count(factors, constant)
    parts = zip(operands, constant, factors, strict=True)
    return RuleOutput(tuple(None if c else fold(n * each, a.shape) for a, c, n in parts), {})


def second(a: Array, b: Array, z: Array, r: Array, *, constant: tuple[bool, ...]) -> RuleOutput:
    return RuleOutput((None, fold(r, b.shape)), {})


def uniform_gxi(*arrays: Array, constant: tuple[bool, ...]) -> RuleOutput:
    *operands, _, g = arrays
    return RuleOutput(_derivatives(operands, g / constant.count(False), constant), {})


def flattened_gxi(
    *arrays: Array, constant: tuple[bool, ...], factors: Factors = (1, 1)
) -> RuleOutput:
    *operands, _, g = arrays
    each = _derivatives(operands, g / _count(factors, constant), constant)
    inputs = (None if g_k is None else n * g_k for g_k, n in zip(each, factors, strict=True))
    return RuleOutput(tuple(inputs), {})


def _count(factors: Factors, constant: tuple[bool, ...]) -> int:
    """How many factors there are, constants left out."""
    return sum(n for n, c in zip(factors, constant, strict=True) if not c)


def second_gxi(a: Array, b: Array, z: Array, g: Array, *, constant: tuple[bool, ...]) -> RuleOutput:
    return RuleOutput((None, fold(a * g, b.shape)), {})


def gradient(*arrays: Array, constant: tuple[bool, ...]) -> RuleOutput:
    *operands, z, g = arrays
    created = constant.count(False) - 1
    absorbed = {"product_offset": -created * total_product(z, g)}
    return RuleOutput(_derivatives(operands, g, constant), absorbed)


def _derivatives(
    operands: list[Array], g: Array, constant: tuple[bool, ...]
) -> tuple[Array | None, ...]:
    """dz/da_k g: the product of the other operands, without dividing by one that may be zero."""

    def others(k: int) -> Array:
        return reduce(lambda a, b: a * b, (a for i, a in enumerate(operands) if i != k), g)

    return tuple(None if c else fold(others(k), operands[k].shape) for k, c in enumerate(constant))


RULES = {
    "uniform": Forms(uniform, uniform_gxi),
    "flattened": Forms(flattened, flattened_gxi),
    "second": Forms(second, second_gxi),
    "gradient": Forms(None, gradient),
}
