"""Where arrays lie: on the host, or on a GPU. CuPy is imported here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refl.arrays import Array
from refl.errors import ReflError


def placer(device: str) -> Callable[[Any], Array]:
    """NumPy array -> the same on the device. Raises ReflError where it cannot be had."""
    if device == "cpu":
        return lambda array: array
    if device != "cuda":
        raise ReflError(f"unknown device {device!r}: expected cpu or cuda")
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
    except Exception as reason:  # CuPy raises its own kinds for a missing driver, library or card
        raise ReflError(
            f"device cuda needs CuPy and an NVIDIA GPU ({reason}): pip install "
            "'refl-lrp[cuda12]' or [cuda13]"
        ) from reason
    return cupy.asarray  # type: ignore[no-any-return]
