"""Source: an input that is numbers from the start (the pixels of an image)          z = x

    leaf    the way ends: R arrives at its destination for role `pixels`, else it is absorbed under
            the role's name

As at an embedding, but entry by entry: every number of the input has its own relevance. `leaf_gxi`
is the same for R = z g.
"""

from __future__ import annotations

from refl.arrays import Array, total, total_product
from refl.rules.conservation import Forms, RuleOutput


def forward(*, values: Array, role: str) -> Array:  # (B, ...) -> (B, ...)
    return values


def leaf(z: Array, r: Array, *, values: Array, role: str) -> RuleOutput:
    return RuleOutput((), {role: total(r)})


def leaf_gxi(z: Array, g: Array, *, values: Array, role: str) -> RuleOutput:
    return RuleOutput((), {role: total_product(z, g)})


CAUSES = {
    "edge": "zeros at the ends of what a convolution reaches over",
    "edit": "what an edit added or put in place",
}
RULES = {"leaf": Forms(leaf, leaf_gxi)}
