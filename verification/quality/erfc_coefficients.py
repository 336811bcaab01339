"""Where the coefficients of `refl.arrays.erfc` come from: a Chebyshev fit in 60-digit arithmetic.

    erfc(x) = exp(-x^2) P(t) / (x + K),   t = (x - K)/(x + K),   x >= 0

P is smooth on t in [-1, 1], which is x in [0, inf): at t = 1 it tends to 1/sqrt(pi). Run as a
script it prints the tables: degree 22 for float64, and 11 for float32, with a relative error of
5e-9, a twelfth of the unit roundoff.
"""

from __future__ import annotations

from typing import Any

import mpmath as mp

K = 4


def fit(degree: int, nodes: int = 64) -> list[Any]:  # -> degree + 1 coefficients of t^0, t^1, ...
    """Monomial coefficients of P, by interpolation at Chebyshev
    nodes and truncation to `degree`.
    """
    with mp.workdps(60):
        angles = [mp.pi * (j + mp.mpf(1) / 2) / nodes for j in range(nodes)]
        values = [_scaled(mp.cos(a)) for a in angles]
        series = [
            2 * mp.fsum(v * mp.cos(m * a) for v, a in zip(values, angles, strict=True)) / nodes
            for m in range(degree + 1)
        ]
        series[0] /= 2
        return _monomials(series)


def _scaled(t: Any) -> Any:
    x = K * (1 + t) / (1 - t)
    return mp.erfc(x) * mp.exp(x * x) * (x + K)


def _monomials(series: list[Any]) -> list[Any]:
    """sum_m c_m T_m(t) as a polynomial, by T_(m+1) = 2 t T_m - T_(m-1)."""
    before, now = [mp.mpf(1)], [mp.mpf(0), mp.mpf(1)]
    result = [mp.mpf(0)] * len(series)
    for c in series:
        for power, a in enumerate(before):
            result[power] += c * a
        after = [mp.mpf(0)] + [2 * a for a in now]
        for power, a in enumerate(before):
            after[power] -= a
        before, now = now, after
    return result


if __name__ == "__main__":
    for bits, degree in ((64, 22), (32, 11)):
        print(f"    {bits}: (")
        for coefficient in fit(degree):
            print(f"        {float(coefficient)!r},")
        print("    ),")
