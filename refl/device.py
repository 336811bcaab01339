"""Where arrays lie: on the host, or on a GPU. CuPy is imported here and nowhere else. And which
library multiplies matrices on the host.

What crosses in one explanation on a GPU. There go: weights at their first use, ids and attention
mask (or pixels), tables of constants (angles of rotary positions, T5's buckets), the seed, and
bounds of pixels that are not one number. Back come: the check for overflow and the logits at the
end of a forward, the ledger and what reached the input at the end of a sweep, and any site that is
looked at. In between a sweep neither waits nor sends. Only what numbers decide is an exception: of
a block with experts the choice of them comes back in the forward (and where the block is run again,
in the sweep), and the numbers of the rows that each reads go there; a decoder that classifies texts
looks at its ids. `tests/refl/test_transfers.py` counts all of it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from refl.arguments import received
from refl.arrays import Array
from refl.errors import ReflError
from refl.extras import install


def on_host(array: Any) -> Array:
    """The array itself: NumPy's are on the host."""
    return array


def placer(device: str) -> Callable[[Any], Array]:
    """NumPy array -> the same on the device. Raises ReflError where it cannot be had."""
    if not isinstance(device, str) or device not in ("cpu", "cuda"):
        raise ReflError(f"unknown device {received(device)}: expected cpu or cuda")
    if device == "cpu":
        return on_host
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
    except Exception as reason:  # CuPy raises its own kinds for a missing driver, library or card
        raise ReflError(
            f"device cuda needs CuPy and an NVIDIA GPU ({reason}): {install('cuda12')} (or cuda13)"
        ) from reason
    return cupy.asarray  # type: ignore[no-any-return]


ROOM_ON_HOST = 2 << 30
"""Bytes of weights that are kept on the host, where the files they are read from are mapped."""


def room(device: str) -> int:
    """How many bytes of weights are kept once they have been used. On a GPU half of the memory that
    is free: a tensor that is not kept is sent again for every operation and every rule that reads
    it.
    """
    if device == "cpu":
        return ROOM_ON_HOST
    import cupy

    free, _ = cupy.cuda.runtime.memGetInfo()
    return int(free) // 2


_KERNEL_NAMES = tuple(
    f"{prefix}openblas_get_corename{suffix}"
    for prefix in ("scipy_", "")
    for suffix in ("64_", "_64", "")
)
"""The function of OpenBLAS that names its kernel, as its builds are known to call it."""


def blas() -> dict[str, str]:
    """The library that multiplies NumPy's matrices, its version, and the kernel that it has chosen
    for this processor ("" for what cannot be told).

    The same library, kernel and NumPy give the same bits each time. Another kernel sums in another
    order: at 150 tokens in float32 that moved AttnLRP by up to 1.1e-3 of the largest at a site.
    OpenBLAS takes another one where OPENBLAS_CORETYPE names it.
    """
    built = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    about = {name: str(built.get(name, "")) for name in ("name", "version")}
    return about | {"kernel": _openblas_kernel()}


def _openblas_kernel() -> str:
    """Asked of the library itself, which NumPy's own extension has loaded; "" where it is another,
    or where the system does not look through what an extension loads (Windows).
    """
    try:
        library = ctypes.CDLL(sys.modules["numpy._core._multiarray_umath"].__file__)
    except (KeyError, OSError):
        return ""
    for name in _KERNEL_NAMES:
        if hasattr(library, name):
            function = getattr(library, name)
            function.restype = ctypes.c_char_p
            return (function() or b"").decode("ascii", "replace")
    return ""
