"""What a rule returns, and the division every rule of the epsilon family makes.

The balance of a rule, exactly:    sum(R) = sum over operands of sum(R_operand) + absorbed

Every rule is called as  rule(*operands, z, r, **attributes of the operation, **options of the rule)
                         with z the
operation's output and r the relevance that arrived there (or, where a composite is in gradient x
input form, the gradient g with R = z g). The first axis of every array counts examples: absorbed
entries are sums per example, never across examples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from refl.arrays import Array, namespace, sign_up, total, total_product

STABILIZERS = ("sign", "plain", "none")


class RuleOutput(NamedTuple):
    """What a rule made of r."""

    inputs: tuple[Array | None, ...]
    """For each operand what it receives, in its shape; None for parameters and for operands that
    get nothing.
    """
    absorbed: dict[str, Array]
    """Entry -> (B,) float64, each from its closed form, never as the difference of the two
    sides.
    """
    rounding_scale: Callable[[], Array] | None = None
    """Sum of |terms| per example, (B,): the scale of the rule's rounding. None: the terms are the
    relevances themselves.
    """


def share(
    z: Array, r: Array, eps: float, stabilizer: str
) -> tuple[Array, Array]:  # (B, ...) -> s (B, ...), taken (B,)
    """s = r / (z + eps s(z)), and what the stabilizer takes:  sum eps s(z) s.

    `sign`: s(z) = +1 for z >= 0, -1 below (AttnLRP eq. 5). `plain`: the sign is always + (LXT's
    relevance form). `none`: nothing is added, and the relevance of an output that is exactly zero,
    which no finite share can pass on, is what is taken.
    """
    xp = namespace(z, r)
    if stabilizer == "none":
        return _unstabilized(z, r)
    e = sign_up(eps, z) if stabilizer == "sign" else xp.zeros_like(z) + eps
    d = z + e
    if (
        stabilizer == "plain"
    ):  # z = -eps: the denominator vanishes, as it does in the libraries that code it so
        return _unstabilized(d, r, e)
    s = r / d
    return s, total_product(s, e)


def _unstabilized(d: Array, r: Array, e: Array | None = None) -> tuple[Array, Array]:
    xp = namespace(d, r)
    dead = d == 0
    s = xp.where(dead, xp.zeros_like(r), r / xp.where(dead, xp.ones_like(d), d))
    taken = total(xp.where(dead, r, xp.zeros_like(r)))
    return s, taken if e is None else taken + total_product(s, e)
