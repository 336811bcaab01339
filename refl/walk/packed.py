"""Arrays in a page: byte planes, deflated, base64.

Numbers lie one array after the other, and of each array first the first bytes of all numbers, then
the second bytes, and so on, most significant first: signs and exponents stand together and deflate
well. A float64 is rounded to its first six bytes, which have 36 bits of mantissa (7e-12 of it), or
five (2e-9): more than a page ever shows. Equal arrays are stored once.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

WIDTHS = {"f6": 6, "f5": 5, "f4": 4, "i4": 4, "u1": 1}
"""Bytes of a number of each kind."""

SHORTENED = ("f6", "f5")
KINDS = {"f4": ">f4", "i4": ">i4", "u1": "u1"}


@dataclass
class Packed:
    """Arrays put one by one; what refers to them keeps their numbers."""

    arrays: list[dict[str, Any]] = field(default_factory=list)
    """Of each: offset in the blob, count, kind."""
    planes: list[bytes] = field(default_factory=list)
    size: int = 0
    known: dict[bytes, int] = field(default_factory=dict)

    def put(self, array: Any, kind: str) -> int:
        """The number under which an array is found."""
        content = planes(np.asarray(array), kind)
        key = hashlib.blake2b(content, digest_size=16, person=kind.encode()).digest()
        if key not in self.known:
            self.known[key] = len(self.arrays)
            count = len(content) // WIDTHS[kind]
            self.arrays.append({"offset": self.size, "count": count, "kind": kind})
            self.planes.append(content)
            self.size += len(content)
        return self.known[key]

    def activations(self, array: Any) -> int:
        """What a page computes with."""
        return self.put(array, "f6")

    def relevance(self, array: Any) -> int:
        """What it mostly shows."""
        return self.put(array, "f5")

    def weights(self, array: Any) -> int:
        """Exactly, where they are no longer than float32, as in most checkpoints."""
        single = np.asarray(array, dtype=np.float32)
        return self.put(array, "f4" if np.array_equal(single, array) else "f6")

    def text(self) -> str:
        """All of it, as it stands in the page."""
        return base64.b64encode(zlib.compress(b"".join(self.planes), 9)).decode("ascii")


def planes(array: Any, kind: str) -> bytes:
    """The numbers' bytes, all first ones, then all second ones."""
    flat = _numbers(array.reshape(-1), kind)
    rows = np.frombuffer(flat.tobytes(), dtype=np.uint8).reshape(flat.size, flat.itemsize)
    return rows[:, : WIDTHS[kind]].T.tobytes()


def _numbers(flat: Any, kind: str) -> Any:
    if kind not in SHORTENED:
        return flat.astype(KINDS[kind])
    bits = flat.astype(np.float64).view(np.uint64)
    half = np.uint64(1 << (8 * (8 - WIDTHS[kind]) - 1))
    near = bits + half  # to nearest: what follows is cut off
    finite = np.isfinite(near.view(np.float64))  # but none becomes infinite
    return np.where(finite, near, bits).astype(">u8")
