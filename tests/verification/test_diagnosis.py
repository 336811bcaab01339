"""Which mistake is behind a rule's failures, and how many of them it explains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from refl.verification.conformance import runner
from refl.verification.conformance.adapter import Adapter
from refl.verification.conformance.diagnosis import answers, distinguishes, mistakes_behind
from refl.verification.conformance.mistakes import MISTAKES
from refl.verification.conformance.results import RuleResult, size
from refl.verification.vectors.rule_vectors import load


def found(rule: str, function: Any) -> RuleResult:
    """Of the smaller cases."""
    adapter = Adapter({rule: function})
    cases = [c for c in load(rule) if c.dtype in ("float64", "float32") and size(c) < 200]
    return runner.rule_result(rule, [runner.run_case(adapter, c) for c in cases], {})


def linear_flat(x: Any, w: Any, b: Any, r: Any) -> Any:
    """R_i = sum_j R_j / I, in float64."""
    each = r.astype(np.float64).sum(-1, keepdims=True) / x.shape[-1]
    return np.broadcast_to(each, x.shape).copy()


def test_a_mistake_is_counted_by_the_cases_that_it_explains() -> None:
    result = found("linear_flat", lambda x, w, b, r: np.abs(linear_flat(x, w, b, r)))
    assert result.cause is not None and result.cause.id == "relevance-clamped"
    assert result.explained["relevance-clamped"] == result.failing > 0
    assert result.unexplained == ()


def test_what_no_mistake_explains_is_listed_smallest_first() -> None:
    result = found("linear_flat", lambda x, w, b, r: np.sin(linear_flat(x, w, b, r)) + x)
    sizes = [size(c.case) for c in result.unexplained]
    assert len(sizes) == result.failing and sizes == sorted(sizes)
    assert result.cause is None


def test_a_mistake_that_explains_under_half_is_not_the_cause() -> None:
    """The first answer with something negative in absolute value, all others unheard of."""
    clamped: list[Any] = []

    def odd(x: Any, w: Any, b: Any, r: Any) -> Any:
        right = linear_flat(x, w, b, r)
        if not clamped and np.any(right < 0):
            clamped.append(right)
            return np.abs(right)
        return np.sin(right) + x

    result = found("linear_flat", odd)
    assert result.mistakes[0].id == "relevance-clamped"
    assert result.explained["relevance-clamped"] < result.failing / 2
    assert result.cause is None


# -- structure -------------------------------------------------------------------------------------


def matmul_uniform(a: Any, v: Any, r: Any, *, eps: float) -> Any:
    """By its equation, in float64; eps with the sign of z."""
    a, v, r = (each.astype(np.float64) for each in (a, v, r))
    o = a @ v
    s = r / (2 * o + np.where(o >= 0, eps, -eps))
    return a * (s @ v.swapaxes(-1, -2)), v * (a.swapaxes(-1, -2) @ s)


def rolled(x: Any) -> Any:
    return np.roll(x, 1, axis=1)


def without_first_row(x: Any) -> Any:
    return np.concatenate([0 * x[..., :1, :], x[..., 1:, :]], axis=-2)


STRUCTURAL = {
    "constant-factor": lambda a, v, r, eps: [0.7 * x for x in matmul_uniform(a, v, r, eps=eps)],
    "sign-flipped": lambda a, v, r, eps: [-x for x in matmul_uniform(a, v, r, eps=eps)],
    "one-operand-right": lambda a, v, r, eps: [matmul_uniform(a, v, r, eps=eps)[0], 0 * v],
    "axis-permuted": lambda a, v, r, eps: matmul_uniform(a, v, rolled(r), eps=eps),
    "axis-mixed": lambda a, v, r, eps: matmul_uniform(
        a, v, r.mean(-2, keepdims=True) + 0 * r, eps=eps
    ),
    "one-slice-for-all": lambda a, v, r, eps: matmul_uniform(
        np.take(a, [0] * a.shape[-2], -2), v, r, eps=eps
    ),
    "slice-dropped": lambda a, v, r, eps: matmul_uniform(a, v, without_first_row(r), eps=eps),
    "nothing-passed": lambda a, v, r, eps: (0 * a, 0 * v),
}


@pytest.mark.parametrize("id", STRUCTURAL)
def test_a_mistake_of_structure_is_named(id: str) -> None:
    """Of the answer, or of what goes in: and it explains most of what fails."""
    wrong = STRUCTURAL[id]
    result = found("matmul_uniform", lambda a, v, r, *, eps: wrong(a, v, r, eps))
    assert result.cause is not None and result.cause.id == id
    assert result.explained[id] > result.failing / 2


def test_what_is_swapped_or_not_summed_back_is_named() -> None:
    swapped = found("sum_epsilon", lambda operands, r, *, eps: sums(operands, r, eps)[::-1])
    assert swapped.cause is not None and swapped.cause.id == "operands-swapped"
    unchanged = found("linear_gradient", lambda x, w, b, g: g if g.shape == x.shape else x)
    assert "passed-unchanged" in [m.id for m in unchanged.mistakes]


def sums(operands: Any, r: Any, eps: float) -> list[Any]:
    wide = [a.astype(np.float64) for a in operands]
    z = np.sum(np.broadcast_arrays(*wide), axis=0)
    return [folded(a * r / (z + np.where(z >= 0, eps, -eps)), a.shape) for a in wide]


def folded(r: Any, shape: tuple[int, ...]) -> Any:
    """Summed over the axes along which an operand of this shape was broadcast."""
    r = r.sum(tuple(range(r.ndim - len(shape))))
    return r.sum(tuple(i for i, n in enumerate(shape) if n < r.shape[i]), keepdims=True)


def test_a_mistake_of_the_rule_itself_comes_before_one_of_structure() -> None:
    """Twice the relevance in a matrix product is known by its own name."""
    result = found(
        "matmul_uniform",
        lambda a, v, r, *, eps: [2 * x for x in matmul_uniform(a, v, r, eps=eps)],
    )
    assert result.mistakes[0].id == "product-doubled"


def test_a_mistake_under_a_condition_is_named_though_it_would_change_right_answers() -> None:
    """Doubled with one output alone: it would have shown with two outputs."""

    def doubled(x: Any, w: Any, b: Any, r: Any) -> Any:
        return (2 if len(w) == 1 else 1) * linear_flat(x, w, b, r)

    result = found("linear_flat", doubled)
    assert result.cause is not None and result.cause.id == "constant-factor"
    assert result.count("passed") > 0


def test_a_mistake_that_cannot_be_made_in_the_shapes_of_a_case_breaks_nothing() -> None:
    """Operands that are broadcast: some known mistakes give another shape there, or none."""
    ones = {"a": np.ones((2, 3)), "b": np.ones((1, 3))}
    case = replace(
        load("add_epsilon")[0],
        inputs={**ones, "r": np.ones((2, 3))},
        expected={name: 0.5 * a * (2 if name == "b" else 1) for name, a in ones.items()},
        condition=ones,
    )
    wrong = {"a": np.full((2, 3), 0.1), "b": np.full((1, 3), 0.3)}
    assert mistakes_behind(case, wrong) == []
    assert all(
        isinstance(distinguishes(case, w), bool) for m in MISTAKES for _, w in answers(m, case)
    )
    assert distinguishes(case, {"a": np.ones((2, 3)), "b": np.ones((2, 3))})
