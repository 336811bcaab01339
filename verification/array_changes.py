"""What can go wrong with an array along one of its axes: one number for all of it, its entries in
other places, some of them dropped.

Mistakes are planted with these (conformance/structural.py) and recognized (compare/structure.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from refl.arrays import Array

AlongAxis: TypeAlias = Callable[[Array, int], Array]
"""(array, axis) -> the array with that axis changed."""


def over(reduce: Callable[..., Array]) -> AlongAxis:
    """One number for the whole axis, in every place of it."""
    return lambda a, axis: np.broadcast_to(reduce(a, axis, keepdims=True), a.shape).copy()


def picked(places: Callable[[int], Any]) -> AlongAxis:
    """places: length of the axis -> which entry stands in each place."""
    return lambda a, axis: np.take(a, np.asarray(places(a.shape[axis])), axis)


def zeroed(places: Callable[[int], Any]) -> AlongAxis:
    """places: length of the axis -> which entries are dropped."""

    def change(a: Array, axis: int) -> Array:
        dropped = np.isin(np.arange(a.shape[axis]), places(a.shape[axis]))
        return np.where(dropped.reshape((-1,) + (1,) * (a.ndim - 1 - axis % a.ndim)), 0.0, a)

    return change


first_for_all = picked(lambda n: [0] * n)
last_for_all = picked(lambda n: [n - 1] * n)
without_first = zeroed(lambda n: [0])
without_last = zeroed(lambda n: [n - 1])
summed_up: AlongAxis = np.cumsum
