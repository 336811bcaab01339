"""Learned rows: a tensor of the checkpoint that stands in the stream of activations (a class token, positions)          z_b = E

The same for every example b, so that its relevance is recorded for each example apart:

    leaf             R is absorbed under the role's name (`position`, `class_token`)
    leaf_gxi         the same for R = z g
"""

from __future__ import annotations

from refl.arrays import Array, namespace, total, total_product
from refl.rules.balance import RuleOutput


def forward(table: Array, beside: Array, *, role: str) -> Array:  # (1, T, D), (B, ...) -> (B, T, D)
    return namespace(table).broadcast_to(table, (beside.shape[0], *table.shape[1:]))


def leaf(table: Array, beside: Array, z: Array, r: Array, *, role: str) -> RuleOutput:
    return RuleOutput((None, None), {role: total(r)})


def leaf_gxi(table: Array, beside: Array, z: Array, g: Array, *, role: str) -> RuleOutput:
    return RuleOutput((None, None), {role: total_product(z, g)})
