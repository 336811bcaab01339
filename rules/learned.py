"""Learned rows: a tensor of the checkpoint in the stream of activations          z_b = E
(a class token, positions)

    leaf    R is absorbed under the role's name (`position`, `class_token`)

The same for every example b, so that what it absorbs is known for each example apart. A table of
one axis is one row. `leaf_gxi` is the same for R = z g.
"""

from __future__ import annotations

from refl.arrays import Array, namespace, total, total_product
from refl.rules.conservation import Forms, RuleOutput


def forward(
    table: Array, beside: Array, *, role: str
) -> Array:  # (1, T, D) or (D,), (B, ...) -> (B, T, D)
    rows = table[None, None, :] if table.ndim == 1 else table
    return namespace(table).broadcast_to(rows, (beside.shape[0], *rows.shape[1:]))


def leaf(table: Array, beside: Array, z: Array, r: Array, *, role: str) -> RuleOutput:
    return RuleOutput((None, None), {role: total(r)})


def leaf_gxi(table: Array, beside: Array, z: Array, g: Array, *, role: str) -> RuleOutput:
    return RuleOutput((None, None), {role: total_product(z, g)})


CAUSES = {
    "class_token": "the learned token that stands for the class",
    "distillation_token": "the learned token that stands for the teacher's class",
    "register_token": "learned tokens that stand for no part of the picture",
}
RULES = {"leaf": Forms(leaf, leaf_gxi)}
