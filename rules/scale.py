"""Multiplication by a constant number          z = c x

    follow      R_x = R: one input, one output, no bias
    gradient    g_x = c g

Absorbs nothing.
"""

from __future__ import annotations

from refl.arrays import Array
from refl.rules.balance import Passed


def forward(x: Array, *, factor: float) -> Array:  # (...) -> (...)
    return x * factor


def follow(x: Array, z: Array, r: Array, *, factor: float) -> Passed:
    return Passed((r,), {})


def gradient(x: Array, z: Array, g: Array, *, factor: float) -> Passed:
    return Passed((g * factor,), {})
