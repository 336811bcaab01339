"""Means, standard errors and bootstrap intervals."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refl.errors import ReflError
from refl.evaluation.statistics import best, interval, paired, summary

NAN = math.nan


def test_by_hand() -> None:
    s = summary([1.0, NAN, 2.0, 6.0, math.inf])
    assert (s.mean, s.count, s.undefined) == (3.0, 3, 2)
    assert s.standard_error == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))


def test_too_few() -> None:
    assert math.isnan(summary([]).mean) and summary([NAN]).undefined == 1
    one = paired([3.0], [1.0])
    assert one.mean == 2 and math.isnan(one.standard_error) and math.isnan(one.low)
    assert not one.excludes_0


def test_pairs_of_which_one_is_unknown_are_left_out() -> None:
    d = paired([1.0, NAN, 5.0, 2.0], [0.0, 1.0, NAN, 4.0])
    assert (d.mean, d.count, d.undefined) == (-0.5, 2, 2)
    with pytest.raises(ReflError, match="same inputs"):
        paired([1.0], [1.0, 2.0])


def test_equal_differences_have_a_point() -> None:
    d = paired([2.0, 3.0, 4.0], [1.0, 2.0, 3.0])
    assert (d.low, d.high, d.excludes_0) == (1.0, 1.0, True)
    assert not paired([2.0, 3.0], [2.0, 3.0]).excludes_0


def test_seeded() -> None:
    x = np.random.default_rng(0).exponential(size=30)
    assert interval(x) == interval(x) != interval(x, draw=1)
    assert interval(x, draws=3000)[0] < x.mean() < interval(x, draws=3000)[1]


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12))
def test_the_other_way_round(values: list[float]) -> None:
    """a - b and b - a: the ends change places, to the steps of the resampled means."""
    d, e = (paired(values, [0.0] * len(values), draws=500), paired([0.0] * len(values), values))
    assert d.mean == pytest.approx(-e.mean)
    assert d.low <= d.high and min(values) - 1e-9 <= d.low and d.high <= max(values) + 1e-9


def test_of_symmetric_data_it_is_the_percentile_interval() -> None:
    """z0 and a are 0 there: the interval is that of the 2.5 % and 97.5 % quantiles, which for
    normal means are 1.96 standard errors away.
    """
    half = np.random.default_rng(1).standard_normal(200)
    x = np.concatenate([half, -half])
    low, high = interval(x, draws=40_000)
    error = x.std() / math.sqrt(len(x))
    assert low == pytest.approx(-1.96 * error, rel=0.03) and high == pytest.approx(-low, rel=0.03)


def test_skewed_data_shift_it_towards_the_long_tail() -> None:
    """Efron 1987 written out: the jackknife leaves out one number after the other. Without the
    acceleration the upper end is a quarter of a standard error lower; other resamplings move it by
    a fortieth.
    """
    x = np.random.default_rng(2).exponential(size=40)
    left_out = np.asarray([np.delete(x, i).mean() for i in range(len(x))])
    up = left_out.mean() - left_out
    a = sum(up**3) / (6 * sum(up**2) ** 1.5)
    generator, normal = np.random.default_rng(99), NormalDist()
    means = np.sort([generator.choice(x, len(x)).mean() for _ in range(8000)])
    z0 = normal.inv_cdf(float(np.mean(means < x.mean())))
    error = x.std() / math.sqrt(len(x))
    for end, z in zip(interval(x, draws=20_000), (-1.959964, 1.959964), strict=True):
        level = normal.cdf(z0 + (z0 + z) / (1 - a * (z0 + z)))
        assert abs(end - means[int(level * len(means))]) < 0.12 * error


def test_coverage() -> None:
    """95 % of the intervals of 25 exponential numbers hold the mean, less what is known to be lost
    at this size (about 3 %); 400 samples have a standard error of 1.3 %.
    """
    random = np.random.default_rng(3)
    found = [interval(random.exponential(size=25), draws=400, draw=n) for n in range(400)]
    covered = np.mean([low <= 1 <= high for low, high in found])
    assert 0.88 < covered < 0.98


def test_the_best_of_several() -> None:
    random = np.random.default_rng(4)
    noise = random.standard_normal(50)
    columns = {"a": noise, "b": noise + 1.0, "c": noise + random.standard_normal(50)}
    assert best(columns) == ("b", True)
    assert best(columns | {"d": columns["b"] + 0.01 * random.standard_normal(50)})[1] is False
    assert best({"a": noise}) == ("a", False) and best({"a": [NAN]}) == (None, False)
    assert best({"a": noise, "b": noise + 1.0}, larger_is_better=False) == ("a", True)


def test_the_best_mean_may_be_the_worse_of_the_pairs() -> None:
    """b has no number where all find it hard: its mean is the best, and where both have one it is
    worse.
    """
    a = np.asarray([0.9, 0.8] * 6 + [0.1] * 12)
    b = np.where(np.arange(24) < 12, a - 0.1, NAN)
    assert summary(b).mean > summary(a).mean and paired(b, a).excludes_0
    assert best({"a": a, "b": b}) == ("b", False)
    assert best({"a": -a, "b": -b}, larger_is_better=False) == ("b", False)
    assert not paired(b, a).says_better(True) and paired(b, a).says_better(False)


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_a_few_differences_of_one_sign_say_nothing(level: float) -> None:
    """Of all signs that n differences can have, counted out, two in 2^n are of one sign."""
    for n in range(2, 12):
        signs = list(itertools.product((-1, 1), repeat=n))
        by_chance = sum(abs(sum(one)) == n for one in signs) / len(signs)
        d = paired(np.arange(1.0, n + 1), np.zeros(n), level=level)
        assert d.excludes_0 and d.says_better(True) == (by_chance < 1 - level)
        assert best({"a": np.arange(1.0, n + 1), "b": np.zeros(n)}, level=level) == (
            "a",
            by_chance < 1 - level,
        )
