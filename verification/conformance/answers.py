"""What somebody's function gave back, as plain numbers: one copy in float64, made at once, that
nothing of his reaches any more.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from refl.verification.conformance.guarded import WrongAnswer

Array: TypeAlias = np.ndarray[Any, Any]
_KINDS = {"U": "strings", "S": "bytes", "O": "objects", "b": "truth values"}
LARGEST = 2**28
"""Numbers of an answer whose shape nothing says."""


def plain(x: Any, name: str, shape: tuple[int, ...] | None = None) -> Array:
    """x as an array in float64. Raises WrongAnswer for what is no array of real numbers, and for
    another shape than the one that is given.
    """
    found = _array(x)
    _refuse_kind(found, x, name)
    if shape is not None and found.shape != shape:
        raise WrongAnswer(f"{name} has the shape {found.shape}, expected {shape}")
    if found.size > LARGEST:
        raise WrongAnswer(f"{name} has the shape {found.shape}, which is too large to be compared")
    return np.array(found, dtype=np.float64, order="C", copy=True)


def _array(x: Any) -> Array:
    """A bare array, of whatever format: what a subclass says of itself counts for nothing."""
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise WrongAnswer("a masked array came back: fill what is masked, with zeros say")
    if isinstance(x, np.ndarray):
        return np.asarray(x)
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = x.float() if "bfloat16" in str(x.dtype) else x
    if hasattr(x, "__dlpack__") and not hasattr(x, "__array__"):
        return np.from_dlpack(x)
    return np.asarray(x)


def _refuse_kind(found: Array, x: Any, name: str) -> None:
    if found.dtype.kind in "fiu" or found.dtype.name == "bfloat16":
        return
    kind = (
        type(x).__name__
        if not isinstance(x, np.ndarray) and not found.ndim
        else _KINDS.get(found.dtype.kind, found.dtype.name)
    )
    hint = ", not even with imaginary parts of zero" if found.dtype.kind == "c" else ""
    raise WrongAnswer(f"{name} came back as {kind}, expected an array of real numbers{hint}")
