"""A number that keeps count of its own rounding: 60 digits, and beside them how far floating point
may be from them.

Any formula written for plain numbers (those of exact.py) can be run on these. What comes out is its
value and its *condition*: the sum, to first order, of what one relative rounding of every factor,
product, quotient and partial sum can move, in units of the unit roundoff u. An implementation that
rounds each of its steps once is off by at most  units * u * condition  with a small `units`.
(Running error analysis: Wilkinson 1963; Higham 2002, Accuracy and Stability of Numerical
Algorithms, section 3.3.)

A sum of n terms counts (n - 1) times the sum of their absolute values, which holds in whatever
order they are added. Where every order gives the exact sum, because all terms are multiples of one
power of two and none leaves the format, nothing is counted: sums of small whole numbers are exact,
so a denominator that cancels to zero there is zero for everyone.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from refl.verification.definitions.exact import MP

SIGNIFICANT = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}
"""Bits of the significand; the unit roundoff is 2^-bits."""

CLEARANCE = 8.0
"""A denominator, or the sign of a number, has to stand this many
times its possible error away from zero.
"""

SMALLEST, SMALLEST_SINGLE = 2.0**-1022, 2.0**-126
"""The least normal numbers of float64 and float32 (in which half precision is worked out): below
them digits are lost, and then the number.
"""


class RoundingDecides(ArithmeticError):
    """Rounding decides: two right implementations may differ by as
    much as they like on these numbers.
    """


class TrackedNumber:
    """value: mpf. error: in units of u. size: sum of |terms| it was added up from. grid: log2 of
    the power of two it is a multiple of.
    """

    __slots__ = ("bits", "error", "grid", "size", "value")

    def __init__(
        self,
        value: Any,
        bits: int,
        error: float = 0.0,
        size: float | None = None,
        grid: int | None = None,
    ) -> None:
        self.value = value
        self.bits = bits
        self.error = error
        self.size = abs(float(value)) if size is None else size
        self.grid = _grid(value) if grid is None else grid

    def _other(self, other: Any) -> TrackedNumber:
        return other if isinstance(other, TrackedNumber) else tracked(other, self.bits)

    # -- arithmetic --------------------------------------------------------------------------------

    def __add__(self, other: Any) -> TrackedNumber:
        b = self._other(other)
        for zero, rest in ((self, b), (b, self)):
            if not zero.size and not zero.error:
                return rest
        size, grid = self.size + b.size, min(self.grid, b.grid)
        exact = (
            not self.error and not b.error and size <= math.ldexp(1.0, min(grid + self.bits, 1000))
        )
        return TrackedNumber(
            self.value + b.value,
            self.bits,
            0.0 if exact else self.error + b.error + size,
            size,
            grid,
        )

    def __neg__(self) -> TrackedNumber:
        return TrackedNumber(-self.value, self.bits, self.error, self.size, self.grid)

    def __sub__(self, other: Any) -> TrackedNumber:
        return self.__add__(-self._other(other))

    def __rsub__(self, other: Any) -> TrackedNumber:
        return (-self).__add__(other)

    def __mul__(self, other: Any) -> TrackedNumber:
        b = self._other(other)
        value = self.value * b.value
        error = abs(float(self.value)) * b.error + abs(float(b.value)) * self.error
        return TrackedNumber(value, self.bits, error + self._rounding(value, b))

    def __truediv__(self, other: Any) -> TrackedNumber:
        b = self._other(other)
        b.demand_sign()
        value = self.value / b.value
        error = (self.error + abs(float(value)) * b.error) / abs(float(b.value))
        return TrackedNumber(value, self.bits, error + self._rounding(value, b))

    def __rtruediv__(self, other: Any) -> TrackedNumber:
        return self._other(other) / self

    def __pow__(self, n: int) -> TrackedNumber:
        power: TrackedNumber = self if n == 1 else self * self.__pow__(n - 1)
        return power

    __radd__, __rmul__ = __add__, __mul__

    def _rounding(self, value: Any, b: TrackedNumber) -> float:
        """Of a product or quotient: none by a power of two,
        none of exact numbers whose result the format holds.
        """
        power_of_two = _bits(b.value) <= 1 or _bits(self.value) == 0
        held = not self.error and not b.error and _bits(value) <= self.bits
        return 0.0 if power_of_two or held else abs(float(value))

    # -- comparison: refused where rounding decides ------------------------------------------------

    def demand_sign(self) -> None:
        if self.error and abs(float(self.value)) <= CLEARANCE * math.ldexp(self.error, -self.bits):
            raise RoundingDecides(
                f"{float(self.value)} may be off by {math.ldexp(self.error, -self.bits)}"
            )
        if self.error and 0 < abs(self.value) < (SMALLEST if self.bits == 53 else SMALLEST_SINGLE):
            raise RoundingDecides(f"{float(self.value)} underflows")

    def _less(self, other: Any) -> Any:
        """The difference, whose sign is certain."""
        b = self._other(other)
        difference = self - b
        if self.error or b.error:
            difference.demand_sign()
        return difference.value

    def __lt__(self, other: Any) -> bool:
        return bool(self._less(other) < 0)

    def __gt__(self, other: Any) -> bool:
        return bool(self._less(other) > 0)

    def __ge__(self, other: Any) -> bool:
        return bool(self._less(other) >= 0)

    def __eq__(self, other: object) -> bool:
        return bool(self._less(other) == 0)

    __hash__ = None  # type: ignore[assignment]

    def __float__(self) -> float:
        return float(self.value)

    # -- functions ---------------------------------------------------------------------------------

    def function(self, name: str) -> TrackedNumber:
        """exp, sqrt, erfc, tanh or cosh, with two roundings for the library that computes it."""
        value = getattr(MP, name)(self.value)
        if name == "exp" and not self.value and not self.error:
            return TrackedNumber(value, self.bits)  # exp(0) is 1 for everyone
        slope = abs(float(_SLOPES[name](self.value, value))) if self.error else 0.0
        return TrackedNumber(value, self.bits, slope * self.error + 2 * abs(float(value)))


_SLOPES: dict[str, Any] = {
    "exp": lambda x, f: f,
    "sqrt": lambda x, f: 1 / (2 * f) if f else MP.inf,
    "erfc": lambda x, f: 2 / MP.sqrt(MP.pi) * MP.exp(-x * x),
    "tanh": lambda x, f: 1 - f * f,
    "cosh": lambda x, f: MP.sinh(x),
}


def tracked(x: Any, bits: int) -> TrackedNumber:
    """A number that the caller gives. A format that cannot hold it
    (eps = 1e-6 in float32) rounds it once.
    """
    value = MP.mpf(x.numerator) / x.denominator if isinstance(x, Fraction) else MP.mpf(x)
    return TrackedNumber(value, bits, 0.0 if _bits(value) <= bits else abs(float(value)))


def _bits(value: Any) -> int:
    """Significant bits of an mpf: 0 for zero, 1 for a power of two."""
    return int(value._mpf_[3])


def _grid(value: Any) -> int:
    return int(value._mpf_[2]) if value else 10_000
