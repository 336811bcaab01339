"""Selective scan, and the causal convolution in front of it: z and every rule against their
definitions, and the scan against its recurrence in plain loops.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from backends import Backend
from exact_rules import dtypes, forward_agrees, magnitudes, rule_agrees

from refl.rules import activation, causal_convolution, scan
from refl.rules.rounding import rounding_scale
from refl.verification.definitions.exact import MP, to_mpf
from refl.verification.definitions.lift import Call
from refl.verification.quality.cases import (
    ETA,
    Case,
    U,
    causal_convolution_case,
    scan_case,
)


@dtypes
@pytest.mark.parametrize("rule", ["epsilon", "gradient"])
def test_convolution(backend: Backend, dtype: str, rule: str) -> None:
    rule_agrees(backend, dtype, f"causal_convolution_{rule}", causal_convolution_case)


@dtypes
def test_forward_of_the_convolution(backend: Backend, dtype: str) -> None:
    def bound(case: Case, call: Call, z: Any) -> Any:
        width = case.operands[1].shape[-1]
        return (width + 1) * (U[dtype] * magnitudes(case, call) + ETA[dtype])

    forward_agrees(backend, dtype, causal_convolution_case, bound)


@dtypes
@pytest.mark.parametrize("rule", ["epsilon", "epsilon_gxi", "gradient"])
def test_scan(backend: Backend, dtype: str, rule: str) -> None:
    rule_agrees(backend, dtype, f"scan_{rule}", scan_case)


@dtypes
def test_forward_of_the_scan(backend: Backend, dtype: str) -> None:
    """Each place in between multiplies by a decay, which is as far off as its argument is large."""

    def bound(case: Case, call: Call, z: Any) -> Any:
        x, d, b, c, a_log = case.operands
        far = math.ceil(float(np.max(d)) * math.exp(float(np.max(a_log))))
        steps = x.shape[1] * (6 + 4 * far) + b.shape[-1]
        terms = scan.forward(*(np.abs(v).astype(np.float64) for v in (x, d, b, c)), a_log)
        return 2 * steps * U[dtype] * np.vectorize(Fraction)(terms) + 64 * steps * ETA[dtype]

    forward_agrees(backend, dtype, scan_case, lambda *all: np.vectorize(to_mpf)(bound(*all)))


# -- written out -----------------------------------------------------------------------------------

TEXT, CHANNELS, STATES = 5, 3, 2
SHAPES = ((2, TEXT, CHANNELS),) * 2 + ((2, TEXT, STATES),) * 2 + ((CHANNELS, STATES),)


def operands(seed: int = 0) -> list[Any]:
    random = np.random.default_rng(seed)
    x, d, b, c, a_log = (random.standard_normal(shape) for shape in SHAPES)
    return [x, np.abs(d), b, c, a_log]


def recurrence(x: Any, d: Any, b: Any, c: Any, a_log: Any) -> Any:
    """One number after the other, as the paper has it."""
    y = np.zeros_like(x)
    for example, i in np.ndindex(x.shape[0], x.shape[2]):
        h = [0.0] * STATES
        for t in range(x.shape[1]):
            step = d[example, t, i]
            for n in range(STATES):
                kept = math.exp(-step * math.exp(a_log[i, n])) * h[n]
                h[n] = kept + step * b[example, t, n] * x[example, t, i]
            y[example, t, i] = sum(c[example, t, n] * h[n] for n in range(STATES))
    return y


def test_the_recurrence() -> None:
    assert np.abs(scan.forward(*operands()) - recurrence(*operands())).max() <= 1e-14


def test_a_text_in_two_pieces_is_the_text() -> None:
    """To the last bit: states are handed over."""
    whole, *rest = operands()
    a_log, h, found = rest[-1], None, []
    for piece in (slice(0, 2), slice(2, 3), slice(3, TEXT)):
        parts = (operand[:, piece] for operand in (whole, *rest[:-1]))
        y, h = scan.after(h, *parts, a_log)
        found.append(y)
    assert np.array_equal(np.concatenate(found, axis=1), scan.forward(whole, *rest))


def test_the_derivative_by_differences() -> None:
    """Of all four operands, by central differences of the recurrence."""
    at = operands(1)
    g = np.random.default_rng(2).standard_normal(at[0].shape)
    found = scan.gradient(*at, scan.forward(*at), g).inputs
    assert found[4] is None
    for k, got in enumerate(found[:4]):
        for index in np.ndindex(*got.shape):
            sides = []
            for step in (1e-5, -1e-5):
                moved = [v.copy() for v in at]
                moved[k][index] += step
                sides.append(float((g * recurrence(*moved)).sum()))
            slope = (sides[0] - sides[1]) / 2e-5
            assert got[index] == pytest.approx(slope, rel=1e-7, abs=1e-7)


def test_relevance_of_the_future_is_none() -> None:
    """What arrives at place 2 goes to places 0 to 2."""
    at = operands()
    r = np.zeros_like(at[0])
    r[:, 2] = 1.0
    z = scan.forward(*at)
    assert not scan.epsilon(*at, z, r).inputs[0][:, 3:].any()
    for got in scan.gradient(*at, z, r).inputs[:4]:
        assert got[:, :3].any() and not got[:, 3:].any()


def test_a_kernel_longer_than_the_text_and_one_of_one() -> None:
    x = np.asarray([[[2.0], [3.0]]])
    w, b = np.asarray([[100.0, 10.0, 1.0]]), np.asarray([0.5])
    assert causal_convolution.forward(x, w, b).tolist() == [[[2.5], [23.5]]]
    back = causal_convolution.gradient(x, w, b, x, np.asarray([[[1.0], [7.0]]]))
    assert back.inputs[0].tolist() == [[[71.0], [7.0]]] and back.absorbed["bias"].tolist() == [4.0]
    assert causal_convolution.forward(x, w[:, :1], None).tolist() == [[[200.0], [300.0]]]


@pytest.mark.parametrize("length", [1, 3, 200])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_long_text_balances_within_its_scale(dtype: str, length: int) -> None:
    """In either form, far from the bound: of the rules' rounding, and of how often a term meets a
    decay.
    """
    random, u = np.random.default_rng(length), float(np.finfo(dtype).eps) / 2
    shapes = ((2, length, 6),) * 2 + ((2, length, 4),) * 2 + ((6, 4),)
    x, d, b, c, a_log = (random.standard_normal(shape).astype(dtype) for shape in shapes)
    at = (x, np.abs(d) / 8, b, c, a_log)
    z, r = scan.forward(*at), random.standard_normal(x.shape).astype(dtype)
    options = {"eps": 1e-6, "stabilizer": "sign"}
    for name, form, rule, how in (
        ("epsilon", "relevance", scan.epsilon, options),
        ("epsilon", "gradient_x_input", scan.epsilon_gxi, {}),
        ("gradient", "gradient_x_input", scan.gradient, {}),
    ):
        output, as_gradient = rule(*at, z, r, **how), form != "relevance"
        ends = [
            float((i * o.astype(float) if as_gradient else i.astype(float)).sum())
            for o, i in zip(at, output.inputs, strict=True)
            if i is not None
        ]
        came = float((z * r.astype(float) if as_gradient else r.astype(float)).sum())
        error = came - sum(ends) - sum(float(a.sum()) for a in output.absorbed.values())
        scale = rounding_scale("scan", name, form, at, z, r, how)
        assert abs(error) <= u * float(scale.sum())  # an audit allows eight times that


# -- the step size ---------------------------------------------------------------------------------


@dtypes
def test_softplus(backend: Backend, dtype: str) -> None:
    """log(1 + e^x) and its slope to a few units of roundoff, near 0 and far out."""
    far = [sign * v for v in (0.0, 1e-30, 1e-5, 0.3, 1.0, 5.0, 20.5, 80.0, 1e3) for sign in (1, -1)]
    x = np.asarray([far], dtype=dtype)
    z = backend.back(activation.forward(backend.place(x), kind="softplus"))
    slope = backend.back(activation.slope(backend.place(x), "softplus"))
    tiny = float(np.finfo(dtype).tiny)
    for at, got, steep in zip(x[0], z[0], slope[0], strict=True):
        e = MP.exp(-MP.mpf(float(at)))
        wanted, wanted_slope = MP.log1p(1 / e), 1 / (1 + e)
        assert got.dtype == dtype
        assert abs(float(got) - wanted) <= 4 * to_mpf(U[dtype]) * wanted + tiny
        assert abs(float(steep) - wanted_slope) <= 4 * to_mpf(U[dtype]) * wanted_slope + tiny


def test_the_ratio_of_softplus_at_zero_is_absorbed() -> None:
    """log 2 there, and nothing to divide it by; elsewhere f(x)/x as ever."""
    x = np.asarray([[0.0, 2.0, -1.0]])
    z = activation.forward(x, kind="softplus")
    output = activation.identity_gxi(x, z, np.asarray([[3.0, 5.0, 7.0]]), kind="softplus")
    (g,) = output.inputs
    assert g[0, 0] == 0 and output.absorbed["activation_offset"] == pytest.approx([3 * math.log(2)])
    assert (x * g)[0, 1:] == pytest.approx([5 * z[0, 1], 7 * z[0, 2]])
