"""Means over inputs, and whether two methods differ.

    standard error   s / sqrt(n), s with n - 1
    paired           d_i = a_i - b_i of the same inputs; the interval of their mean is the BCa
                     bootstrap's (bias-corrected and accelerated: Efron 1987; DiCiccio and Efron
                     1996, section 2), from `draws` resamplings of the inputs, seeded: the same
                     numbers give the same interval

An input for which a number is not defined (nan: no evidence is known, nothing is positive) is left
out and counted; of a pair, where either is. So the means of two methods may be of other inputs than
their difference: the best mean is not yet the better method. Of fewer than two inputs there is no
standard error and no interval. An interval says nothing of several comparisons at once: among
twenty, one in twenty excludes 0 by chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np

from refl import arguments
from refl.errors import ReflError

NORMAL = NormalDist()

CHUNK = 1 << 20
"""Numbers that are drawn at once."""

KEPT = 1 << 22
"""Numbers of drawn inputs that are kept for the next interval."""


@dataclass(frozen=True)
class Summary:
    """Of one number over the inputs; nan where nothing can be said."""

    mean: float
    standard_error: float
    count: int
    """Inputs it is the mean of."""
    undefined: int
    """Inputs that were left out."""


@dataclass(frozen=True)
class Difference(Summary):
    """Of paired numbers; `low` and `high` bound the bootstrap interval."""

    low: float
    high: float
    level: float

    @property
    def excludes_0(self) -> bool:
        return self.low > 0 or self.high < 0

    def says_better(self, larger_is_better: bool) -> bool:
        """Whether the first of the two is the better one: the whole interval lies on that side of
        0, and there are enough inputs to say so.
        """
        apart = self.low > 0 if larger_is_better else self.high < 0
        return apart and self.count >= fewest(self.level)


def fewest(level: float) -> int:
    """Inputs from which on something is said to be better: the differences of n inputs all have
    one sign by chance in 2 * 2^-n of all cases, and that is to be below 1 - level.
    """
    return 1 + math.floor(1 - math.log2(1 - level))


def summary(values: Sequence[float] | Any) -> Summary:  # (n,)
    """Mean and standard error."""
    every = np.asarray(values, dtype=np.float64).reshape(-1)
    x = every[np.isfinite(every)]
    n = len(x)
    mean = float(x.mean()) if n else math.nan
    error = float(x.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return Summary(mean, error, n, len(every) - n)


def paired(
    a: Sequence[float] | Any,
    b: Sequence[float] | Any,
    level: float = 0.95,
    draws: int = 10_000,
    draw: int = 0,
) -> Difference:  # (n,), (n,)
    """The mean of a - b over the inputs of which both are known, and its bootstrap interval.

    draws    resamplings
    draw     where the generator starts: another number gives other resamplings

    Raises ReflError for numbers of different inputs.
    """
    first, second = (np.asarray(x, dtype=np.float64).reshape(-1) for x in (a, b))
    if len(first) != len(second):
        raise ReflError(
            f"{len(first)} numbers are paired with {len(second)}: expected both of the same inputs"
        )
    _refuse(level, draws)
    d = first - second
    known = d[np.isfinite(d)]
    low, high = interval(known, level, draws, draw)
    s = summary(d)
    return Difference(s.mean, s.standard_error, s.count, s.undefined, low, high, level)


def _refuse(level: float, draws: int) -> None:
    arguments.positive("draws", draws)
    if not isinstance(level, (int, float)) or not 0 < level < 1:
        raise arguments.expected("level", "a number between 0 and 1, such as 0.95", level)


# -- bootstrap -------------------------------------------------------------------------------------


def interval(
    x: Any, level: float = 0.95, draws: int = 10_000, draw: int = 0
) -> tuple[float, float]:  # (n,)
    """BCa, of the mean."""
    if len(x) < 2:
        return math.nan, math.nan
    if not np.ptp(x):  # nothing varies: whatever is drawn has this mean
        return float(x[0]), float(x[0])
    means = np.sort(_means(x, draws, draw))
    low, high = _levels(x, means, level)
    return _quantile(means, low), _quantile(means, high)


def _means(x: Any, draws: int, draw: int) -> Any:  # (n,) -> (draws,)
    """The mean of each resampling."""
    if draws * len(x) <= KEPT:
        return _counts(len(x), draws, draw) @ x / len(x)
    rows = max(1, CHUNK // len(x))
    return np.concatenate(
        [x[drawn].mean(axis=1) for drawn in _drawn(len(x), draws, draw, rows)],
    )


def _drawn(count: int, draws: int, draw: int, rows: int) -> Iterator[Any]:  # -> int (<= rows, n)
    generator = np.random.default_rng(draw)
    for done in range(0, draws, rows):
        yield generator.integers(0, count, (min(rows, draws - done), count))


@lru_cache(maxsize=2)
def _counts(count: int, draws: int, draw: int) -> Any:  # -> (draws, n)
    """How often each input is in each resampling: the same for all numbers of so many inputs."""
    found = np.zeros((draws, count))
    (drawn,) = _drawn(count, draws, draw, draws)
    np.add.at(found, (np.arange(draws)[:, None], drawn), 1.0)
    return found


def _levels(x: Any, means: Any, level: float) -> tuple[float, float]:
    """Which quantiles of the resampled means bound the interval: Phi(z0 + (z0 + z)/(1 - a (z0 +
    z))), z0 the bias of the median, a the skewness of the mean by the jackknife.
    """
    mean = x.mean()
    below = (np.sum(means < mean) + np.sum(means == mean) / 2) / len(means)
    z0 = NORMAL.inv_cdf(min(max(float(below), 0.5 / len(means)), 1 - 0.5 / len(means)))
    deviation = (x - mean) / np.abs(x - mean).max()  # cubes of small numbers would be 0
    a = float(np.sum(deviation**3) / (6 * np.sum(deviation**2) ** 1.5))
    tails = ((1 - level) / 2, (1 + level) / 2)
    shifted = [z0 + NORMAL.inv_cdf(tail) for tail in tails]
    low, high = (NORMAL.cdf(z0 + z / (1 - a * z)) if a * z < 1 else float(z > 0) for z in shifted)
    return low, high


def _quantile(means: Any, level: float) -> float:
    return float(np.quantile(means, min(max(level, 0.0), 1.0)))


# -- several methods -------------------------------------------------------------------------------


def best(
    columns: Mapping[str, Any], larger_is_better: bool = True, **how: Any
) -> tuple[str | None, bool]:  # label -> (n,)
    """The method of the best mean, and whether paired intervals say that it is better than every
    other; None where no mean is known. `how`: level, draws and draw of `paired`.
    """
    means = {label: summary(values).mean for label, values in columns.items()}
    known = {label: mean for label, mean in means.items() if math.isfinite(mean)}
    if not known:
        return None, False
    first = (max if larger_is_better else min)(known, key=known.__getitem__)
    others = [label for label in known if label != first]
    found = (paired(columns[first], columns[label], **how) for label in others)
    return first, bool(others) and all(d.says_better(larger_is_better) for d in found)
