"""The k largest of many values, and where they stand: a value before a smaller one; of equal ones
that of the earlier input, then of the earlier position. So the answer depends on no order in which
they come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np


@dataclass(frozen=True, eq=False)
class Best:
    """Of N neurons or heads, arrays (N, m): values from the largest down, minus infinity where
    there are no more; the line of the input, and the position in it.
    """

    values: Any
    lines: Any
    positions: Any

    @classmethod
    def nothing(cls, size: int) -> Self:
        none = np.zeros((size, 0), dtype=np.int64)
        return cls(none.astype(np.float64), none, none)

    @classmethod
    def of(cls, x: Any, lines: Any, positions: Any, every_position: bool) -> Self:
        """Of B inputs of n positions: x (B, n, N), minus infinity where there is none; lines (B,);
        positions (B, n), from the first on. Of each input its best position, or every one.
        """
        if not x.size:
            return cls.nothing(x.shape[2])
        if every_position:
            flat = np.broadcast_to(lines[:, None], positions.shape).reshape(-1, 1)
            places = _across(positions.reshape(-1, 1), x.shape[2])
            return cls(x.reshape(-1, x.shape[2]).T, _across(flat, x.shape[2]), places)
        at = x.argmax(axis=1)
        values = np.take_along_axis(x, at[:, None], axis=1)[:, 0]
        return cls(
            values.T,
            _across(lines[:, None], x.shape[2]),
            np.take_along_axis(positions, at, axis=1).T,
        )

    def and_(self, other: Self, k: int) -> Self:
        """The k best of both."""
        both = [
            np.concatenate(pair, axis=1)
            for pair in zip(vars(self).values(), vars(other).values(), strict=True)
        ]
        values, lines, positions = both
        order = np.lexsort((positions, lines, -values), axis=-1)[:, :k]
        return type(self)(*(np.take_along_axis(a, order, axis=1) for a in both))

    # -- in a file ---------------------------------------------------------------------------------

    def row(self, n: int, sign: int = 1) -> list[list[Any]]:
        """Of one: [line, position, value] each; `sign` -1 where the smallest were looked for."""
        triples = zip(self.lines[n], self.positions[n], self.values[n], strict=True)
        return [[int(a), int(t), sign * float(v)] for a, t, v in triples if v > -np.inf]

    @classmethod
    def from_rows(cls, rows: list[list[list[Any]]], sign: int = 1) -> Self:
        """As wide as the longest row. Raises TypeError or ValueError for what is none."""
        shape = len(rows), max(map(len, rows), default=0)
        numbers = np.zeros((2, *shape), dtype=np.int64)
        found = cls(np.full(shape, -np.inf), *numbers)
        for n, row in enumerate(rows):
            for i, (line, position, value) in enumerate(row):
                found.lines[n, i], found.positions[n, i] = line, position
                found.values[n, i] = sign * value
        return found


def _across(column: Any, size: int) -> Any:  # (m, 1) -> (size, m)
    return np.broadcast_to(column.T, (size, len(column)))
