"""Embedding: a row of a table for each id          z_t = E[id_t]

    leaf    the way ends: R arrives on the tokens for role `tokens`, else it is absorbed under the
            role's name (`position`, `token_type`)

Ids are not numbers that could carry relevance. `leaf_gxi` is the same for R = z g.
"""

from __future__ import annotations

from refl.arrays import Array, namespace, total, total_product
from refl.rules.conservation import Forms, RuleOutput


def forward(table: Array, *, ids: Array, role: str) -> Array:  # (V, D), int (B, T) -> (B, T, D)
    xp = namespace(table, ids)
    rows = xp.take(table, xp.reshape(ids, (-1,)), axis=0)
    return xp.reshape(rows, (*ids.shape, table.shape[-1]))


def leaf(table: Array, z: Array, r: Array, *, ids: Array, role: str) -> RuleOutput:
    return RuleOutput((None,), {role: total(r)})


def leaf_gxi(table: Array, z: Array, g: Array, *, ids: Array, role: str) -> RuleOutput:
    return RuleOutput((None,), {role: total_product(z, g)})


CAUSES = {
    "position": "position embeddings",
    "token_type": "token type embeddings",
}
RULES = {"leaf": Forms(leaf, leaf_gxi)}
