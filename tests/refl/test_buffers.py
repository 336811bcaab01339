"""Memory that is used again (refl/buffers.py): never while anything can still read it, and never
more of it than was in use at once.
"""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from surrogate_truth import text

from refl import buffers, pieces
from refl.buffers import BUFFERS, LEAST, Buffers
from refl.verification.random_models import LLAMA, random_model

COUNT = LEAST // 8
"""Numbers of the smallest array whose memory is used again."""


def address(x: Any) -> int:
    return int(x.__array_interface__["data"][0])


def waiting(pool: Buffers) -> int:
    """Bytes that lie there."""
    return sum(memory.nbytes for pile in pool._waiting.values() for memory in pile)


def test_memory_is_used_again_once_the_last_view_is_gone() -> None:
    pool = Buffers()
    x = pool.empty((COUNT,), "float64")
    x[:] = 1.0
    at, view = address(x), x.reshape(2, -1)[1, ::2].T
    del x
    other = pool.empty((COUNT,), "float64")
    other[:] = 2.0
    assert address(other) != at and (view == 1.0).all()
    del view
    again = pool.empty((COUNT,), "float32")  # half as large: another size
    assert address(again) != at
    again = pool.empty((2, COUNT // 2), "float64")
    assert address(again) == at and (other == 2.0).all()


def test_an_iterator_or_a_buffer_keeps_it() -> None:
    pool = Buffers()
    x = pool.empty((COUNT,), "float64")
    x[:] = 1.0
    at, view = address(x), memoryview(x)
    del x
    other = pool.empty((COUNT,), "float64")
    assert address(other) != at and view[7] == 1.0


def test_arrays_are_as_asked_for() -> None:
    pool = Buffers()
    for dtype in ("float64", "float32", "bool", "complex128", "int64"):
        for shape in ((COUNT * 8,), (3, COUNT * 8), (0, 4), (), (5,)):
            x = pool.empty(shape, dtype)
            assert x.shape == shape and x.dtype == dtype
            assert x.flags.writeable and x.flags.c_contiguous and x.flags.aligned


def test_small_arrays_are_numpys_own() -> None:
    pool = Buffers()
    assert pool.empty((COUNT - 1,), "float64").base is None
    assert pool._most == 0
    assert pool.empty((COUNT,), "float64").base is not None


@given(st.permutations(range(4)))
def test_like_keeps_the_order_of_axes(order: list[int]) -> None:
    x = np.zeros((2, 3, 4, 5)).transpose(order)
    y = Buffers().like(x)
    assert y.shape == x.shape and y.strides == x.strides and y.dtype == x.dtype


@given(st.integers(LEAST, 1 << 40))
def test_an_eighth_larger_at_most(needed: int) -> None:
    assert needed <= buffers._size(needed) <= needed * 1.125


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), max_size=30))
def test_what_waits_and_what_is_used_is_what_was_used_at_once(steps: list[tuple[int, int]]) -> None:
    """Arrays of all sizes come and go: the counts are right, and the most is never passed."""
    pool, held = Buffers(), dict[int, Any]()
    most = 0
    for place, size in steps:
        if place in held:
            del held[place]
        else:
            held[place] = pool.empty((size * COUNT,), "float64")
        used = sum(buffers._size(x.nbytes) for x in held.values())
        most = max(most, used)
        assert pool._used == used and pool._idle == waiting(pool)
        assert used + pool._idle <= most == pool._most
        places = [address(x) for x in held.values()]
        assert len(set(places)) == len(places)


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "IDLE", 3 * LEAST)
    pool = Buffers()
    held = [pool.empty((COUNT,), "float64") for _ in range(8)]
    assert waiting(pool) == 0
    del held
    assert 0 < waiting(pool) <= 3 * LEAST


def test_waiting_memory_can_be_let_go_of() -> None:
    pool = Buffers()
    kept, _ = pool.empty((COUNT,), "float64"), pool.empty((COUNT,), "float64")
    del _
    assert waiting(pool) == LEAST
    pool.clear()
    assert waiting(pool) == pool._idle == 0 and pool._used == pool._most == LEAST
    del kept
    assert pool._used == 0


def test_memory_that_there_is_none_of_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Buffers()
    with pytest.raises(MemoryError):
        pool.empty((1 << 58,), "uint8")
    assert pool._used == 0
    x = pool.empty((COUNT,), "float64")
    assert pool._used == pool._most == x.nbytes


def test_an_array_may_die_while_one_is_made() -> None:
    """In a garbage collection, within the lock."""
    pool = Buffers()

    class Cycle:
        def __init__(self) -> None:
            self.array, self.me = pool.empty((COUNT,), "float64"), self

    Cycle()
    with pool._lock:
        gc.collect()
    assert waiting(pool) == LEAST and pool._used == 0


def test_threads_share_no_memory() -> None:
    """Four of them make arrays, write their own number, and find it there."""
    pool, wrong = Buffers(), list[int]()

    def hammer(number: int) -> None:
        random = np.random.default_rng(number)
        held: list[Any] = []
        for step in range(400):
            x = pool.empty((int(random.integers(1, 4)) * COUNT,), "float64")
            x[::512] = number
            held.append(x)
            if step % 3:
                y = held.pop(int(random.integers(len(held))))
                wrong.extend([number] * bool((y[::512] != number).any()))
            held = held[-4:]

    threads = [threading.Thread(target=hammer, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and pool._used == 0 and pool._idle == waiting(pool)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("method", ["attnlrp", "attnlrp-gradient"])
def test_what_an_explanation_keeps_stays(
    method: str, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later explanations, and those of several outputs of one forward, write over nothing that was
    handed out.
    """
    monkeypatch.setattr(buffers, "LEAST", 1)
    monkeypatch.setattr(pieces, "LARGE", 1)
    model = random_model(LLAMA, 4, "float32")
    texts = [text(model, 80, seed) for seed in range(3)]

    def explained() -> list[Any]:
        first = model.explain(texts[0], method, keep="*mlp*", recompute=recompute)
        return [first, *model.explain_each(texts[1], (3, 5), method, keep="*", recompute=recompute)]

    found = explained()
    before = [numbers(e) for e in found]
    for ids in texts:
        model.explain(ids, method, keep="*", recompute=recompute)
        model.explain(ids, method, keep=())
    explained()
    for e, earlier in zip(found, before, strict=True):
        for name, array in numbers(e).items():
            assert np.array_equal(array, earlier[name]), name
    assert BUFFERS._used > 0  # such memory was kept, and is in use


def numbers(e: Any) -> dict[str, Any]:
    """Copies of all arrays of an explanation."""
    arrays = {"relevance": e.relevance.copy()}
    for site in e:
        arrays[site], arrays[f"{site} (activation)"] = e[site].copy(), e.activation(site).copy()
    return arrays
