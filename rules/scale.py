"""Multiplication by a constant number          z = c x

    pass_through    R_x = R: one input, one output, no bias
    gradient        g_x = c g: the true derivative, and pass_through in gradient x input form

Absorbs nothing.
"""

from __future__ import annotations

from refl.arrays import Array
from refl.rules.conservation import Forms, RuleOutput


def forward(x: Array, *, factor: float) -> Array:  # (...) -> (...)
    return x * factor


def pass_through(x: Array, z: Array, r: Array, *, factor: float) -> RuleOutput:
    return RuleOutput((r,), {})


def gradient(x: Array, z: Array, g: Array, *, factor: float) -> RuleOutput:
    return RuleOutput((g * factor,), {})


RULES = {"pass_through": Forms(pass_through, gradient)}
