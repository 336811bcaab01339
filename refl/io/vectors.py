"""A vector from a file, .npy or .safetensors: what the features of a checkpoint are compared to."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from refl.errors import ReflError, shown
from refl.io.files import read_bytes
from refl.io.safetensors import read_safetensors

_LIMIT = 16 << 20


def read_vector(path: str | Path) -> Any:  # -> NumPy (D,)
    """The one vector in a file. Raises ReflError for a file that cannot be read, and for one that
    holds no vector, or several.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        arrays, _ = read_safetensors(path)
        if len(arrays) != 1:
            raise ReflError(f"{shown(path)} holds {len(arrays)} tensors: expected one, the vector")
        (found,) = arrays.values()
    elif path.suffix == ".npy":
        found = _npy(path)
    else:
        raise ReflError(f"{shown(path)} is no file of a vector: expected .npy or .safetensors")
    if found.ndim == 2 and len(found) == 1:  # an embedding is often a batch of one
        found = found[0]
    if found.ndim != 1:
        raise ReflError(f"{shown(path)} holds shape {found.shape}: expected a vector (D,)")
    return found


def _npy(path: Path) -> Any:
    raw = read_bytes(path, _LIMIT)
    try:
        return np.load(BytesIO(raw), allow_pickle=False)
    except Exception as reason:  # noqa: BLE001 - an array of objects, or no array at all
        raise ReflError(f"{shown(path)} cannot be read as .npy: {shown(reason)}") from None
