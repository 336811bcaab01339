"""Gather: rows of each example, by number          z_bn = x_b,index[b][n]
(or a row of zeros where index[b][n] is None)

    pass_through    R_x[b, m] = R[b, n] for index[b][n] = m, zero for a row that was not taken; the
                    same for gradients

Absorbs nothing. A row is taken at most once. This is how tokens are dispatched to an expert: every
example keeps its own axis, and those with fewer tokens for the expert than others get rows of
zeros, which nothing reads and no relevance reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from refl.arrays import Array, device_of, namespace
from refl.rules.conservation import Forms, RuleOutput

Index: TypeAlias = tuple[tuple[int | None, ...], ...]
"""For each example, which row goes to each place; None for a place left empty."""


def forward(x: Array, *, index: Index) -> Array:  # (B, M, D), B times N -> (B, N, D)
    return rows(x, index)


def pass_through(
    x: Array, z: Array, r: Array, *, index: Index
) -> RuleOutput:  # r: (B, N, D) -> (B, M, D)
    return RuleOutput((back(r, index, x.shape[1]),), {})


def rows(x: Array, index: Index) -> Array:  # (B, M, D) -> (B, N, D)
    xp = namespace(x)
    count, (b, m, d) = len(index[0]), x.shape
    flat = [b * m if i is None else e * m + i for e, each in enumerate(index) for i in each]
    stacked = xp.reshape(x, (b * m, d))
    if b * m in flat:
        stacked = xp.concat([stacked, xp.zeros_like(stacked[:1, :])], axis=0)
    taken = xp.take(stacked, xp.asarray(flat, dtype=xp.int64, **device_of(x)), axis=0)
    return xp.reshape(taken, (b, count, d))


def back(r: Array, index: Index, length: int) -> Array:  # (B, N, D) -> (B, length, D)
    """Every row to where it came from, the others zero: gathering by the inverse numbering."""
    return rows(r, tuple(_inverse(each, length) for each in index))


def _inverse(each: Sequence[int | None], length: int) -> tuple[int | None, ...]:
    places: list[int | None] = [None] * length
    for n, i in enumerate(each):
        if i is not None:
            places[i] = n
    return tuple(places)


RULES = {"pass_through": Forms(pass_through, pass_through)}
