"""Source: an input that is numbers from the start (the pixels of an image)          z = x

Here the way ends, as it does at an embedding, but entry by entry: every number of the input has its
own relevance.

    leaf             R arrives: at its destination for role `pixels`, else it is absorbed under the
                     role's name
    leaf_gxi         the same for R = z g
"""

from __future__ import annotations

from refl.arrays import Array, total, total_product
from refl.rules.balance import RuleOutput


def forward(*, values: Array, role: str) -> Array:  # (B, ...) -> (B, ...)
    return values


def leaf(z: Array, r: Array, *, values: Array, role: str) -> RuleOutput:
    return RuleOutput((), {role: total(r)})


def leaf_gxi(z: Array, g: Array, *, values: Array, role: str) -> RuleOutput:
    return RuleOutput((), {role: total_product(z, g)})
