"""Threads (refl/parallel.py): the same bits for any number of them, and BLAS is left as it was."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from surrogate_truth import text
from threadpoolctl import ThreadpoolController, threadpool_limits

from refl import attention, buffers, parallel, pieces
from refl.buffers import BUFFERS
from refl.model import Model
from refl.verification.random_models import LLAMA, random_model

LENGTH = 150

forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    """One whose every operation runs in threads."""
    monkeypatch.setattr(pieces, "LARGE", 1)
    monkeypatch.setattr(pieces, "PIECE", 1 << 9)
    monkeypatch.setattr(buffers, "LEAST", 1)
    monkeypatch.setattr(attention, "QUERIES", 64)
    monkeypatch.setattr(attention, "KEYS", 48)
    return random_model(LLAMA, 4, "float32")


@pytest.fixture
def two() -> Iterator[None]:
    with threadpool_limits(2, user_api="blas"):
        yield


def blas() -> list[int]:
    libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    return [library.num_threads for library in libraries]


def numbers(e: Any) -> list[Any]:
    sites = [a for site in e for a in (e[site], e.activation(site))]
    return [e.relevance, *sites, *(x for entry in e.ledger for x in sums(entry))]


def sums(entry: Any) -> list[Any]:
    return [entry.received, *entry.passed.values(), *entry.absorbed.values()]


def same_bits(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("method", ["attnlrp", "attnlrp-gradient", "cp-lrp"])
def test_the_same_bits_with_any_number_of_threads(method: str, model: Model) -> None:
    texts = [text(model, n, seed=n) for n in (LENGTH, LENGTH - 60)]
    found, used = [], []
    for threads in (1, 2, 4):
        with threadpool_limits(threads, user_api="blas"):
            e = model.explain(texts, method, keep="*.mlp")
            with parallel._BLAS.alone() as number:
                used.append(number)
            assert blas() == [threads] * len(blas())
        found.append([x for one in e for x in numbers(one)])
    assert used == [1, 2, 4]
    same_bits(found[0], found[1])
    same_bits(found[0], found[2])


def test_calls_run_side_by_side_while_blas_is_alone(two: None) -> None:
    """Two at once, each number once, and one thread of BLAS in each."""
    meeting, seen = threading.Barrier(2), []

    def call(number: int) -> None:
        if number < 2:
            meeting.wait(30)
        seen.append((number, *blas()))

    parallel.each(call, 7)
    assert sorted(seen) == [(n, *[1] * len(blas())) for n in range(7)]
    assert blas() == [2] * len(blas())


def test_no_more_threads_than_blas_would_use() -> None:
    names = set()
    for threads in (1, 3):
        with threadpool_limits(threads, user_api="blas"):
            names.clear()
            parallel.each(lambda _: (time.sleep(0.002), names.add(threading.get_ident())), 20)
            assert len(names) <= threads


def test_threads_of_other_libraries_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has limited BLAS to one has said so, however many threads OpenMP has."""

    class Library:
        def __init__(self, user_api: str, num_threads: int) -> None:
            self.user_api, self.num_threads = user_api, num_threads

    class Libraries:
        lib_controllers = (Library("blas", 1), Library("openmp", 8))

        def select(self, **wanted: str) -> Any:
            found = Libraries()
            (user_api,) = wanted.values()
            found.lib_controllers = [x for x in self.lib_controllers if x.user_api == user_api]
            return found

    monkeypatch.setattr(parallel, "_libraries", Libraries)
    assert parallel._used_by_blas() == 1


def test_nothing_to_do(two: None) -> None:
    parallel.each(lambda n: pytest.fail("called"), 0)
    called = list[int]()
    parallel.each(called.append, 1)
    assert called == [0] and blas() == [2] * len(blas())


@pytest.mark.parametrize("failing", [0, 1, 9])
def test_what_is_raised_is_raised(failing: int, two: None) -> None:
    """In whichever thread; BLAS is as before, nothing is running, and the next calls run."""
    running = list[int]()

    def call(number: int) -> None:
        running.append(number)
        time.sleep(0.002)
        if number == failing:
            raise KeyError(f"call {number}")
        running.remove(number)

    with pytest.raises(KeyError, match=f"call {failing}"):
        parallel.each(call, 10)
    assert running == [failing] and blas() == [2] * len(blas())
    done = list[int]()
    parallel.each(done.append, 10)
    assert sorted(done) == list(range(10))


