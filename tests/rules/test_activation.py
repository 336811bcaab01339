"""Activations: f(x) and every rule against their definitions, tails included;
and the engine's own erfc.
"""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
from backends import Backend
from exact_rules import dtypes, forward_agrees, near, on_examples, rule_agrees
from hypothesis import strategies as st

from refl import arrays
from refl.rules import activation
from refl.verification.definitions import exact
from refl.verification.definitions.exact import MP, to_mpf
from refl.verification.definitions.lift import Call, array
from refl.verification.quality import cases
from refl.verification.quality.cases import (
    ACTIVATIONS,
    ETA,
    Case,
    U,
    activation_case,
    sensitivity,
)

kinds = pytest.mark.parametrize("kind", ACTIVATIONS)


@dtypes
@kinds
@pytest.mark.parametrize("rule", ["identity", "identity_gxi", "gradient"])
def test_rule(backend: Backend, dtype: str, rule: str, kind: str) -> None:
    rule_agrees(backend, dtype, f"activation_{rule}", partial(activation_case, kind=kind))


@dtypes
@kinds
def test_forward(backend: Backend, dtype: str, kind: str) -> None:
    def bound(case: Case, call: Call, z: Any) -> Any:
        return array(z.shape, (_bound(dtype, kind, x) for x in call.x.flat))

    forward_agrees(backend, dtype, partial(activation_case, kind=kind), bound)


def _bound(dtype: str, kind: str, x: Fraction) -> Any:
    rounding = 16 * to_mpf(U[dtype]) * sensitivity(kind, x)[0]
    return rounding + 4 * to_mpf(ETA[dtype]) * (1 + abs(to_mpf(x)))


@kinds
def test_forward_in_the_far_tail(backend: Backend, kind: str) -> None:
    """f(-200) and f(-1e300) are -0 or a number too small to matter; a gate that stops falling at
    -100 makes them grow with x.
    """
    x = np.asarray([[-200.0, -1e6, -1e300]])
    z = backend.back(activation.forward(backend.place(x), kind=kind))
    for i in range(3):
        at = Fraction(float(x[0, min(i, 1)]))
        wanted = exact.activation(kind, at)
        bound = 16 * to_mpf(U["float64"]) * sensitivity(kind, at)[0] + 200 * to_mpf(ETA["float64"])
        near(z[0, i], wanted, bound + abs(wanted) * 1e-12)


@dtypes
def test_erfc(backend: Backend, dtype: str) -> None:
    """The engine's own erfc, without an argument to round: 10 units relative, subnormal results to
    their last bit.
    """
    numbers = st.floats(-30, 30, width=64 if dtype == "float64" else 32)

    def judge(data: st.DataObject) -> None:
        x = cases.array(data.draw, dtype, (1, 3), numbers, [1.0])
        got = backend.back(arrays.erfc(backend.place(x)))
        for i in range(3):
            wanted = MP.erfc(to_mpf(Fraction(float(x[0, i]))))
            near(got[0, i], wanted, 10 * to_mpf(U[dtype]) * wanted + 4 * to_mpf(ETA[dtype]))

    on_examples(backend, judge)


@kinds
@pytest.mark.parametrize("x", [Fraction(1, 3), Fraction(-2), Fraction(5, 2)])
def test_the_derivatives_of_the_definitions_are_mpmaths(kind: str, x: Fraction) -> None:
    """One check of the checker."""
    numeric = MP.diff(lambda t: exact.activation(kind, t), to_mpf(x))
    assert abs(numeric - exact.slope(kind, x)) < 1e-40
