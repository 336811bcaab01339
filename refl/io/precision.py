"""Which format holds some numbers, whatever dtype they lie in: files are written wider than their
numbers were computed, and cast to and fro.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy
from numpy.typing import NDArray

UNITS = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}
"""Format -> its unit roundoff, the coarsest first."""


def unit_roundoff(array: Any) -> float:
    """The unit roundoff of an array's dtype."""
    dtype = array.dtype
    return float(numpy.finfo(dtype).eps) / 2 if numpy.issubdtype(dtype, numpy.floating) else 0.0


def holds(format: str, array: Any) -> bool:
    """Whether every number of an array is one of a format of UNITS."""
    a: NDArray[Any] = numpy.asarray(array)
    narrow = numpy.float16 if format == "float16" else numpy.float32
    with numpy.errstate(all="ignore"):
        same = bool(numpy.array_equal(a.astype(narrow), a, equal_nan=True))
        if format != "bfloat16" or not same:
            return same
        bits = numpy.ascontiguousarray(a, dtype=numpy.float32).view(numpy.uint32)
    return not (bits & 0xFFFF).any()  # it is the upper half of float32


def held_in(arrays: Collection[Any], few: int = 0) -> float:
    """The unit roundoff of the coarsest format that holds every number of some arrays; that of
    their own dtypes where fewer than `few` are not 0, which may fit a narrow format by chance.
    """
    finest = max((unit_roundoff(a) for a in arrays), default=0.0)
    if sum(int(numpy.count_nonzero(a)) for a in arrays) < few:
        return finest
    for format, u in UNITS.items():
        if u > finest and all(holds(format, a) for a in arrays):
            return u
    return finest
