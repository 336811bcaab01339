"""Histograms of activations, exact however the corpus is cut

    bin i holds    i 2^e <= x < (i + 1) 2^e

e is the smallest exponent with which at most 64 bins reach from the smallest to the largest value,
and 2^e at least 2^-24 of the largest size. A finer bin lies in one coarser bin whole, so counts are
merged two and two where e grows, and nothing depends on the order in which values came, or on who
counted them. The mean is that of the exact sum: a sum of floats is a whole number of 2^-1074.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

BINS = 64
FINEST = 24
"""Bits of the largest value that the width of a bin keeps at most."""
LEAST = -1074
"""Exponent of the smallest float above 0."""


@dataclass(frozen=True)
class Histogram:
    """The activations of one neuron or head at every position.

    width, first     bin i reaches from (first + i) width to (first + i + 1) width
    counts           of each bin, from the smallest value's to the largest's
    count, above     values, and those above 0
    """

    width: float
    first: int
    counts: tuple[int, ...]
    count: int
    above: int
    mean: float | None
    smallest: float | None
    largest: float | None

    @property
    def edges(self) -> list[float]:
        """Of the bins, one more than there are bins."""
        some = range(len(self.counts) + 1 if self.counts else 0)
        return [(self.first + i) * self.width for i in some]

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self)) | {"counts": list(self.counts)}


@dataclass(frozen=True, eq=False)
class Histograms:
    """Of N neurons or heads, each with arrays (N,), or (N, BINS)."""

    low: Any
    high: Any
    exponent: Any
    first: Any
    bins: Any
    above: Any
    sums: Any
    """Exact, Python's integers: in units of 2^LEAST."""

    @classmethod
    def nothing(cls, size: int) -> Self:
        """Of no value yet."""
        low, sums = np.full(size, np.inf), np.zeros(size, dtype=object)
        first, above = np.zeros((2, size), dtype=np.int64)
        bins = np.zeros((size, BINS), dtype=np.int64)
        return cls(low, -low, np.full_like(first, LEAST), first, bins, above, sums)

    @classmethod
    def of(cls, x: Any) -> Self:  # float64 (R, N)
        """Of R values of each."""
        if not len(x):
            return cls.nothing(x.shape[1])
        low, high = x.min(axis=0) + 0.0, x.max(axis=0) + 0.0  # -0.0 is 0.0, whichever came first
        e = _exponents(low, high)
        first = _index(low, e)
        size = x.shape[1]
        places = _index(x, e) - first + BINS * np.arange(size)
        bins = np.bincount(places.ravel(), minlength=BINS * size).reshape(size, BINS)
        return cls(low, high, e, first, bins, (x > 0).sum(axis=0), exact_sums(x))

    def and_(self, other: Self) -> Self:
        """Of the values of both."""
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        e = _exponents(low, high)
        first = _index(np.where(low <= high, low, 0.0), e)
        bins = self._rebinned(e, first) + other._rebinned(e, first)
        above, sums = self.above + other.above, self.sums + other.sums
        return type(self)(low, high, e, first, bins, above, sums)

    def _rebinned(self, exponent: Any, first: Any) -> Any:  # -> (N, BINS)
        """Into bins that are as wide, or wider."""
        shift = np.minimum(exponent - self.exponent, 63)[:, None]
        places = ((self.first[:, None] + np.arange(BINS)) >> shift) - first[:, None]
        rows, bins = np.nonzero(self.bins)
        flat = rows * BINS + places[rows, bins]
        found = np.zeros(self.bins.size, dtype=np.int64)
        np.add.at(found, flat, self.bins[rows, bins])
        return found.reshape(self.bins.shape)

    # -- one of them -------------------------------------------------------------------------------

    def histogram(self, n: int) -> Histogram:
        count = int(self.bins[n].sum())
        if not count:
            return Histogram(0.0, 0, (), 0, 0, None, None, None)
        return Histogram(
            width=2.0 ** int(self.exponent[n]),
            first=int(self.first[n]),
            counts=self._counts(n),
            count=count,
            above=int(self.above[n]),
            mean=self.sums[n] / (count << -LEAST),
            smallest=float(self.low[n]),
            largest=float(self.high[n]),
        )

    def _counts(self, n: int) -> tuple[int, ...]:
        last = int(np.flatnonzero(self.bins[n])[-1])
        return tuple(int(c) for c in self.bins[n][: last + 1])

    # -- in a file ---------------------------------------------------------------------------------

    def row(self, n: int) -> dict[str, Any]:
        """Of one, as JSON has it; `sum`: floats that add up to it exactly."""
        if not self.bins[n].any():
            return {}
        return {
            "smallest": float(self.low[n]),
            "largest": float(self.high[n]),
            "exponent": int(self.exponent[n]),
            "first": int(self.first[n]),
            "counts": list(self._counts(n)),
            "above": int(self.above[n]),
            "sum": _floats(self.sums[n]),
        }

    @classmethod
    def from_rows(cls, rows: list[dict[str, Any]]) -> Self:
        """Raises KeyError, TypeError or ValueError for what is none."""
        found = cls.nothing(len(rows))
        for n, row in enumerate(rows):
            if row:
                found.low[n], found.high[n] = row["smallest"], row["largest"]
                found.exponent[n], found.first[n] = row["exponent"], row["first"]
                found.bins[n, : len(row["counts"])] = row["counts"]
                found.above[n] = row["above"]
                found.sums[n] = sum(map(_scaled, row["sum"]))
        return found


