"""Matrix products of two activations: z and every rule against their definitions; Shapley values,
and what the order of multiplication does.
"""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
from backends import Backend
from exact_rules import dtypes, forward_agrees, magnitudes, rule_agrees

from refl.rules import matmul
from refl.verification.definitions import exact
from refl.verification.definitions.lift import Call
from refl.verification.quality.cases import ETA, Case, U, fits, matmul_case, top


@dtypes
@pytest.mark.parametrize(
    "rule", ["flattened", "second", "uniform_gxi", "flattened_gxi", "second_gxi", "gradient"]
)
def test_rule(backend: Backend, dtype: str, rule: str) -> None:
    rule_agrees(backend, dtype, f"matmul_{rule}", matmul_case)


@dtypes
@pytest.mark.parametrize("denominator", matmul.DENOMINATORS)
def test_uniform(backend: Backend, dtype: str, denominator: str) -> None:
    rule_agrees(backend, dtype, "matmul_uniform", partial(matmul_case, denominator=denominator))


@dtypes
def test_forward(backend: Backend, dtype: str) -> None:
    """O_jp sums I products."""

    def bound(case: Case, call: Call, z: Any) -> Any:
        fits(dtype, top(case.z))
        return (call.x.shape[-1] + 2) * (U[dtype] * magnitudes(case, call) + ETA[dtype])

    forward_agrees(backend, dtype, matmul_case, bound)


def test_uniform_rule_is_the_shapley_value_of_every_entry() -> None:
    a = [[Fraction(2), Fraction(-1)], [Fraction(1, 3), Fraction(5)]]
    v = [[Fraction(4)], [Fraction(7, 2)]]
    out = exact.matmul_uniform(a, v, exact.matmul(a, v), Fraction(0), "none")
    players = [(0, (j, i)) for j in range(2) for i in range(2)] + [(1, (i, 0)) for i in range(2)]

    def value(present: frozenset[int]) -> Fraction:
        there = {players[p] for p in present}
        terms = (
            a[j][i] * v[i][0]
            for j in range(2)
            for i in range(2)
            if (0, (j, i)) in there and (1, (i, 0)) in there
        )
        return sum(terms, Fraction(0))

    assert exact.shapley(value, len(players)) == [out.received(k, entry) for k, entry in players]


def test_order_of_multiplication_gives_a_quarter_or_a_half(backend: Backend) -> None:
    """(Q K^T) V: Q:K:V = 1/4 : 1/4 : 1/2.  Q (K^T V): 1/2 : 1/4 : 1/4  (identity 10)."""
    random = np.random.default_rng(7)
    q, kt, v = (backend.place(random.normal(size=(1, 3, 3))) for _ in range(3))
    free = {"stabilizer": "none"}
    qk, kv = matmul.forward(q, kt), matmul.forward(kt, v)
    z = matmul.forward(qk, v)
    to_qk, to_v = matmul.uniform(qk, v, z, z, **free).inputs
    left = [*matmul.uniform(q, kt, qk, to_qk, **free).inputs, to_v]
    to_q, to_kv = matmul.uniform(q, kv, z, z, **free).inputs
    right = [to_q, *matmul.uniform(kt, v, kv, to_kv, **free).inputs]
    whole = float(np.sum(backend.back(z)))
    for relevance, parts in ((left, (0.25, 0.25, 0.5)), (right, (0.5, 0.25, 0.25))):
        for r, wanted in zip(relevance, parts, strict=True):
            got = backend.back(r)
            bound = 1e3 * 2.0**-53 * float(np.sum(np.abs(got))) / abs(whole)
            assert abs(float(np.sum(got)) / whole - wanted) <= bound
