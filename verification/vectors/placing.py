"""Where an array of one shape stands in another implementation's array of the same value."""

from __future__ import annotations

from typing import Any

import numpy as np


def place(a: Any, b: Any, padded: bool = True) -> tuple[int | slice, ...] | None:
    """Where a's elements stand in b: batch axes of one do not count; of many rows it is the only
    one with a number in it, where a is one row (the last, where none has any); beyond a's last
    there may be padding, which is zero, if `padded`. None where it does not fit."""
    ours, theirs = bare(a), bare(b)
    if ours == theirs:
        return ()
    before = (0,) * (b.ndim - len(theirs))
    inner = b.reshape(theirs)
    if theirs[1:] == ours:
        rows = rows_in_use(inner)
        row = int(rows[0]) if len(rows) else len(inner) - 1
        return (*before, row) if len(rows) <= 1 else None
    within = tuple(slice(0, n) for n in ours)
    if (
        padded
        and len(ours) == len(theirs)
        and all(n <= m for n, m in zip(ours, theirs, strict=True))
        and np.count_nonzero(inner) == np.count_nonzero(inner[within])
    ):
        return (*before, *within)
    return None


def misfit(a: Any, b: Any) -> str:
    """Why there is no place for a in b."""
    ours, theirs = bare(a), bare(b)
    if theirs[1:] == ours:
        count = len(rows_in_use(b.reshape(theirs)))
        return f"{count} of {theirs[0]} rows have relevance, where only the explained one may"
    return f"shape {tuple(b.shape)}, expected {tuple(a.shape)}"


def rows_in_use(b: Any) -> Any:
    """The rows with a number in them that is not 0."""
    return np.flatnonzero((b != 0).reshape(len(b), -1).any(axis=1))


def bare(a: Any) -> tuple[int, ...]:
    """The shape without leading ones."""
    shape = tuple(a.shape)
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape
