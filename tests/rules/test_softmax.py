"""Softmax: p and every rule against their definitions, on rows masked in part or whole, by a
boolean mask, by -inf, or by adding the least number of the format.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from backends import Backend
from exact_rules import arrays_of, dtypes, forward_agrees, near, rule_agrees

from refl.rules import softmax
from refl.verification.definitions.exact import MP, to_mpf
from refl.verification.definitions.lift import Call, array
from refl.verification.quality.cases import ETA, Case, U, exactly, softmax_case

RULES = ("taylor", "spread", "z_plus", "identity", "constant", "gradient", "constant_gxi")


@dtypes
@pytest.mark.parametrize("rule", RULES)
def test_rule(backend: Backend, dtype: str, rule: str) -> None:
    rule_agrees(backend, dtype, f"softmax_{rule}", softmax_case)


def _as_it_is(case: Case) -> Call:
    """A row masked by numbers is to the forward a row like any other."""
    x = case.operands[0]
    written = case.attributes["mask"] is None and np.all(np.isfinite(x))
    shown = np.ones_like(case.visible) if written else case.visible
    return Call([exactly(np.where(shown, x, 0))], options={"mask": shown})


@dtypes
def test_forward(backend: Backend, dtype: str) -> None:
    """p's exponent x - max rounds by u |x - max|, and so do those
    of the other terms, each by its weight p.
    """
    u, eta = to_mpf(U[dtype]), to_mpf(ETA[dtype])

    def bound(case: Case, call: Call, p: Any) -> Any:
        rows = [_row_bound(call, p, at, u, eta) for at in np.ndindex(*p.shape[:-1])]
        return array(p.shape, (each for row in rows for each in row))

    forward_agrees(backend, dtype, softmax_case, bound, _as_it_is)


def _row_bound(call: Call, p: Any, at: tuple[int, ...], u: Any, eta: Any) -> list[Any]:
    x, visible = call.x[at], call.row("mask", at)
    highest = max((v for v, s in zip(x, visible, strict=True) if s), default=0)
    below = [to_mpf(highest - v) if s else MP.mpf(0) for v, s in zip(x, visible, strict=True)]
    k = 12 + len(x) + sum(q * d for q, d in zip(p[at], below, strict=True))
    return [(k + d) * u * q + 4 * eta for q, d in zip(p[at], below, strict=True)]


def test_gradient_records_a_row_masked_whole_by_the_least_number(backend: Backend) -> None:
    """There p = 1/N is not zero, so z g arrives at masked entries: of 1/2 and 1/2, 1/2 times 3."""
    x = np.full((1, 1, 2), np.finfo("float64").min)
    p, g = softmax.forward(x), np.asarray([[[1.0, 2.0]]])
    output = softmax.gradient(*arrays_of(backend, x, p, g))
    assert backend.back(output.absorbed["mask"]).tolist() == [1.5]
    assert not backend.back(output.inputs[0]).any()


def test_z_plus_where_one_cross_term_dominates(backend: Backend) -> None:
    """x = (-1, -30): the one receiver of R_0 has 8e-12 of the row's terms, and gets R_0 all the
    same, to the last digits.
    """
    x, r = np.asarray([[[-1.0, -30.0]]]), np.asarray([[[1.0, 0.0]]])
    output = softmax.z_plus(*arrays_of(backend, x, softmax.forward(x), r))
    got = backend.back(output.inputs[0])
    near(got[0, 0, 0], 0, 1e-14)
    near(got[0, 0, 1], 1, 1e-14)


@dtypes
def test_z_plus_where_one_probability_is_nearly_one(backend: Backend, dtype: str) -> None:
    """x = (20, -1): of what stands at the first entry it keeps x_0 (1 - p_0) to x_1 p_1, which is
    20 to 1, because 1 - p_0 = p_1. In float32 p_0 is 1, and 1 - p_0 was 0.
    """
    x, r = np.asarray([[[20.0, -1.0]]], dtype=dtype), np.asarray([[[1.0, 0.0]]], dtype=dtype)
    output = softmax.z_plus(*(backend.place(a) for a in (x, softmax.forward(x), r)))
    np.testing.assert_allclose(
        backend.back(output.inputs[0])[0, 0], [20 / 21, 1 / 21], rtol=8 * float(U[dtype])
    )
