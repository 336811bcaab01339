"""Experts: the choice, the way to them and back, and weights that are made to sum to one, against
their definitions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from backends import Backend, backend_named
from exact_rules import dtypes, forward_agrees, magnitudes, on_examples, rule_agrees
from hypothesis import strategies as st

from refl.rules import combine, gather, top_k
from refl.verification.definitions import exact_experts
from refl.verification.quality.cases import (
    Case,
    U,
    combine_case,
    exactly,
    gather_case,
    renormalize_case,
    top_k_case,
)

# -- the choice ------------------------------------------------------------------------------------


@dtypes
def test_top_k(backend: Backend, dtype: str) -> None:
    rule_agrees(backend, dtype, "top_k_pass_through", top_k_case)


@dtypes
def test_forward_of_top_k(backend: Backend, dtype: str) -> None:
    forward_agrees(backend, dtype, top_k_case, lambda case, call, z: 0)


@dtypes
def test_the_largest_are_chosen(backend: Backend, dtype: str) -> None:
    def judge(data: st.DataObject) -> None:
        case = top_k_case(data.draw, dtype)
        p, k = case.operands[0], case.r.shape[-1]
        chosen = top_k.choose(backend.place(p), k)
        for b, t in np.ndindex(*p.shape[:2]):
            assert list(chosen[b][t]) == exact_experts.top_k(exactly(p[b, t]).tolist(), k)

    on_examples(backend, judge)


def test_of_equal_probabilities_the_first_is_chosen(backend: Backend) -> None:
    p = backend.place(np.asarray([[[0.25, 0.5, 0.25, 0.5], [0.25, 0.25, 0.25, 0.25]]]))
    assert top_k.choose(p, 3) == (((1, 3, 0), (0, 1, 2)),)


# -- to the experts and back -----------------------------------------------------------------------


@dtypes
def test_gather(backend: Backend, dtype: str) -> None:
    rule_agrees(backend, dtype, "gather_pass_through", gather_case)


@dtypes
def test_forward_of_gather(backend: Backend, dtype: str) -> None:
    forward_agrees(backend, dtype, gather_case, lambda case, call, z: 0)


def test_gathered_back_is_where_it_was(backend: Backend) -> None:
    """A permutation undone is the array, bit for bit; places left empty change nothing."""
    x = np.random.default_rng(0).standard_normal((2, 4, 3))
    index = ((2, 0, 3, 1, None), (1, 3, 0, 2, None))
    rows = gather.rows(backend.place(x), index)
    assert np.array_equal(backend.back(gather.back(rows, index, 4)), x)
    assert not backend.back(rows)[:, 4].any()


@dtypes
@pytest.mark.parametrize("rule", ["epsilon", "gradient"])
def test_combine(backend: Backend, dtype: str, rule: str) -> None:
    rule_agrees(backend, dtype, f"combine_{rule}", combine_case)


@dtypes
def test_forward_of_combine(backend: Backend, dtype: str) -> None:
    def bound(case: Case, call: Any, z: Any) -> Any:
        return 4 * U[dtype] * magnitudes(case, call)

    forward_agrees(backend, dtype, combine_case, bound)


def test_order_of_experts_does_not_matter(backend: Backend) -> None:
    """One stabilizer for the whole sum. A chain of additions divides by partial sums: with 1 - 1 in
    it, by nothing but eps.
    """
    ys = [np.asarray([[[v]]]) for v in (1.0, -1.0, 2.0)]
    index = (((0,),),) * 3
    received = []
    for order in ((0, 1, 2), (2, 0, 1)):
        mine = [backend.place(ys[i]) for i in order]
        z = combine.forward(*mine, index=index, length=1)
        output = combine.epsilon(*mine, z, z, index=index, length=1, eps=1e-6)
        pairs = zip(order, output.inputs, strict=True)
        received.append({i: float(backend.back(r)[0, 0, 0]) for i, r in pairs})
    assert received[0] == received[1]
    assert received[0][2] == pytest.approx(2.0, rel=1e-6)


# -- weights that sum to one -----------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("rule", ["identity", "identity_gxi", "epsilon", "gradient"])
def test_renormalize(backend: Backend, dtype: str, rule: str) -> None:
    rule_agrees(backend, dtype, f"renormalize_{rule}", renormalize_case)


@dtypes
def test_forward_of_renormalize(backend: Backend, dtype: str) -> None:
    def bound(case: Case, call: Any, z: Any) -> Any:
        return (z.shape[-1] + 2) * U[dtype] * z

    forward_agrees(backend, dtype, renormalize_case, bound)


@dtypes
@pytest.mark.parametrize("rule", ["renormalize_epsilon", "renormalize_gradient"])
def test_renormalized_weights_pass_on_nothing_in_sum(dtype: str, rule: str) -> None:
    """z is homogeneous of degree 0 in x: by the definition the messages cancel to nothing."""

    def judge(data: st.DataObject) -> None:
        trial = renormalize_case(data.draw, dtype).rules[rule]()
        x = trial.call.x
        for row in np.ndindex(*x.shape[:-1]):
            received = [trial.expected.entries[0, (*row, i)].exact for i in range(x.shape[-1])]
            worth = x[row] if trial.gradient_x_input else [1] * len(received)
            assert sum(w * r for w, r in zip(worth, received, strict=True)) == 0

    on_examples(backend_named("numpy"), judge)
