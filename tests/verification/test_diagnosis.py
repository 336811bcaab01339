"""Which mistake is behind a rule's failures, and how many of them it explains."""

from __future__ import annotations

from typing import Any

import numpy as np

from refl.verification.conformance import runner
from refl.verification.conformance.results import RuleResult, size


def found(rule: str, function: Any) -> RuleResult:
    return runner.run({rule: function}, rule)[rule]


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
