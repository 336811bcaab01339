"""Correlations against their definitions, pair by pair, in exact arithmetic; ties, constants."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refl.evaluation.correlation import CORRELATIONS, agreement, kendall, pearson, ranks, spearman

Scores = list[int]
TWO = st.integers(1, 7).flatmap(
    lambda n: st.tuples(*(st.lists(st.integers(-3, 3), min_size=n, max_size=n),) * 2)
)


def sign(x: int) -> int:
    return (x > 0) - (x < 0)


def by_pairs(a: Scores, b: Scores) -> float:
    """Kendall's tau-b, every pair of places at a time."""
    pairs = list(combinations(range(len(a)), 2))
    order = sum(sign(a[i] - a[j]) * sign(b[i] - b[j]) for i, j in pairs)
    n = [sum(x[i] != x[j] for i, j in pairs) for x in (a, b)]
    return order / math.sqrt(n[0] * n[1]) if n[0] * n[1] else math.nan


def exactly(a: list[Fraction], b: list[Fraction]) -> float:
    """Pearson's r: numerator and squares in rational arithmetic."""
    n = len(a)
    x, y = ([v - sum(side) / n for v in side] for side in (a, b))
    squares = sum(v * v for v in x) * sum(v * v for v in y)
    if n < 2 or not squares:
        return math.nan
    return float(sum(v * w for v, w in zip(x, y, strict=True))) / math.sqrt(squares)


def mean_rank(x: Scores) -> list[Fraction]:
    """One above how many are smaller, and half of how many others are equal."""
    return [
        Fraction(sum(v < u for v in x) + 1) + Fraction(sum(v == u for v in x) - 1, 2) for u in x
    ]


@given(TWO)
def test_each_is_its_definition(scores: tuple[Scores, Scores]) -> None:
    a, b = scores
    expected = {
        "pearson": exactly([Fraction(v) for v in a], [Fraction(v) for v in b]),
        "spearman": exactly(mean_rank(a), mean_rank(b)),
        "kendall": by_pairs(a, b),
    }
    for name, value in expected.items():
        assert CORRELATIONS[name](a, b) == pytest.approx(value, abs=1e-12, nan_ok=True), name
        assert CORRELATIONS[name](b, a) == pytest.approx(value, abs=1e-12, nan_ok=True), name


@given(st.lists(st.integers(-3, 3), max_size=9))
def test_ranks_of_equal_scores(x: Scores) -> None:
    assert ranks(np.asarray(x)).tolist() == [float(r) for r in mean_rank(x)]


@pytest.mark.parametrize("correlation", CORRELATIONS.values())
def test_where_none_is_defined(correlation: object) -> None:
    assert callable(correlation)
    for a, b in (([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [0.1, 0.1, 0.1]), ([1], [2]), ([], [])):
        assert math.isnan(correlation(a, b))
    assert math.isnan(correlation([1, 2, math.nan], [1, 2, 3]))
    assert math.isnan(correlation([1, 2, math.inf], [1, 2, 3]))
    with pytest.raises(ValueError, match="2 scores beside 3"):
        correlation([1, 2], [1, 2, 3])


@pytest.mark.parametrize("size", [1e-300, 1e-20, 1.0, 1e200])
def test_scores_of_any_size(size: float) -> None:
    """Squares would be 0 or infinite."""
    a, b = np.asarray([1.0, -2.0, 4.0]), np.asarray([1.0, 2.0, 5.0])
    assert pearson(a * size, b) == pytest.approx(pearson(a, b), rel=1e-12)
    assert pearson(a * size, -a) == -1.0 and pearson(a, a * size) == 1.0


def test_signs_and_sizes() -> None:
    found = agreement([1.0, -2.0, 3.0], [-1.0, 2.0, -3.0])
    assert found == pytest.approx(
        {f"{name}{end}": 1.0 if end else -1.0 for name in CORRELATIONS for end in ("", "_absolute")}
    )
    assert kendall([3, 1, 2], [9, 1, 4]) == 1.0 and spearman([3, 1, 2], [9, 1, 4]) == 1.0