def test_nothing_runs_on_behind_what_is_raised() -> None:
    """All threads are waited for, also where several raise."""
    running = list[int]()

    def call(number: int) -> None:
        running.append(number)
        time.sleep(0.05 * (number % 4))
        running.remove(number)
        if number % 4 < 2:
            raise KeyError(number)

    with threadpool_limits(4, user_api="blas"):
        with pytest.raises(KeyError):
            parallel.each(call, 4)
        assert not running


def test_the_last_to_leave_restores_blas(two: None) -> None:
    with parallel._BLAS.alone() as threads:
        assert threads == 2
        with parallel._BLAS.alone() as threads:
            assert threads == 2
        assert blas() == [1] * len(blas())
    assert blas() == [2] * len(blas())


def in_a_child(function: Callable[[], Any], seconds: float = 60) -> Any:
    """What it returns in a forked process, which is ended if it waits for ever."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=lambda: there.send(function()))
    process.start()
    try:
        assert here.poll(seconds), "the child waits for ever"
        return here.recv()
    finally:
        process.kill()
        process.join()


def calls_within_calls() -> int:
    """Two threads call from two each, which leaves none free for the calls within."""
    counted, lock, meeting = [0], threading.Lock(), threading.Barrier(4, timeout=5)

    def inner(_: int) -> None:
        with lock:
            counted[0] += 1

    def outer(number: int) -> None:
        if number < 2:
            meeting.wait()
        parallel.each(inner, 5)

    with ThreadPoolExecutor(2) as pool:
        for one in [pool.submit(parallel.each, outer, 4) for _ in range(2)]:
            one.result()
    return counted[0]


@forking
def test_calls_within_calls(two: None) -> None:
    """Nobody waits for ever."""
    assert in_a_child(calls_within_calls, 20) == 2 * 4 * 5


def test_two_explain_at_once(model: Model, two: None) -> None:
    """The last to leave restores BLAS; each has the numbers that it has alone."""
    texts = [text(model, LENGTH, seed) for seed in range(2)]
    alone = [numbers(model.explain(ids, keep="*.mlp")) for ids in texts]
    found: list[Any] = [None, None]

    def explain(n: int) -> None:
        for _ in range(3):
            found[n] = numbers(model.explain(texts[n], keep="*.mlp"))

    threads = [threading.Thread(target=explain, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert blas() == [2] * len(blas())
    for one, other in zip(found, alone, strict=True):
        same_bits(one, other)


def test_settings_of_the_caller_reach_every_thread(two: None) -> None:
    """NumPy's error state is a context variable."""
    states = list[str]()
    meeting = threading.Barrier(2)

    def call(_: int) -> None:
        meeting.wait(30)
        states.append(np.geterr()["over"])

    with np.errstate(over="raise"):
        parallel.each(call, 2)
    assert states == ["raise", "raise"]


@forking
@pytest.mark.parametrize("busy", [False, True])
def test_a_child_explains_behind_a_fork(busy: bool, model: Model, two: None) -> None:
    """Whose parent has used its threads; also where another thread of the parent holds BLAS to
    one just then, and every lock, which in the child nobody does.
    """
    ids = text(model, LENGTH)
    wanted = model.explain(ids).relevance
    holding, done = threading.Event(), threading.Event()

    def hold() -> None:
        with parallel._BLAS.alone(), parallel._BLAS.lock, BUFFERS._lock:
            holding.set()
            done.wait(60)

    other = threading.Thread(target=hold)
    if busy:
        other.start()
        holding.wait(30)
    try:
        found, threads = in_a_child(lambda: (model.explain(ids).relevance, blas()))
    finally:
        done.set()
        if busy:
            other.join()
    assert np.array_equal(found, wanted) and threads == [2] * len(blas())
    assert blas() == [2] * len(blas())