# -- bins ------------------------------------------------------------------------------------------


def _exponents(low: Any, high: Any) -> Any:  # (N,), (N,) -> (N,)
    """The smallest that will do; LEAST where there is nothing, or nothing but 0."""
    empty = low > high
    low, high = np.where(empty, 0.0, low), np.where(empty, 0.0, high)
    least = _least_exponent(np.maximum(-low, high))
    with np.errstate(over="ignore"):
        near = np.where(high > low, np.frexp(high - low)[1] - 7, LEAST)
    e = np.maximum(least, near).astype(np.int64)
    while (wide := _index(high, e) - _index(low, e) >= BINS).any():
        e = e + wide
    return e


def _least_exponent(largest: Any) -> Any:
    bits = np.frexp(largest)[1].astype(np.int64) - FINEST
    return np.where(largest > 0, np.maximum(bits, LEAST), LEAST)


def _index(x: Any, e: Any) -> Any:  # (..., N), (N,) -> int (..., N)
    """floor(x / 2^e); a number below 0 is never in bin 0, however small."""
    found = np.floor(np.ldexp(x, -e)).astype(np.int64)
    return np.where((x < 0) & (found == 0), -1, found)


# -- exact sums ------------------------------------------------------------------------------------

WINDOW = 8
"""Values whose exponents lie in a window of so many are added at once. Each has 27 bits at most, so
no sum of 2^18 of them has more than 53.
"""
MOST = 1 << 18


def exact_sums(x: Any) -> Any:  # float64 (R, N) -> Python's integers (N,), in units of 2^LEAST
    """The exact sum of every column."""
    found = np.zeros(x.shape[1], dtype=object)
    for start in range(0, len(x), MOST):
        for part in _short(x[start : start + MOST]):
            for window, row in _sums_by_exponent(part):
                whole = [_times(_scaled(v), WINDOW * window) for v in row.tolist()]
                found = found + np.array(whole, dtype=object)
    return found


def _short(x: Any) -> list[Any]:
    """x as a sum of arrays whose values have 27 bits at most: the higher half, and the rest."""
    fraction, e = np.frexp(x)
    high = np.ldexp(np.trunc(np.ldexp(fraction, 26)), e - 26)
    rest = x - high
    return [high, rest] if rest.any() else [high]


def _sums_by_exponent(x: Any) -> Iterator[tuple[int, Any]]:  # (R, N) -> (N,) each
    """Of each window the sums of its values over 2^(WINDOW window), exact."""
    window = np.frexp(x)[1].astype(np.int64) // WINDOW
    lowest, size = int(window.min()), x.shape[1]
    places = (window - lowest) * size + np.arange(size)
    scaled = np.ldexp(x, -WINDOW * window)
    most = (int(window.max()) + 1 - lowest) * size
    sums = np.bincount(places.ravel(), weights=scaled.ravel(), minlength=most)
    for number, row in enumerate(sums.reshape(-1, size), lowest):
        if row.any():
            yield number, row


def _scaled(x: float) -> int:
    """x / 2^LEAST."""
    numerator, denominator = x.as_integer_ratio()
    return numerator << (1 - LEAST - denominator.bit_length())


def _times(number: int, power: int) -> int:
    """number 2^power, where that is whole."""
    return number << power if power >= 0 else number >> -power


def _floats(total: int) -> list[float]:
    """Each the float nearest to what those before leave; their exact sum is the total."""
    found: list[float] = []
    while total:
        found.append(_nearest(total))
        total -= _scaled(found[-1])
    return found


def _nearest(total: int) -> float:
    try:
        return total / (1 << -LEAST)
    except OverflowError:
        return sys.float_info.max if total > 0 else -sys.float_info.max
