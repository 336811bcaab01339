"""Work spread over whatever can be asked to do it, with the same bytes however many there are.

`pool` is anything with `submit(function, *arguments)` whose answer has `result()`: a process pool,
a dask Client, mpi4py's MPIPoolExecutor, loky, an adapter of Parsl's. `Processes` is the one that
refl brings. Tasks are cut before anybody works on them, a task never knows who else is at work, and
BLAS keeps to one thread in each: so nothing of the answer depends on who gives it.

A worker of `Processes` that dies loses nothing: the pool is made again and the task is given out
once more, alone after that, up to ATTEMPTS times. A cluster has ways of its own to do the same.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import connection, get_context, parent_process, resource_tracker
from typing import Any, Protocol, Self, TypeVar

from refl import arguments, parallel
from refl.errors import ReflError, argument
from refl.model import Model

ATTEMPTS = 3
"""How often a task is given out whose worker dies."""

T = TypeVar("T")


class Pool(Protocol):
    """What can be asked to work."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Any:
        """An object whose `result()` waits for the answer and gives it, or raises."""


def not_both(pool: Pool | None, workers: int | None) -> None:
    """Raises ReflError where it is said twice who works, and for a pool that is none."""
    if pool is not None and workers is not None:
        raise ReflError(f"give {argument('pool')} or {argument('workers')}, not both")
    # an instance: a pool's class has a `submit`, too
    if isinstance(pool, type) or not (pool is None or callable(getattr(pool, "submit", None))):
        raise arguments.expected("pool", "an object with submit(function, *arguments)", pool)


class InThisProcess:
    """No worker: each task is done when its answer is asked for."""

    workers = 0

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Any:
        return _Later(function, arguments)


@dataclass(frozen=True)
class _Later:
    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def result(self) -> Any:
        return self.function(*self.arguments)


# -- processes -------------------------------------------------------------------------------------


class Processes:
    """So many processes of this machine, BLAS in one thread in each, started when the first task
    comes. A context: at its end none is left, whatever has happened.
    """

    def __init__(self, workers: int) -> None:
        self.workers = arguments.positive("workers", workers)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.again()

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Any:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.workers, mp_context=get_context("spawn"), initializer=_begin
            )
        with _interrupts_held():
            return self._pool.submit(function, *arguments)

    def again(self) -> None:
        """Ends all processes; the next task starts others."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        running = list((getattr(pool, "_processes", None) or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()
        for process in running:
            process.join()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes that are started inside never see an interrupt from the keyboard, not even while
    they are still loading; this one sees it afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its start would let interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_NOTED: list[str] = []
"""Warnings of a worker that nobody has heard of yet."""


def _begin() -> None:
    """Of a worker: it leaves an interrupt to its parent, and does not outlive it."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("default")
    warnings.showwarning = lambda message, *_, **__: _NOTED.append(str(message))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


# -- tasks and answers -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a task came to, and what was warned of on the way."""

    value: Any
    warned: tuple[str, ...] = ()


def _work(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Answer:
    """A task where it is done."""
    with parallel.alone():
        value = function(*arguments)
    warned = tuple(_NOTED)
    _NOTED.clear()
    return Answer(value, warned)


@dataclass
class _Asked:
    """A task that was given out, to which making of the pool, and how often its worker died."""

    name: str
    arguments: tuple[Any, ...]
    future: Any = None
    making: int = 0
    deaths: int = 0


@dataclass
class Work:
    """Tasks in a queue, `ahead` of them at most given out and not yet answered."""

    pool: Pool
    function: Callable[..., Any]
    ahead: int
    making: int = 0
    queue: deque[_Asked] = field(default_factory=deque)

    def answers(self, tasks: Iterable[tuple[str, tuple[Any, ...]]]) -> Iterator[Any]:
        """Of each task, a name for messages and its arguments, in their order. Raises ReflError
        where a task is refused, and where every worker that tries it dies.
        """
        for name, task in tasks:
            if len(self.queue) >= self.ahead:
                yield self._first()
            self.queue.append(_Asked(name, task))
            self._give_out(self.queue[-1])
        while self.queue:
            yield self._first()

    def _give_out(self, asked: _Asked) -> None:
        try:
            asked.future = self.pool.submit(_work, self.function, asked.arguments)
        except BrokenExecutor:  # nobody has asked for the answer that would have said so
            asked.future = _Dead()
        asked.making = self.making

    def _first(self) -> Any:
        """The answer to the oldest task."""
        asked = self.queue[0]
        while True:
            try:
                answer: Answer = asked.future.result()
                break
            except BrokenExecutor:
                self._again(asked)
            except Exception as error:
                if type(error).__name__ != "KilledWorker":  # dask's, after attempts of its own
                    raise
                raise _refused(asked.name, "more than once") from None
        self.queue.popleft()
        if answer.warned:
            for words in answer.warned:
                warnings.warn(words, stacklevel=2)
        self._give_out_lost()
        return answer.value

    def _again(self, asked: _Asked) -> None:
        """Gives a task out once more, to a pool that is whole."""
        if asked.making == self.making:
            asked.deaths += 1
            if asked.deaths >= ATTEMPTS or not hasattr(self.pool, "again"):
                raise _refused(asked.name, f"{asked.deaths} times" if asked.deaths > 1 else "")
            self.pool.again()
            self.making += 1
        self._give_out(asked)

    def _give_out_lost(self) -> None:
        """Tasks that were lost with a pool: not before the first of them is answered, so that the
        one whose worker dies is known.
        """
        for asked in self.queue:
            if asked.making != self.making and not _has_answer(asked.future):
                self._give_out(asked)


class _Dead:
    def result(self) -> Any:
        raise BrokenExecutor


def _has_answer(future: Any) -> bool:
    """Of a future of a pool that broke."""
    return not isinstance(future, _Dead) and future.done() and future.exception() is None


def _refused(name: str, times: str) -> ReflError:
    return ReflError(
        f"a worker died {times} while it worked on {name}, killed from outside or out of memory: "
        f"take fewer {argument('workers')}; what is finished is kept".replace("  ", " ")
    )


def ahead(pool: Any, workers: int | None = None) -> int:
    """How many tasks to have given out at once: two for each worker, so that none waits."""
    count = workers if workers is not None else getattr(pool, "workers", None)
    if count is None and callable(getattr(pool, "nthreads", None)):  # a dask Client
        count = sum(pool.nthreads().values())
    return max(2 * (count if count is not None else os.cpu_count() or 1), 1)


# -- the model where the work is done --------------------------------------------------------------


@dataclass(frozen=True)
class Packed:
    """A model by the paths and fingerprints of its files; opened once in each process."""

    content: bytes = field(repr=False)
    key: str

    @classmethod
    def of(cls, model: Model) -> Packed:
        content = pickle.dumps(model)
        packed = cls(content, hashlib.sha256(content).hexdigest())
        return packed

    def model(self) -> Model:
        return _opened(self)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Packed) and self.key == other.key


@lru_cache(maxsize=1)
def _opened(packed: Packed) -> Model:
    model: Model = pickle.loads(packed.content)
    return model
