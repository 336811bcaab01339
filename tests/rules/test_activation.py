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


FAR = (5, 6, 7, 8, 9, 10, 12, 14, 17, 20, 30, 36, 40, 43, 60, 80, 87, 99)
NEAR = (1e-44, 3e-42, 1e-38, 1e-30, 1e-20, 1e-10, 1e-5, 1e-3, 0.1, 0.5, 1, 2, 3, 4)


@dtypes
@kinds
def test_no_digit_is_lost_far_out_or_near_zero(backend: Backend, dtype: str, kind: str) -> None:
    """f, f' and f/x keep their digits as far as they have any: within what a rounded argument of
    exp does, which is its size. 1 - tanh(x)^2 is off by 96 % at 9 in float32.
    """
    x = np.asarray([sign * t for t in (*FAR, *NEAR) for sign in (1, -1)], dtype=dtype)
    placed = backend.place(x)
    z = activation.forward(placed, kind=kind)
    slope = backend.back(activation.slope(placed, kind))
    one = backend.place(np.ones_like(x))
    ratio = backend.back(activation.identity_gxi(placed, z, one, kind=kind).inputs[0])
    z, u, eta = backend.back(z), to_mpf(U[dtype]), to_mpf(float(np.finfo(dtype).smallest_subnormal))
    for k, at in enumerate(Fraction(float(t)) for t in x):
        of_z, of_slope = sensitivity(kind, at)
        f = exact.activation(kind, at)
        near(z[k], f, 8 * u * of_z + 4 * eta * (1 + abs(to_mpf(at))))
        near(slope[k], exact.slope(kind, at), 8 * u * of_slope + 200 * eta)
        near(ratio[k], f / to_mpf(at), (8 * u * of_z + 2 * eta) / abs(to_mpf(at)) + 4 * eta)


@pytest.mark.parametrize("x", [6.0, 9.0, 20.0])
def test_the_slope_of_tanh_in_float32(x: float) -> None:
    """1 / cosh(x)^2, to a few units of roundoff."""
    wanted = float(1 / MP.cosh(x) ** 2)
    got = activation.slope(np.asarray([x, -x], dtype="float32"), "tanh")
    assert got == pytest.approx([wanted, wanted], rel=1e-6)
