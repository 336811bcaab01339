"""Memory for large NumPy arrays that is used again.

A fresh array costs more than what is computed in it, for the system hands its pages out one by one,
each cleared. An array made here gives its memory back when the last view of it is gone, and the
next one of about its size takes it. What lies waiting is never more than makes up, with what is in
use, the most that was ever in use at once, nor more than `IDLE` bytes.
"""

from __future__ import annotations

import math
import os
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST = 1 << 18
"""Bytes from which on memory is used again; smaller pieces are quick to come by."""

IDLE = 1 << 30
"""Bytes that wait at most."""

STEPS = 8
"""Sizes between a power of two and the next: memory is at most an eighth larger than its array."""


class Buffers:
    """Memory by size."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # an array may die wherever one is made
        self._waiting: dict[int, list[NDArray[np.uint8]]] = {}
        self._used = self._idle = self._most = 0

    def empty(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """An array of any numbers."""
        needed = math.prod(shape) * np.dtype(dtype).itemsize
        if needed < LEAST:
            return np.empty(shape, dtype)
        lent = _Lent(self, self._take(_size(needed)), shape, np.dtype(dtype).str)
        return np.asarray(lent)

    def like(self, x: NDArray[Any]) -> NDArray[Any]:
        """One of the same shape, whose axes lie in memory in the same order."""
        order = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))
        made = self.empty(tuple(x.shape[axis] for axis in order), x.dtype)
        return made.transpose([order.index(axis) for axis in range(x.ndim)])

    def unlock(self) -> None:
        """In a child of a process one of whose threads may have held the lock."""
        self._lock = threading.RLock()

    def clear(self) -> None:
        """Lets go of what waits."""
        with self._lock:
            self._waiting, self._idle, self._most = {}, 0, self._used

    def _take(self, size: int) -> NDArray[np.uint8]:
        with self._lock:
            if self._waiting.get(size):
                memory = self._waiting[size].pop()
                self._idle -= size
            else:
                used = self._used + size
                self._drop(used + self._idle - max(self._most, used))
                memory = np.empty(size, np.uint8)
            self._used += size
            self._most = max(self._most, self._used)
            return memory

    def give_back(self, memory: NDArray[np.uint8]) -> None:
        with self._lock:
            self._used -= memory.nbytes
            self._idle += memory.nbytes
            self._waiting.setdefault(memory.nbytes, []).append(memory)
            self._drop(self._idle - IDLE)

    def _drop(self, surplus: int) -> None:
        """At least so many bytes, of the largest first."""
        for size in sorted(self._waiting, reverse=True):
            while surplus > 0 and self._waiting[size]:
                self._waiting[size].pop()
                self._idle -= size
                surplus -= size


class _Lent:
    """What NumPy takes for the owner of an array's memory."""

    __slots__ = ("__array_interface__", "buffers", "memory")

    def __init__(
        self, buffers: Buffers, memory: NDArray[np.uint8], shape: tuple[int, ...], kind: str
    ) -> None:
        self.buffers, self.memory = buffers, memory
        address = memory.__array_interface__["data"]
        self.__array_interface__ = {"shape": shape, "typestr": kind, "data": address, "version": 3}

    def __del__(self) -> None:
        self.buffers.give_back(self.memory)


def _size(needed: int) -> int:
    step = (1 << (needed - 1).bit_length()) // (2 * STEPS)
    return -(-needed // step) * step


BUFFERS = Buffers()

if hasattr(os, "register_at_fork"):  # the thread that may hold the lock is none of the child's
    os.register_at_fork(after_in_child=BUFFERS.unlock)
