"""Products of activations: z and every rule against their definitions;
the uniform rule as a Shapley value.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from backends import Backend
from exact_rules import arrays_of, dtypes, forward_agrees, near, rule_agrees

from refl.rules import multiply
from refl.verification.definitions import exact
from refl.verification.quality.cases import (
    ETA,
    Case,
    U,
    amplification,
    fits,
    multiply_case,
    top,
)

RULES = [
    *("uniform", "flattened", "second"),
    *("uniform_gxi", "flattened_gxi", "second_gxi", "gradient"),
]


@dtypes
@pytest.mark.parametrize("rule", RULES)
def test_rule(backend: Backend, dtype: str, rule: str) -> None:
    rule_agrees(backend, dtype, f"multiply_{rule}", multiply_case)


@dtypes
def test_forward(backend: Backend, dtype: str) -> None:
    """At most two products; no part of them may overflow, in whatever order they are formed."""

    def bound(case: Case, call: Any, z: Any) -> Any:
        fits(dtype, math.prod((max(top(a), Fraction(1)) for a in case.operands), start=Fraction(8)))
        return 2 * U[dtype] * abs(z) + ETA[dtype] * amplification(*case.operands)

    forward_agrees(backend, dtype, multiply_case, bound)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_uniform_rule_is_the_shapley_value_of_a_product(backend: Backend, n: int) -> None:
    """With baseline 0 a product exists only when all its factors have come (identity 5)."""
    a = [2.0, -3.0, 0.5, 7.0][:n]

    def value(present: frozenset[int]) -> Fraction:
        return math.prod(map(Fraction, a)) if len(present) == n else Fraction(0)

    fair = exact.shapley(value, n)
    operands = arrays_of(backend, *([[v]] for v in a))
    z = backend.place(np.asarray([[math.prod(a)]]))
    output = multiply.uniform(*operands, z, z, constant=(False,) * n)
    for k in range(n):
        near(backend.back(output.inputs[k])[0, 0], fair[k], 2 * U["float64"] * abs(fair[k]))


def test_flattened_product_does_not_depend_on_brackets(backend: Backend) -> None:
    """(x1 x2) x3 at (2, 3, 4) gives (6, 6, 12), x1 (x2 x3) gives (12, 6, 6),
    the flattened product (8, 8, 8).
    """
    x1, x2, x3, x12, x23, z = arrays_of(backend, [[2]], [[3]], [[4]], [[6]], [[12]], [[24]])
    two = (False, False)

    def numbers(*relevance: Any) -> list[float]:
        return [float(backend.back(r)[0, 0]) for r in relevance]

    inner, last = multiply.uniform(x12, x3, z, z, constant=two).inputs
    left = multiply.uniform(x1, x2, x12, inner, constant=two).inputs
    assert numbers(*left, last) == [6, 6, 12]
    first, inner = multiply.uniform(x1, x23, z, z, constant=two).inputs
    right = multiply.uniform(x2, x3, x23, inner, constant=two).inputs
    assert numbers(first, *right) == [12, 6, 6]
    flat = multiply.uniform(x1, x2, x3, z, z, constant=(False,) * 3).inputs
    assert numbers(*flat) == [8, 8, 8]
