"""NumPy's work on every core: calls spread over threads, while BLAS keeps to one thread in each.

As many threads are used as BLAS would use by itself, so that whoever sets their number (the
variables OPENBLAS_NUM_THREADS and OMP_NUM_THREADS, or threadpoolctl) sets it for both. What each
call does never depends on that number: neither do the results.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from contextvars import copy_context
from functools import cache
from itertools import count

from threadpoolctl import ThreadpoolController


class _Blas:
    """How many threads BLAS uses; held at one while anybody asks for that."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.holders = 0
        self.threads = 1
        self.limit: object = None

    @contextmanager
    def alone(self) -> Iterator[int]:
        """BLAS in one thread, and the number that it would use by itself. The setting is one for
        the whole process: the last to leave restores it.
        """
        with self.lock:
            if not self.holders:
                self.threads = _used_by_blas()
                self.limit = _libraries().limit(limits=1, user_api="blas")
            self.holders += 1
            threads = self.threads
        try:
            yield threads
        finally:
            with self.lock:
                self.holders -= 1
                if not self.holders:
                    self.limit.restore_original_limits()  # type: ignore[attr-defined]

    def let_go(self) -> None:
        """Of what the threads of a parent held, which a child of it does not have."""
        self.lock = threading.Lock()
        if self.holders:
            self.holders = 0
            self.limit.restore_original_limits()  # type: ignore[attr-defined]


@cache
def _libraries() -> ThreadpoolController:
    import numpy  # noqa: F401 - its library has to be loaded to be found

    return ThreadpoolController()


def _used_by_blas() -> int:
    libraries = _libraries().select(user_api="blas")
    counts = [library.num_threads for library in libraries.lib_controllers]
    return max((n for n in counts if n), default=1)


_BLAS = _Blas()


def alone() -> AbstractContextManager[int]:
    """Inside, BLAS keeps to one thread; the number that it would use by itself."""
    return _BLAS.alone()


def threads() -> int:
    """How many there are to share work among."""
    with _BLAS.alone() as count:
        return count


def each(function: Callable[[int], object], calls: int) -> None:
    """function(0), ..., function(calls - 1), side by side; what one of them raises is raised."""
    with _BLAS.alone() as threads:
        numbers, helpers = count(), min(threads, calls) - 1
        if helpers < 1:
            for number in range(calls):
                function(number)
            return

        def work() -> None:
            for number in iter(lambda: next(numbers), None):
                if number >= calls:
                    return
                function(number)

        asked = [_pool(threads).submit(copy_context().run, work) for _ in range(helpers)]
        try:
            work()
        finally:  # one that has not begun is needed no more: all threads may be busy with calls
            running = [one for one in asked if not one.cancel()]
            wait(running)
        for one in running:
            one.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="refl")


if hasattr(os, "register_at_fork"):  # threads do not survive a fork
    os.register_at_fork(after_in_child=_pool.cache_clear)
    os.register_at_fork(after_in_child=_BLAS.let_go)
