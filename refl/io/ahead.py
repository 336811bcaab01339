"""Large tensors are widened by two threads, and before they are asked for.

What is not kept has to be brought from the file to the dtype of the computation at each use. The
thread that asks for a tensor and a helper do that together, a stretch each at a time. Once it is
handed out, the helper goes on to the tensor that will likely be asked for next, while this one is
being multiplied; where the guess was wrong, that work is dropped. So at most two tensors that no
net has asked for yet, or not any longer, are held beside those in use. No bit depends on any of it.

A helper is a thread for one tensor. It ends with it, and where the weights go before.
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy
from numpy.typing import NDArray

from refl.errors import ReflError
from refl.io.safetensors import widen

LARGE = 4 << 20
"""Bytes, widened, from which on a tensor is worth a thread: it takes some milliseconds then, and a
thread starts in a tenth of one."""

STRETCH = 1 << 18
"""Numbers that are widened at a time: few enough to stay in a core's cache."""

CONTEXTS = (4, 2)
"""How many steps back are looked at for what comes next, the surest first."""

_PAGE = 4096


class Source(Protocol):
    """A tensor in the file, and what it is to become."""

    @property
    def dtype(self) -> str: ...

    @property
    def check(self) -> bool:
        """Whether its numbers have still to be checked."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int:
        """Of memory that it needs."""

    @property
    def stretch(self) -> int:
        """Numbers that are widened at a time."""

    def flat(self, memory: Any) -> NDArray[Any]:
        """Where its numbers will be, one after the other: in `memory`, or in the file."""

    def fill(self, start: int, out: NDArray[Any]) -> None:
        """A stretch of `flat`, `out`, from its number `start` on; by any thread."""


@dataclass(frozen=True)
class Stored:
    """A Source: a tensor of floats as it lies in the file."""

    stored: NDArray[Any]
    tag: str
    dtype: str
    check: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def as_it_is(self) -> bool:
        """Whether the file can be used where it is mapped. A header of odd length leaves the
        numbers unaligned.
        """
        return self.stored.dtype == self.dtype and self.stored.flags.aligned

    @property
    def nbytes(self) -> int:
        return 0 if self.as_it_is else self.stored.size * numpy.dtype(self.dtype).itemsize

    @property
    def stretch(self) -> int:
        return STRETCH

    def flat(self, memory: Any) -> NDArray[Any]:
        return self.stored.reshape(-1) if self.as_it_is else in_memory(self, memory)

    def fill(self, start: int, out: NDArray[Any]) -> None:
        stored = self.stored.reshape(-1)[start : start + out.size]
        if not self.as_it_is:
            widen(stored, self.tag, out)
        elif not self.check:
            stored[:: _PAGE // stored.itemsize].max()  # has its pages read


def in_memory(source: Source, memory: Any) -> NDArray[Any]:
    return numpy.asarray(memory)[: source.nbytes].view(source.dtype)


def read(source: Source) -> Tensor:
    """By this thread alone."""
    tensor = Tensor(source, numpy.empty(source.nbytes, numpy.uint8))
    tensor.work()
    return tensor


class Tensor:
    """One tensor on its way, which any number of threads may work on."""

    def __init__(self, source: Source, memory: Any) -> None:
        """`memory`: what an array of `source.nbytes` bytes can be made of."""
        self._source = source
        self._flat = source.flat(memory)
        self._stretches = iter(range(0, self._flat.size, source.stretch))
        self._working = 0
        self._idle = threading.Condition()
        self.finite = True
        """False once a number was met that is not; the numbers are looked at where `source` says
        so."""
        self.whole = True
        """False once a stretch of it failed, or was dropped."""

    @property
    def values(self) -> NDArray[Any]:
        return self._flat.reshape(self._source.shape)

    def work(self) -> None:
        """Widens stretches until none is left that nobody works on."""
        while (start := self._next()) is not None:
            try:
                self._widen(start)
            except BaseException:
                self.drop()
                raise
            finally:
                with self._idle:
                    self._working -= 1
                    self._idle.notify_all()

    def help(self) -> None:
        """The same for a helper: what goes wrong is for the thread to meet that asks for it."""
        with suppress(Exception):
            self.work()

    def _next(self) -> int | None:
        with self._idle:
            start = next(self._stretches, None)
            self._working += start is not None
            return start

    def _widen(self, start: int) -> None:
        out = self._flat[start : start + self._source.stretch]
        self._source.fill(start, out)
        if self._source.check and not is_finite(out):
            self.finite = False

    def wait(self) -> None:
        """Until nobody works on it any longer."""
        with self._idle:
            self._idle.wait_for(lambda: not self._working)

    def drop(self) -> None:
        """No further stretch is begun."""
        with self._idle:
            self._stretches, self.whole = iter(range(0)), False


def is_finite(values: NDArray[Any]) -> bool:
    """Whether every number is finite. The extremes carry NaN and inf,
    without the temporary of isfinite.
    """
    with numpy.errstate(invalid="ignore"):
        return math.isfinite(values.min(initial=0)) and math.isfinite(values.max(initial=0))


class Ahead:
    """Reads tensors, and begins with the next."""

    def __init__(self, names: Iterable[str]) -> None:
        """`names`: of the tensors that are worth it."""
        self._steps = Steps(names)
        self._memory = Memory()
        self._begun: tuple[str, Tensor] | None = None
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __contains__(self, name: str) -> bool:
        return name in self._steps.places

    def read(self, name: str, source: Callable[[str], Source]) -> Tensor | None:
        """The tensor, whole; None where that has failed, as it will for whoever reads it alone.

        `source`: the name of a tensor -> where it lies. May raise ReflError.
        """
        if self._process != os.getpid():  # a fork: the helper is in the other process
            self._start_anew()
        tensor = self._expected(name) or self._begin(source(name))
        tensor.work()
        tensor.wait()
        if not tensor.whole:
            return None
        following = self._following(name)
        if following is not None:
            # raised again where that tensor is asked for
            with suppress(ReflError, MemoryError):
                self._begun = following, self._begin(source(following))
        return tensor

    def _start_anew(self) -> None:
        self._begun, self._memory, self._lock = None, Memory(), threading.Lock()
        self._process = os.getpid()

    def _expected(self, name: str) -> Tensor | None:
        """What was begun, if it is this; dropped, if it is another."""
        with self._lock:
            begun, self._begun = self._begun, None
        if begun is None or begun[0] == name:
            return begun and begun[1]
        begun[1].drop()
        return None

    def _begin(self, source: Source) -> Tensor:
        tensor = Tensor(source, self._memory.lend(source.nbytes))
        with suppress(RuntimeError):  # no more threads: whoever asks for it does it alone
            threading.Thread(target=tensor.help, name="refl reads ahead").start()
        return tensor

    def _following(self, name: str) -> str | None:
        with self._lock:
            return self._steps.after(name)

    def __del__(self) -> None:
        if self._begun is not None:
            self._begun[1].drop()


# -- what comes next -------------------------------------------------------------------------------


class Steps:
    """Guesses the next tensor. Those of a net lie in an order, by the numbers and letters of their
    names, and the steps in it from one to the next are the same in each block, down and up again:
    the next step is what followed the last time that the same steps came before.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted(names, key=_natural)
        self.places = {name: place for place, name in enumerate(self._names)}
        self._last: int | None = None
        self._recent: tuple[int, ...] = ()
        self._learned: dict[tuple[int, ...], int] = {}

    def after(self, name: str) -> str | None:
        """What will likely be asked for after `name`, which is asked for now."""
        place = self.places[name]
        if self._last is not None:
            self._learn(place - self._last)
        self._last = place
        step = next((self._learned[c] for c in self._contexts() if c in self._learned), None)
        if step is None or not 0 <= place + step < len(self._names):
            return None
        return self._names[place + step]

    def _learn(self, step: int) -> None:
        if len(self._learned) > _MOST_LEARNED:
            self._learned.clear()
        self._learned.update(dict.fromkeys(self._contexts(), step))
        self._recent = (*self._recent, step)[-CONTEXTS[0] :]

    def _contexts(self) -> list[tuple[int, ...]]:
        return [self._recent[-n:] for n in CONTEXTS if n <= len(self._recent)]


_MOST_LEARNED = 10_000  # the experts that a router chooses never come in the same order


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts layers.2 before layers.10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


# -- memory ----------------------------------------------------------------------------------------


class Memory:
    """Memory for tensors, used again: the system clears new memory page by page, which takes as
    long as to widen what goes there.
    """

    def __init__(self) -> None:
        self._free: deque[NDArray[numpy.uint8]] = deque(maxlen=1)

    def lend(self, nbytes: int) -> Any:
        """What numpy.asarray makes at least so many bytes of. It comes back by itself."""
        with suppress(IndexError):
            free = self._free.pop()
            if nbytes <= free.nbytes <= 4 * nbytes:
                return _Lent(free, self._free)
            del free
        return _Lent(numpy.empty(nbytes, numpy.uint8), self._free)


class _Lent:
    """Every view of an array made of it, and every view of these, refers to it: once it goes, none
    of them is left, and the memory is free.
    """

    def __init__(self, memory: NDArray[numpy.uint8], free: deque[NDArray[numpy.uint8]]) -> None:
        self.__array_interface__ = memory.__array_interface__
        self._memory, self._free = memory, free

    def __del__(self) -> None:
        if self._memory.nbytes:
            self._free.append(self._memory)
