"""The balance of a rule, and the division that every rule of the epsilon family makes.

    sum(R) = sum over operands of sum(R_operand) + absorbed          exactly, for every example

A rule is a function  rule(*operands, z, r, **attributes of the operation, **options of the rule):
z is the operation's output, r the relevance of z in relevance form, and in gradient x input form
the g with R = z g. What comes back for an operand is in the same form. The names of rules in
gradient x input form end in `_gxi`; `gradient` is the true derivative, and the gradient x input
form of the epsilon rule wherever the operation is linear.

The first axis of every array counts examples: absorbed entries are sums per example, never across.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from refl.arrays import Array, fused, namespace, sign_up, total, total_product

STABILIZERS = ("sign", "plain", "none")


class RuleOutput(NamedTuple):
    """What a rule makes of r."""

    inputs: tuple[Array | None, ...]
    """For each operand what it receives, in its shape;
    None for parameters and for operands that get nothing."""
    absorbed: dict[str, Array]
    """Cause -> (B,) float64, each from its closed form, never as the difference of two sides."""


class Forms(NamedTuple):
    """A rule in relevance form and in gradient x input form; None where there is none."""

    relevance: Callable[..., RuleOutput] | None
    gradient_x_input: Callable[..., RuleOutput] | None = None


def stabilized_ratio(
    z: Array, r: Array, eps: float, stabilizer: str
) -> tuple[Array, Array]:  # (B, ...) -> s (B, ...), absorbed (B,)
    """s = r / (z + eps s(z)), and what the stabilizer absorbs: sum eps s(z) s.

    `sign`: s(z) = +1 for z >= 0, -1 below (AttnLRP eq. 5). `plain`: the sign is always + (LXT's
    relevance form). `none`: nothing is added, and the relevance of an output that is exactly zero,
    or so near to it that the ratio is beyond the dtype, which no finite ratio can pass on, is what
    is absorbed.
    """
    xp = namespace(z, r)
    if stabilizer == "none":
        return _unstabilized_ratio(z, r)
    if stabilizer == "plain":  # z = -eps: the denominator vanishes, as in libraries that code it so
        e = xp.zeros_like(z) + eps
        return _unstabilized_ratio(z + e, r, e)
    s, e = _signed_ratio(z, r, eps, 2 * eps)
    return s, total_product(s, e)


@fused
def _signed_ratio(
    z: Array, r: Array, eps: float, twice: float
) -> tuple[Array, Array]:  # -> s, eps s(z)
    e = sign_up(eps, twice, z)
    return r / (z + e), e


def _unstabilized_ratio(d: Array, r: Array, e: Array | None = None) -> tuple[Array, Array]:
    s, lost = _finite_ratio(d, r, float(namespace(d, r).finfo(d.dtype).max))
    absorbed = total(lost)
    return s, absorbed if e is None else absorbed + total_product(s, e)


@fused
def _finite_ratio(d: Array, r: Array, most: float) -> tuple[Array, Array]:
    """r / d, and r where that is more than `most`, the largest number of the dtype: there the ratio
    is 0.
    """
    xp = namespace(d, r)
    dead = xp.abs(d) <= xp.abs(r) / most
    return xp.where(dead, 0.0, r / xp.where(dead, 1.0, d)), xp.where(dead, r, 0.0)
