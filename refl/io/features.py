"""Log-mel features, as transformers' WhisperFeatureExtractor makes them of sound: from an array, or
a file that numpy.save wrote, to what a net reads. Sound itself is not read.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from refl.arguments import expected
from refl.arrays import asnumpy
from refl.errors import ReflError, shown
from refl.io.files import read_bytes
from refl.io.images import Image

EXTRACTOR = (
    "they are what WhisperFeatureExtractor of transformers makes of sound, which refl does not read"
)


def are_one(item: Any) -> bool:
    """Whether it is the features of one sound, not a list (or an array of three axes) of them."""
    if isinstance(item, (list, tuple)):
        if not item:
            raise ReflError("the input is empty: expected log-mel features")
        return False
    return bool(getattr(item, "ndim", 0) <= 2)


def features(item: Any, size: tuple[int, int], dtype: str) -> Image:
    """Floats (mel, frames), or the path of a file .npy that holds them -> a picture of one channel.

    Raises ReflError, in one sentence, for anything else, and for features of another size.
    """
    if isinstance(item, Image):
        return item
    array = _loaded(item, size) if isinstance(item, (str, Path)) else _array(item)
    if array.shape != size or array.dtype.kind != "f":
        raise ReflError(
            f"the log-mel features have shape {tuple(array.shape)} and dtype {array.dtype}: "
            f"expected floats {size}, (mel bins, frames), padded to that length; {EXTRACTOR}"
        )
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if not np.isfinite(cast).all():
        raise ReflError(
            f"the log-mel features hold numbers that are not finite in {dtype}: expected none"
        )
    return Image(cast[None], _drawn(cast))


def _array(item: Any) -> Any:
    try:
        return asnumpy(item) if hasattr(item, "__array_namespace__") else np.asarray(item)
    except Exception as reason:
        raise expected("the input", f"log-mel features ({EXTRACTOR})", item) from reason


def _loaded(path: str | Path, size: tuple[int, int]) -> Any:
    """What numpy.save wrote; a file of objects, which could run code, is refused."""
    name = shown(str(path))
    if not str(path).endswith(".npy"):
        raise ReflError(
            f"{name} is no file .npy: expected the log-mel features that numpy.save wrote; "
            f"{EXTRACTOR}"
        )
    raw = read_bytes(Path(path), 16 * size[0] * size[1] + 4096)
    try:
        return np.load(BytesIO(raw), allow_pickle=False)
    except Exception as reason:  # noqa: BLE001 - an array of objects, or no array at all
        raise ReflError(f"{name} cannot be read as .npy: {shown(str(reason))}") from None


def _drawn(x: Any) -> Any:  # (mel, frames) -> uint8 (mel, frames, 1)
    """From the softest in black to the loudest in white."""
    x = x.astype(np.float64) / (np.abs(x).max() or 1.0)  # so that no difference is infinite
    low, high = float(x.min()), float(x.max())
    return np.rint((x - low) * (255 / (high - low or 1.0))).astype(np.uint8)[..., None]
