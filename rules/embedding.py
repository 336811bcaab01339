"""Embedding: a row of a table for each id          z_t = E[id_t]

Ids are not numbers that could carry relevance, so here the way ends:

    stop             R arrives: on the tokens for role `tokens`, else it is absorbed under the role's name (`position`)
    stop_gradient    the same for R = z g
"""

from __future__ import annotations

from refl.arrays import Array, namespace, total, total_product
from refl.rules.balance import Passed


def forward(table: Array, *, ids: Array, role: str) -> Array:  # (V, D), int (B, T) -> (B, T, D)
    xp = namespace(table, ids)
    rows = xp.take(table, xp.reshape(ids, (-1,)), axis=0)
    return xp.reshape(rows, (*ids.shape, table.shape[-1]))


def stop(table: Array, z: Array, r: Array, *, ids: Array, role: str) -> Passed:
    return Passed((None,), {role: total(r)})


def stop_gradient(table: Array, z: Array, g: Array, *, ids: Array, role: str) -> Passed:
    return Passed((None,), {role: total_product(z, g)})
